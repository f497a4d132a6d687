"""Who may call: keys and tokens over the wire, roles, one answer for whatever is wrong, nothing secret anywhere."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf import descriptor_pb2, empty_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gruve import watched_files
from gruve.client.errors import failure_of
from gruve.ports import TlsFiles
from gruve.serve.callers.access import METHODS, ROLES, AccessConfig
from gruve.serve.callers.api_keys import add_key, revoke_key
from gruve.serve.callers.exposure import unprotected
from gruve.serve.callers.identity import Role
from gruve.v1 import generation_pb2 as g
from gruve.v1 import model_pb2
from gruve.watched_files import signature
from serving import until
from token_issuer import AUDIENCE, ISSUER, Provider

LIST = "/gruve.v1.ModelService/ListModels"


@pytest.fixture(autouse=True)
def _looking_each_time(monkeypatch):
    monkeypatch.setattr(watched_files, "LOOK_S", 0.0)


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
    "another scheme of as many letters": lambda key: [("authorization", f"Digest {key}")],
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


def test_a_server_takes_keys_and_tokens_side_by_side(start, tmp_path):
    provider = Provider(tmp_path / "jwks.json")
    key = add_key(tmp_path / "keys.json", "ann", "ann")
    server = start(access=AccessConfig(tmp_path / "keys.json", provider.path, ISSUER, AUDIENCE))
    assert call(server, metadata=bearer(key)) is None
    assert call(server, metadata=bearer(provider.token())) is None
    for wrong in ({"aud": "other"}, {"exp": 10**30}, {"exp": 10**400}):
        assert codes(call(server, metadata=bearer(provider.token(**wrong)))) == 2 * ("UNAUTHENTICATED",)


def test_a_server_that_takes_tokens_alone_refuses_a_key(start, tmp_path):
    provider = Provider(tmp_path / "jwks.json")
    server = start(access=AccessConfig(None, provider.path, ISSUER, AUDIENCE))
    key = add_key(tmp_path / "keys.json", "ann", "ann")
    assert codes(call(server, metadata=bearer(key))) == 2 * ("UNAUTHENTICATED",)
    assert call(server, metadata=bearer(provider.token())) is None


# ---- where it listens


@pytest.mark.parametrize(
    ("host", "lacks"),
    [("127.0.0.1", 0), ("::1", 0), ("localhost", 0), ("0.0.0.0", 2), ("::", 2), ("10.0.0.1", 2), ("example.com", 2)],
)
def test_only_loopback_needs_no_protection(host, lacks, tmp_path):
    tls, access = TlsFiles(tmp_path / "a", tmp_path / "b"), AccessConfig(tmp_path / "keys.json")
    assert len(unprotected(host, None, AccessConfig())) == lacks
    assert unprotected(host, tls, access) == []
