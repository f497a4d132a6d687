"""An identity provider that signs JSON Web Tokens and publishes its public keys in a JWKS file."""

from __future__ import annotations

import json
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER, AUDIENCE = "https://login.example.com", "gruve"
RSA_KEY, EC_KEY = rsa.generate_private_key(65_537, 2_048), ec.generate_private_key(ec.SECP256R1())


class Provider:
    """Has a key of each kind."""

    def __init__(self, path):
        self.path = path
        self.keys = {"rsa": RSA_KEY, "ec": EC_KEY}
        self.publish("rsa", "ec")

    def publish(self, *names):
        kinds = {"rsa": jwt.algorithms.RSAAlgorithm, "ec": jwt.algorithms.ECAlgorithm}
        public = [kinds[name].to_jwk(self.keys[name].public_key(), as_dict=True) | {"kid": name} for name in names]
        self.path.write_text(json.dumps({"keys": public}))

    def token(self, key="ec", algorithm="ES256", kid=None, **claims):
        whole = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 3_600, "sub": "ann"} | claims
        whole = {name: value for name, value in whole.items() if value is not None}
        return jwt.encode(whole, self.keys.get(key, key), algorithm, headers={"kid": kid or key})
