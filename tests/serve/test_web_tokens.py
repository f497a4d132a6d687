"""JSON Web Tokens: which ones are valid, whose calls they make, and which files of public keys are taken."""

from __future__ import annotations

import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from engines import Clock
from gruve import watched_files
from gruve.errors import CredentialsBroken
from gruve.serve.callers import web_tokens
from gruve.serve.callers.identity import Limits, Role
from gruve.serve.callers.web_tokens import MAX_TOKEN_BYTES, WebTokens
from token_issuer import AUDIENCE, EC_KEY, ISSUER, Provider


@pytest.fixture(autouse=True)
def _looking_each_time(monkeypatch):
    monkeypatch.setattr(watched_files, "LOOK_S", 0.0)


@pytest.fixture
def provider(tmp_path):
    return Provider(tmp_path / "jwks.json")


@pytest.fixture
def tokens(provider):
    return WebTokens(provider.path, ISSUER, AUDIENCE)


@pytest.mark.parametrize(("key", "algorithm"), [("rsa", "RS256"), ("ec", "ES256")])
def test_a_token_of_the_issuer_yields_its_tenant_and_role(tokens, provider, key, algorithm):
    token = provider.token(key, algorithm, gruve_tenant="acme", gruve_role="admin")
    for _ in range(2):  # the second time it is remembered
        identity = tokens.identify(token)
        assert (identity.tenant, identity.role, identity.owner) == ("acme", Role.ADMIN, "acme")
    plain = tokens.identify(provider.token(key, algorithm))
    assert (plain.tenant, plain.role) == ("ann", Role.USE)


def test_a_token_may_carry_its_tenants_share_and_limits(tokens, provider):
    claims = {"gruve_weight": 2, "gruve_limits": {"streams": 3, "tokens_per_minute": 0}}
    identity = tokens.identify(provider.token(**claims))
    assert (identity.weight, identity.limits) == (2.0, Limits(streams=3, tokens_per_minute=0))
    plain = tokens.identify(provider.token())
    assert (plain.weight, plain.limits) == (1.0, Limits())


WRONG_CLAIMS = {
    "another issuer": {"iss": "https://elsewhere.example.com"},
    "no issuer": {"iss": None},
    "another audience": {"aud": "other"},
    "no audience": {"aud": None},
    "expired": {"exp": int(time.time()) - 1},
    "no expiry": {"exp": None},
    "an expiry in milliseconds": {"exp": int(time.time() * 1_000)},
    "an expiry that no float holds": {"exp": 10**400},
    "an expiry beyond all numbers": {"exp": float("inf")},
    "not yet valid": {"nbf": 9_999_999_999},
    "no tenant": {"sub": None},
    "a tenant with a newline": {"sub": "a\nb"},
    "an unknown role": {"gruve_role": "root"},
    "no weight": {"gruve_weight": 0},
    "a weight above the greatest": {"gruve_weight": 1_001},
    "a weight that is no number": {"gruve_weight": True},
    "limits that are no object": {"gruve_limits": ["streams"]},
    "an unknown limit": {"gruve_limits": {"bytes": 1}},
    "a limit below its least": {"gruve_limits": {"waiting": 0}},
    "a limit that no float holds": {"gruve_limits": {"tokens_per_minute": 10**400}},
}


@pytest.mark.parametrize("wrong", WRONG_CLAIMS)
def test_a_token_with_a_wrong_claim_is_not_valid(tokens, provider, wrong):
    assert tokens.identify(provider.token(**WRONG_CLAIMS[wrong])) is None


def test_a_token_of_another_key_or_algorithm_is_not_valid(tokens, provider):
    public = provider.keys["rsa"].public_key()
    stranger = ec.generate_private_key(ec.SECP256R1())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 3_600, "sub": "ann"}
    unsigned = jwt.encode(claims, None, "none", headers={"kid": "ec"})
    secret = jwt.encode(claims, str(public.public_numbers().n), "HS256", headers={"kid": "rsa"})
    forged = jwt.encode(claims, stranger, "ES256", headers={"kid": "ec"})
    crossed = provider.token("rsa", "RS256", kid="ec")
    for token in (unsigned, secret, forged, crossed, provider.token(kid="absent"), provider.token()[:-2], "", "a.b.c"):
        assert tokens.identify(token) is None


def test_a_remembered_token_still_expires_and_a_removed_key_ends_it(provider):
    clock, expires_s = Clock(), int(time.time()) + 3_600
    tokens = WebTokens(provider.path, ISSUER, AUDIENCE, clock=clock)
    token, other = provider.token(), provider.token("rsa", "RS256", exp=expires_s)
    assert tokens.identify(token) is not None
    provider.publish("rsa")
    assert tokens.identify(token) is None
    assert tokens.identify(other) is not None
    clock.now = expires_s - 0.1
    assert tokens.identify(other) is not None
    clock.now = expires_s
    assert tokens.identify(other) is None


def test_a_token_is_verified_once_until_many_others_have_come(tokens, provider, monkeypatch):
    monkeypatch.setattr(web_tokens, "MAX_KNOWN", 2)
    verified, decode = [], jwt.decode
    monkeypatch.setattr(
        jwt, "decode", lambda token, *rest, **how: verified.append(token) or decode(token, *rest, **how)
    )
    first, second, third = (provider.token(sub=name) for name in "abc")
    for token in (first, first, second, first, third, third, second, first):
        assert tokens.identify(token) is not None
    assert verified == [first, second, third, first]


def test_a_token_without_a_key_id_is_of_the_only_key(provider):
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 3_600, "sub": "ann"}
    token = jwt.encode(claims, EC_KEY, "ES256")
    assert WebTokens(provider.path, ISSUER, AUDIENCE).identify(token) is None
    provider.publish("ec")
    assert WebTokens(provider.path, ISSUER, AUDIENCE).identify(token) is not None


def test_a_token_above_the_bound_is_not_looked_at(tokens, provider):
    room = MAX_TOKEN_BYTES - len(provider.token(note=""))
    fits, exceeds = (provider.token(note="x" * (room * 3 // 4 + more)) for more in (-4, 4))
    assert len(fits) <= MAX_TOKEN_BYTES < len(exceeds)
    assert (tokens.identify(fits) is None, tokens.identify(exceeds) is None) == (False, True)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', '{"keys": [{"kty": "x"}]}']
)
def test_a_file_without_public_keys_is_refused(tmp_path, text):
    (tmp_path / "jwks.json").write_text(text)
    with pytest.raises(CredentialsBroken, match=r"jwks\.json"):
        WebTokens(tmp_path / "jwks.json", ISSUER, AUDIENCE)


def test_a_file_with_a_private_key_is_refused(tmp_path):
    private = jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY, as_dict=True)
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [private]}))
    with pytest.raises(CredentialsBroken, match="has a secret or private key; only public keys are accepted"):
        WebTokens(tmp_path / "jwks.json", ISSUER, AUDIENCE)
