"""Who may call: API keys and tokens, roles, one answer for whatever is wrong, and nothing secret anywhere."""

from __future__ import annotations

import json
import logging
import re
import stat
import time
from types import SimpleNamespace

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.protobuf import descriptor_pb2, empty_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gruve import watched_files
from gruve.client.errors import failure_of
from gruve.errors import CredentialsBroken, InvalidField
from gruve.ports import TlsFiles
from gruve.serve.callers.access import METHODS, ROLES, AccessConfig
from gruve.serve.callers.api_keys import ApiKeys, add_key, read_keys, revoke_key
from gruve.serve.callers.exposure import unprotected
from gruve.serve.callers.identity import Limits, Role
from gruve.serve.callers.web_tokens import WebTokens
from gruve.v1 import generation_pb2 as g
from gruve.v1 import model_pb2
from gruve.watched_files import signature
from serving import until

ISSUER, AUDIENCE = "https://login.example.com", "gruve"
RSA_KEY, EC_KEY = rsa.generate_private_key(65_537, 2_048), ec.generate_private_key(ec.SECP256R1())
LIST = "/gruve.v1.ModelService/ListModels"


@pytest.fixture(autouse=True)
def _looking_each_time(monkeypatch):
    monkeypatch.setattr(watched_files, "LOOK_S", 0.0)


class Clock:
    def __init__(self, now_s):
        self.now_s = now_s

    def __call__(self):
        return self.now_s


def bearer(credential):
    return [("authorization", f"Bearer {credential}")]


def call(server, method=LIST, metadata=None):
    """How a call of any method failed, if it did; made without its stubs."""
    rpc = server.channel.unary_unary(method, empty_pb2.Empty.SerializeToString, model_pb2.ListModelsResponse.FromString)
    try:
        rpc(empty_pb2.Empty(), timeout=1 if method.endswith("/Watch") else 20, metadata=metadata)
    except grpc.RpcError as error:
        return failure_of(error)
    return None


def codes(failure):
    return ("OK", "") if failure is None else (failure.code.name, failure.reason)


# ---- the table


def services_of(server, metadata):
    """Every service and method that the server has, by its own account."""
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)

    def ask(**request):
        return next(
            stub.ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(**request)]), metadata=metadata, timeout=20
            )
        )

    found = {}
    for service in ask(list_services="").list_services_response.service:
        for packed in ask(file_containing_symbol=service.name).file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(packed)
            for described in file.service:
                name = f"{file.package}.{described.name}"
                if name == service.name:
                    found[name] = {method.name for method in described.method}
    return found


@pytest.fixture
def keyed(start, tmp_path):
    """A server with keys, and a key of each role."""
    path = tmp_path / "keys.json"
    use = add_key(path, "ann-laptop", "ann")
    admin = add_key(path, "ops", "ops", role=Role.ADMIN)
    server = start(access=AccessConfig(keys=path))
    return SimpleNamespace(server=server, path=path, use=use, admin=admin)


def test_every_method_of_every_service_has_an_entry_in_the_table(keyed):
    found = services_of(keyed.server, bearer(keyed.use))
    assert len(found) == 6
    assert {service: set(methods) for service, methods in METHODS.items()} == found


def test_a_method_without_credentials_is_refused_unless_it_is_open(keyed):
    refused = {method for method in ROLES if codes(call(keyed.server, method)) == 2 * ("UNAUTHENTICATED",)}
    assert refused == {method for method, role in ROLES.items() if role is not None}


def test_a_method_of_admins_is_refused_to_others(keyed):
    denied = {
        name for name in ROLES if codes(call(keyed.server, name, bearer(keyed.use))) == 2 * ("PERMISSION_DENIED",)
    }
    assert denied == {name for name, role in ROLES.items() if role is Role.ADMIN}
    for method in denied:
        failure = call(keyed.server, method, bearer(keyed.use))
        assert failure.message == "the caller's role is use; this call needs admin"
        answer = codes(call(keyed.server, method, bearer(keyed.admin)))
        assert answer[0] not in ("PERMISSION_DENIED", "UNAUTHENTICATED")


def test_a_method_without_an_entry_is_refused_to_everybody(keyed, monkeypatch):
    monkeypatch.delitem(ROLES, LIST)
    assert codes(call(keyed.server, LIST, bearer(keyed.admin))) == ("PERMISSION_DENIED", "PERMISSION_DENIED")


