"""A store that fails while streams run: no stream stops, clients are told, and nothing called durable is lost."""

from __future__ import annotations

import sqlite3

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gruve.errors import StoreUnavailable
from gruve.sessions.table import SessionsConfig
from gruve.v1 import generation_pb2 as g
from serving import Read, broken, refusal, token, until
from session_calls import get, seeded, stop


def store_health(server):
    request = health_pb2.HealthCheckRequest(service="gruve.store")
    return health_pb2_grpc.HealthStub(server.channel).Check(request).status


def fill(server):
    """Simulates a full disk."""
    server.server.persistence.store._writer.execute("PRAGMA max_page_count = 1")


def drain_disk(server):
    server.server.persistence.store._writer.execute("PRAGMA max_page_count = 1000000")


class Lock:
    """Simulates another program that locks the database."""

    def __init__(self, server) -> None:
        self._db = sqlite3.connect(server.server.persistence.store._path, isolation_level=None, check_same_thread=False)
        self._db.execute("BEGIN IMMEDIATE")

    def __call__(self, server) -> None:
        self._db.close()


def make_read_only(server):
    server.server.persistence.store._writer.execute("PRAGMA query_only = 1")
    return lambda server: server.server.persistence.store._writer.execute("PRAGMA query_only = 0")


def fill_for_a_while(server):
    fill(server)
    return drain_disk


@pytest.mark.parametrize("spoil", [fill_for_a_while, Lock, make_read_only])
def test_a_store_that_cannot_write_is_reported_and_stops_no_stream(start, sqlite, server, spoil):
    small = start(store=sqlite)
    session = small.create()
    assert store_health(small) == health_pb2.HealthCheckResponse.SERVING
    asked = {"text": "O", "max_tokens": 3_000, "ignore_eos": True, "sampling": seeded(1)}
    call = small.generate(session_id=session, generation_id="a", **asked)
    messages = [token(call)]
    heal = spoil(small)
    messages += call
    whole = server.read(**asked)
    assert Read(messages).tokens == whole.tokens
    assert messages[-1].HasField("durable_position")
    durable = messages[-1].durable_position
    until(lambda: store_health(small) == health_pb2.HealthCheckResponse.NOT_SERVING)
    assert small.metric("gruve_store_errors_total", operation="write") >= 1
    new = small.read(new_session=g.NewSession(model="tiny"), max_tokens=3)
    assert new.messages[0].durable_position == 0
    assert small.session(session).durable_position >= durable
    heal(small)
    until(lambda: store_health(small) == health_pb2.HealthCheckResponse.SERVING)
    until(lambda: not small.session(session).HasField("durable_position"))
    assert small.session(new.start.session_id).position == 4
    stop(small)
    again = start(store=sqlite)
    assert get(again, session).token_ids[2:] == whole.tokens
    assert again.read(session_id=session, generation_id="a").tokens == whole.tokens


def test_a_file_that_is_spoilt_while_it_is_used_stops_no_stream(start, sqlite, server):
    small = start(store=sqlite)
    asked = {"text": "O", "max_tokens": 3_000, "ignore_eos": True, "sampling": seeded(1)}
    call = small.generate(new_session=g.NewSession(model="tiny"), **asked)
    messages = [token(call)]
    path = small.server.persistence.store._path
    small.server.persistence.store._writer.execute("PRAGMA cache_size = 1")  # otherwise it does not read the file again
    for name in (path.name, f"{path.name}-wal"):
        spoilt = path.with_name(name)
        spoilt.write_bytes(b"\xff" * spoilt.stat().st_size)
    messages += call
    assert Read(messages).tokens == server.read(**asked).tokens
    until(lambda: store_health(small) == health_pb2.HealthCheckResponse.NOT_SERVING)
    stop(small)


def test_what_was_called_durable_is_there_when_the_server_dies_with_a_full_disk(start, sqlite):
    server = start(store=sqlite)
    session = server.create()
    server.read(session_id=session, max_tokens=300, ignore_eos=True)
    fill(server)
    messages = list(server.generate(session_id=session, max_tokens=2_000, ignore_eos=True))
    durable = max(m.durable_position for m in messages if m.HasField("durable_position"))
    tokens = get(server, session, page_size=65_536).token_ids
    stop(server)
    again = start(store=sqlite)
    kept = get(again, session, page_size=65_536).token_ids
    assert 301 <= durable + 1 <= len(kept) < len(tokens)
    assert kept == tokens[: len(kept)]


def test_while_the_store_is_down_memory_takes_in_new_sessions_up_to_a_bound(start, sqlite):
    server = start(store=sqlite, sessions=SessionsConfig(budget_bytes=5_000))
    fill(server)
    until(lambda: isinstance(broken(server.create)[1], object) and server.server.persistence.failing)
    created = [server.create() for _ in range(5)]
    with pytest.raises(grpc.RpcError):
        created += [server.create() for _ in range(40)]
    failure = refusal(server.create)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert failure.retry_after_s is not None
    assert server.read(session_id=created[0], max_tokens=2).end.next_position == 3
    drain_disk(server)
    until(lambda: not server.server.persistence.failing)


def test_a_session_that_only_a_failing_store_has_is_unavailable(start, sqlite, monkeypatch):
    server = start(store=sqlite)
    session = server.create()
    stop(server)
    server = start(store=sqlite)

    def fail(*_):
        raise StoreUnavailable("the store is gone: s3cret")

    monkeypatch.setattr(server.server.persistence.store, "read", fail)
    for ask in (lambda: server.generate(session_id=session), lambda: get(server, session)):
        failure = refusal(ask)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
