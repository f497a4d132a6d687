"""Tenants: each has its sessions to itself, and another's id answers as one that nobody has."""

from __future__ import annotations

from types import SimpleNamespace

import grpc
import pytest

from gruve.client.errors import failure_of
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from gruve.serve.callers.identity import Role
from gruve.v1 import generation_pb2 as g
from gruve.v1 import session_pb2 as s
from memory_store import MemoryStore

KEY = b"0123456789abcdef"


class Caller:
    """What one caller does at a server."""

    def __init__(self, server, key, *more):
        self._server = server
        self.metadata = [("authorization", f"Bearer {key}"), *more]

    def session(self, rpc, **fields):
        request = getattr(s, f"{rpc}Request")(**fields)
        return getattr(self._server.sessions, rpc)(request, metadata=self.metadata, timeout=20)

    def create(self):
        return self.session("CreateSession", session=g.NewSession(model="tiny")).session.id

    def listed(self):
        return [session.id for session in self.session("ListSessions").sessions]

    def generate(self, **fields):
        request = g.GenerateRequest(max_tokens=4, **fields)
        return list(self._server.generation.Generate(request, metadata=self.metadata, timeout=20))


@pytest.fixture(params=["memory", "store"])
def two(request, start, tmp_path):
    """A server with two tenants, one with two keys, and an admin."""
    path = tmp_path / "keys.json"
    keys = {
        "ann": add_key(path, "ann", "ann"),
        "ann2": add_key(path, "ann2", "ann"),
        "bob": add_key(path, "bob", "bob"),
        "ops": add_key(path, "ops", "ops", role=Role.ADMIN),
    }
    shared = MemoryStore() if request.param == "store" else None
    server = start(access=AccessConfig(keys=path), session_key=KEY, shared=shared)
    callers = {name: Caller(server, key) for name, key in keys.items()}
    return SimpleNamespace(server=server, keys=keys, **callers)


USES = {
    "get": lambda caller, i: caller.session("GetSession", session_id=i),
    "delete": lambda caller, i: caller.session("DeleteSession", session_id=i),
    "fork": lambda caller, i: caller.session("ForkSession", session_id=i, branches=[s.ForkBranch()]),
    "rewind": lambda caller, i: caller.session("RewindSession", session_id=i, to_position=1),
    "export": lambda caller, i: caller.session("ExportSession", session_id=i),
    "generate": lambda caller, i: caller.generate(session_id=i),
}


def refused(use, caller, session_id):
    """How a use of an id is refused, without the id itself."""
    with pytest.raises(grpc.RpcError) as error:
        use(caller, session_id)
    failure = failure_of(error.value)
    assert failure.metadata == {}
    return failure.code, failure.reason, failure.message.replace(session_id, "ID")


@pytest.mark.parametrize("use", USES)
def test_another_tenants_id_answers_as_an_unknown_one(two, use):
    theirs = two.ann.create()
    unknown = theirs[:-1] + ("a" if theirs[-1] != "a" else "b")
    answers = {refused(USES[use], two.bob, session_id) for session_id in (theirs, unknown)}
    assert len(answers) == 1
    assert answers.pop()[:2] == (grpc.StatusCode.NOT_FOUND, "SESSION_UNKNOWN")
    assert two.ann.session("GetSession", session_id=theirs).session.position == 1


def test_another_tenants_id_is_unknown_while_it_streams_and_after_it_is_gone(two):
    theirs = two.ann.create()
    stream = two.server.generation.Generate(
        g.GenerateRequest(session_id=theirs, max_tokens=30, max_tokens_per_second=60.0), metadata=two.ann.metadata
    )
    next(stream)
    while_used = refused(USES["generate"], two.bob, theirs)
    list(stream)
    two.ann.session("DeleteSession", session_id=theirs)
    assert while_used == refused(USES["generate"], two.bob, theirs)
    assert while_used[1] == "SESSION_UNKNOWN"
    assert refused(USES["get"], two.ann, theirs)[1] == "SESSION_EXPIRED"