def test_health_is_open_and_channelz_serves_admins(keyed):
    health = health_pb2_grpc.HealthStub(keyed.server.channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.SERVING
    channelz = channelz_pb2_grpc.ChannelzStub(keyed.server.channel)
    assert channelz.GetServers(channelz_pb2.GetServersRequest(), metadata=bearer(keyed.admin), timeout=20).server


# ---- API keys


def test_a_key_opens_calls_and_streams(keyed):
    assert call(keyed.server, metadata=bearer(keyed.use)) is None
    request = g.GenerateRequest(model="tiny", max_tokens=5)
    stream = keyed.server.generation.Generate(request, metadata=bearer(keyed.use), timeout=20)
    assert list(stream)[-1].end.usage.generated_tokens == 5


WRONG = {
    "none": lambda key: None,
    "another": lambda key: bearer(key[:-1] + ("a" if key[-1] != "a" else "b")),
    "empty": lambda key: bearer(""),
    "another scheme": lambda key: [("authorization", f"Basic {key}")],
    "no scheme": lambda key: [("authorization", key)],
    "two": lambda key: bearer(key) + bearer(key),
    "a token where none is accepted": lambda key: bearer("eyJh.e30.c2ln"),
}


def test_whatever_is_wrong_with_credentials_the_answer_is_the_same(keyed):
    expired = add_key(keyed.path, "old", "ann", expires="2020-01-01T00:00:00+00:00")
    revoked = add_key(keyed.path, "gone", "ann")
    assert revoke_key(keyed.path, "gone")
    wrong = [make(keyed.use) for make in WRONG.values()] + [bearer(expired), bearer(revoked)]
    answers = {(*codes(failure), failure.message) for failure in (call(keyed.server, metadata=m) for m in wrong)}
    assert len(answers) == 1
    assert answers.pop()[:2] == ("UNAUTHENTICATED", "UNAUTHENTICATED")


def test_keys_are_added_and_revoked_while_the_server_runs(keyed):
    added = add_key(keyed.path, "later", "ann")
    assert call(keyed.server, metadata=bearer(added)) is None
    stream = keyed.server.generation.Generate(
        g.GenerateRequest(model="tiny", max_tokens=30, max_tokens_per_second=60.0), metadata=bearer(added), timeout=20
    )
    next(stream)
    revoke_key(keyed.path, "later")
    assert codes(call(keyed.server, metadata=bearer(added)))[0] == "UNAUTHENTICATED"
    assert call(keyed.server, metadata=bearer(keyed.use)) is None
    assert list(stream)[-1].end.usage.generated_tokens == 30


def test_a_revoked_key_is_refused_soon_without_a_look_for_each_call(keyed, monkeypatch):
    monkeypatch.setattr(watched_files, "LOOK_S", 0.05)
    assert call(keyed.server, metadata=bearer(keyed.use)) is None
    revoke_key(keyed.path, "ann-laptop")
    until(lambda: codes(call(keyed.server, metadata=bearer(keyed.use)))[0] == "UNAUTHENTICATED")


def test_a_broken_change_leaves_the_last_good_keys_and_is_logged_once(keyed, caplog):
    keyed.path.write_text("{")
    assert call(keyed.server, metadata=bearer(keyed.use)) is None
    assert call(keyed.server, metadata=bearer(keyed.use)) is None
    keyed.path.unlink()
    assert call(keyed.server, metadata=bearer(keyed.use)) is None
    assert call(keyed.server, metadata=bearer(keyed.use)) is None
    broken, gone = [record.why for record in caplog.records if "cannot be used" in record.message]
    assert ("is not a file of keys" in broken, "No such file" in gone) == (True, True)


def test_a_file_that_is_made_readable_has_changed(tmp_path):
    path = tmp_path / "keys.json"
    path.touch()
    before = signature(path)
    until(lambda: path.chmod(0o600) or signature(path) != before)


def test_refusals_are_counted(keyed):
    call(keyed.server)
    until(lambda: keyed.server.handled("ListModels", "UNAUTHENTICATED") == 1)


def test_nothing_secret_is_logged_answered_or_counted(keyed, caplog):
    caplog.set_level(logging.DEBUG)
    wrong = keyed.use[:-3] + "aaa"
    failures = [call(keyed.server, metadata=bearer(credential)) for credential in (keyed.use, wrong)]
    call(keyed.server, "/gruve.v1.ModelService/ReloadModel", bearer(keyed.use))
    text = "".join(str(vars(record)) for record in caplog.records) + str(keyed.server.metrics()) + str(failures)
    text += keyed.path.read_text()
    assert keyed.use not in text
    assert wrong not in text


def test_the_file_has_hashes_alone_and_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "keys.json"
    limits = Limits(streams=4, tokens_per_minute=1_000)
    key = add_key(
        path, "ann", "tenant", role=Role.ADMIN, weight=2.0, limits=limits, expires="2099-01-01T00:00:00+00:00"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert re.fullmatch("gruve_[a-z2-7]{26}", key)
    assert key[10:] not in path.read_text()
    identity = ApiKeys(path).identify(key)
    assert (identity.tenant, identity.role, identity.key_name) == ("tenant", Role.ADMIN, "ann")
    assert (identity.weight, identity.limits, identity.owner) == (2.0, limits, "tenant")
    assert [entry.name for entry in read_keys(path)] == ["ann"]


def test_a_key_expires_at_its_time(tmp_path):
    clock = Clock(0.0)
    key = add_key(tmp_path / "keys.json", "ann", "ann", expires="1970-01-01T00:01:00+00:00")
    keys = ApiKeys(tmp_path / "keys.json", clock=clock)
    clock.now_s = 59.9
    assert keys.identify(key) is not None
    clock.now_s = 60.0
    assert keys.identify(key) is None


def test_a_name_is_given_once_and_values_are_checked(tmp_path):
    path = tmp_path / "keys.json"
    add_key(path, "ann", "ann")
    for name, fields in [("ann", {}), ("a b", {}), ("b", {"weight": 0.0})]:
        with pytest.raises(InvalidField):
            add_key(path, name, "ann", **fields)
    assert len(read_keys(path)) == 1


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"admin"', '"root"', "keys[0].role is 'root'; must be one of use, admin"),
        ('"streams"', '"stream"', "keys[0].limits.stream is not known; must be one of streams, waiting, sessions"),
        ('"tenant"', '"owner"', "keys[0].owner is not known; must be one of name, tenant"),
        ('"tenant": "ann",', "", "keys[0].tenant is absent"),
        ('"weight": 2.0', '"weight": 0', "keys[0].weight: 0 must be above 0 and at most 1000"),
    ],
)
def test_a_fault_of_a_key_in_the_file_is_named_with_its_place(tmp_path, old, new, why):
    path = tmp_path / "keys.json"
    add_key(path, "ann", "ann", role=Role.ADMIN, weight=2.0, limits=Limits(streams=4))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CredentialsBroken, match=re.escape(why)):
        ApiKeys(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 2, "keys": []}',
        '{"version": 1, "keys": [{"name": "a"}]}',
        '{"version": 1, "keys": [5]}',
        '{"version": 1, "keys": [{"limits": 5}]}',
    ],
)
def test_a_file_that_is_none_of_keys_is_named(tmp_path, text):
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(CredentialsBroken, match=r"keys\.json"):
        ApiKeys(tmp_path / "keys.json")


