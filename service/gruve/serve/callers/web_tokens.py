"""JSON Web Tokens (RFC 7519) of an identity provider, verified with the public keys of a JWKS file.

Only asymmetric signatures are accepted: with a shared secret every server could make tokens, and a public key must
never be taken for a secret. Issuer, audience and expiry are required and checked. The tenant is the claim
`gruve_tenant`, or `sub` without it; the claim `gruve_role` is `use`, the default, or `admin`. The claims `gruve_weight`
and `gruve_limits`, an object with the fields of `Limits`, are those of an API key. A claim that is none of these values
makes the token invalid.
"""

from __future__ import annotations

import collections
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt

from gruve.errors import CredentialsBroken, InvalidField
from gruve.serve.callers.identity import MAX_WEIGHT, ROLE_NAMES, Identity, Limits, is_tenant
from gruve.watched_files import WatchedFiles, read_bytes

log = logging.getLogger(__name__)
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
REQUIRED = ("exp", "iss", "aud")
MAX_TOKEN_BYTES = 8_192
MAX_EXPIRY_S = 253_402_300_799
"""The end of the year 9999: a time after it is a mistake, such as milliseconds, and the token would never expire."""
MAX_KNOWN = 1_024
"""Verified tokens that are remembered: a signature takes longer to verify than a small request to serve."""


class WebTokens:
    """Verifies the tokens of one issuer for one audience. `clock` gives the Unix time."""

    def __init__(self, jwks: Path, issuer: str, audience: str, *, clock: Callable[[], float] = time.time) -> None:
        """Reads the JWKS file. Raises `CredentialsBroken`."""
        self._file = WatchedFiles([jwks], lambda: _parse(jwks, read_bytes(jwks)), seldom=True)
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._known: collections.OrderedDict[str, tuple[Identity, float]] = collections.OrderedDict()
        """The identity and expiry of tokens that `_known_keys` have verified."""
        self._known_keys: object = None

    def identify(self, token: str) -> Identity | None:
        """The identity that a token yields; None if it is not valid now."""
        keys = self._file.current()
        if keys is not self._known_keys:
            self._known.clear()
            self._known_keys = keys
        found = self._known.get(token)
        if found is None:
            found = self._verify(token, keys)
            if found is None:
                return None
            self._known[token] = found
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        identity, expires_s = found
        return identity if self._clock() < expires_s else None

    def _verify(self, token: str, keys: list[jwt.PyJWK]) -> tuple[Identity, float] | None:
        if len(token) > MAX_TOKEN_BYTES:
            return None
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            candidates = [key for key in keys if key_id is None or key.key_id == key_id]
            if len(candidates) != 1:
                return None
            claims: dict[str, Any] = jwt.decode(
                token,
                candidates[0],
                algorithms=ALGORITHMS,
                issuer=self._issuer,
                audience=self._audience,
                options={"require": list(REQUIRED)},
            )
        except (jwt.PyJWTError, ArithmeticError, RecursionError, TypeError, ValueError):
            # The last four come from claims that no issuer makes, and differ between releases of PyJWT.
            return None
        tenant: Any = claims.get("gruve_tenant", claims.get("sub"))
        role: Any = claims.get("gruve_role", "use")
        weight, limits = _weight(claims), _limits(claims)
        expires_s = int(claims["exp"])  # PyJWT has checked that it is a number
        if not is_tenant(tenant) or not isinstance(role, str) or role not in ROLE_NAMES:
            return None
        if weight is None or limits is None or expires_s > MAX_EXPIRY_S:
            return None
        return Identity(tenant, ROLE_NAMES[role], weight=weight, limits=limits), expires_s


def _weight(claims: dict[str, Any]) -> float | None:
    weight = claims.get("gruve_weight", 1.0)
    return float(weight) if type(weight) in (int, float) and 0.0 < weight <= MAX_WEIGHT else None


def _limits(claims: dict[str, Any]) -> Limits | None:
    try:
        return Limits(**claims.get("gruve_limits", {}))
    except (TypeError, InvalidField):  # no object, an unknown limit, or a value out of range
        return None


def _parse(path: Path, data: bytes) -> list[jwt.PyJWK]:
    """The keys of a JWKS file that sign. Raises `CredentialsBroken`, also for a secret key."""
    try:
        given = [key for key in json.loads(data)["keys"] if key.get("use", "sig") == "sig"]
        if any(key.get("kty") == "oct" or "d" in key for key in given):
            raise CredentialsBroken(f"{str(path)!r} has a secret or private key; only public keys are accepted")
        keys = [jwt.PyJWK(key) for key in given]
    except (AttributeError, KeyError, TypeError, ValueError, jwt.PyJWTError) as error:
        raise CredentialsBroken(f"{str(path)!r} is not a JWKS file: {error}") from error
    if not keys:
        raise CredentialsBroken(f"{str(path)!r} has no key that signs")
    return keys