def test_everybody_lists_their_own(two):
    ann, bob = {two.ann.create(), two.ann2.create()}, {two.bob.create()}
    assert set(two.ann.listed()) == set(two.ann2.listed()) == ann
    assert set(two.bob.listed()) == bob
    assert two.ops.listed() == []


def test_keys_of_one_tenant_share_its_sessions(two):
    assert two.ann2.generate(session_id=two.ann.create())[-1].end.usage.generated_tokens == 4


def test_a_generation_and_a_fork_make_sessions_of_the_caller(two):
    made = two.ann.generate(new_session=g.NewSession(model="tiny"))[0].start.session_id
    (copy,) = two.ann.session("ForkSession", session_id=made, branches=[s.ForkBranch()]).sessions
    assert set(two.ann.listed()) == {made, copy.id}
    assert two.bob.listed() == []


def test_an_imported_session_belongs_to_its_importer(two):
    session_id = two.ann.create()
    two.ann.generate(session_id=session_id)
    blob = two.ann.session("ExportSession", session_id=session_id).blob
    assert b"ann" not in blob
    copy = two.bob.session("ImportSession", blob=blob).session
    assert (copy.position, two.bob.listed()) == (5, [copy.id])
    assert refused(USES["get"], two.ann, copy.id)[1] == "SESSION_UNKNOWN"


def test_an_admin_uses_the_sessions_of_a_tenant_that_it_names(two):
    session_id = two.ann.create()
    assert refused(USES["get"], two.ops, session_id)[1] == "SESSION_UNKNOWN"
    for_ann = Caller(two.server, two.keys["ops"], ("gruve-tenant", "ann"))
    assert for_ann.listed() == [session_id]
    for_ann.session("DeleteSession", session_id=session_id)
    assert two.ann.listed() == []


def test_nobody_else_names_another_tenant(two):
    for named in ("ann", "ops", "", "nobody"):
        with pytest.raises(grpc.RpcError) as error:
            Caller(two.server, two.keys["bob"], ("gruve-tenant", named)).listed()
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert f"gruve-tenant is {named!r}; " in error.value.details()
    assert Caller(two.server, two.keys["bob"], ("gruve-tenant", "bob")).listed() == []


def test_an_admin_names_one_tenant_as_tenants_are_named(two):
    for named in ([""], ["x" * 129], ["ann", "bob"]):
        with pytest.raises(grpc.RpcError) as error:
            Caller(two.server, two.keys["ops"], *[("gruve-tenant", tenant) for tenant in named]).listed()
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "must be one name of 1 to 128 characters" in error.value.details()


def test_sessions_stay_with_their_tenant_on_another_server(start, tmp_path):
    path, shared = tmp_path / "keys.json", MemoryStore()
    ann, bob = add_key(path, "ann", "ann"), add_key(path, "bob", "bob")
    servers = [start(access=AccessConfig(keys=path), shared=shared) for _ in range(2)]
    session_id = Caller(servers[0], ann).generate(new_session=g.NewSession(model="tiny"))[0].start.session_id
    assert Caller(servers[1], ann).listed() == [session_id]
    assert Caller(servers[1], ann).generate(session_id=session_id)[-1].end.usage.generated_tokens == 4
    assert Caller(servers[1], bob).listed() == []
    assert refused(USES["get"], Caller(servers[1], bob), session_id)[1] == "SESSION_UNKNOWN"


def test_sessions_made_without_authentication_are_those_of_the_tenant_default(start, tmp_path):
    path, shared = tmp_path / "keys.json", MemoryStore()
    key = add_key(path, "old", "default")
    session_id = start(shared=shared).create()
    keyed = start(access=AccessConfig(keys=path), shared=shared)
    assert Caller(keyed, key).listed() == [session_id]
    assert Caller(keyed, key).session("GetSession", session_id=session_id).session.position == 1