# ---- tokens


class Provider:
    """An identity provider with a key of each kind."""

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
    clock = Clock(time.time())
    tokens = WebTokens(provider.path, ISSUER, AUDIENCE, clock=clock)
    token, other = provider.token(), provider.token("rsa", "RS256")
    assert tokens.identify(token) is not None
    provider.publish("rsa")
    assert tokens.identify(token) is None
    assert tokens.identify(other) is not None
    clock.now_s += 3_601
    assert tokens.identify(other) is None


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', '{"keys": [{"kty": "x"}]}']
)
def test_a_file_without_public_keys_is_refused(tmp_path, text):
    (tmp_path / "jwks.json").write_text(text)
    with pytest.raises(CredentialsBroken, match=r"jwks\.json"):
        WebTokens(tmp_path / "jwks.json", ISSUER, AUDIENCE)


def test_a_server_takes_keys_and_tokens_side_by_side(start, provider, tmp_path):
    key = add_key(tmp_path / "keys.json", "ann", "ann")
    server = start(access=AccessConfig(tmp_path / "keys.json", provider.path, ISSUER, AUDIENCE))
    assert call(server, metadata=bearer(key)) is None
    assert call(server, metadata=bearer(provider.token())) is None
    for wrong in ({"aud": "other"}, {"exp": 10**30}, {"exp": 10**400}):
        assert codes(call(server, metadata=bearer(provider.token(**wrong)))) == 2 * ("UNAUTHENTICATED",)


# ---- where it listens


@pytest.mark.parametrize(
    ("host", "lacks"),
    [("127.0.0.1", 0), ("::1", 0), ("localhost", 0), ("0.0.0.0", 2), ("::", 2), ("10.0.0.1", 2), ("example.com", 2)],
)
def test_only_loopback_needs_no_protection(host, lacks, tmp_path):
    tls, access = TlsFiles(tmp_path / "a", tmp_path / "b"), AccessConfig(tmp_path / "keys.json")
    assert len(unprotected(host, None, AccessConfig())) == lacks
    assert unprotected(host, tls, access) == []
