"""Sessions that outlive memory, connections and servers: every stream is what it would have been, left alone."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import grpc
import pytest
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gruve.errors import StoreUnavailable
from gruve.sessions.persistence import writer
from gruve.sessions.store.memory import MemoryStore
from gruve.sessions.table import SessionsConfig
from gruve.v1 import generation_pb2 as g
from gruve.v1 import generation_pb2_grpc, session_pb2_grpc
from gruve.v1 import sampling_pb2 as s
from gruve.v1 import session_pb2 as p
from moving import fork, rewind, seeded, stop, without
from redis_server import RedisServer
from server_process import Process, drain
from serving import HELD, PATIENCE_S, Read, broken, first, refusal, token, until
from session_calls import Clock, delete, get, listed


def store_health(server):
    request = health_pb2.HealthCheckRequest(service="gruve.store")
    return health_pb2_grpc.HealthStub(server.channel).Check(request).status


def everything(server, session):
    """All that is said of a session, but where it is and when it was used."""
    page = get(server, session)
    for field in ("location", "update_time", "expire_time", "durable_position"):
        page.session.ClearField(field)
    return page


@pytest.fixture
def sqlite(tmp_path):
    return f"sqlite:{tmp_path}/sessions.db"


def test_everything_of_a_session_survives_a_restart(start, sqlite):
    server = start(store=sqlite)
    session = server.create()
    server.read(session_id=session, generation_id="a", text="O", max_tokens=700, ignore_eos=True, sampling=seeded(1))
    rewind(server, session, 600, seed=9)
    server.read(session_id=session, generation_id="b", text="And", max_tokens=5, stop=["zz"])
    before = everything(server, session)
    (branch,) = fork(server, session, 9)
    stop(server)
    server = start(store=sqlite)
    assert server.session(session).location == p.SESSION_LOCATION_STORE
    assert everything(server, session) == before
    assert set(next(listed(server))) == {session, branch.id}
    again = server.read(session_id=session, generation_id="b")
    assert again.end.next_position == before.session.position
    assert server.session(session).location == p.SESSION_LOCATION_MEMORY
    assert (
        server.read(session_id=session, max_tokens=9).tokens == server.read(session_id=branch.id, max_tokens=9).tokens
    )


def test_who_has_heard_the_end_of_a_generation_finds_all_of_it_in_the_store(start):
    store = MemoryStore()
    store.shared = False  # so that nothing is written sooner because somebody may wait for a lease
    server = start(shared=store)
    session = server.create()
    for tokens in (6, 17, 40):
        asked = {"max_tokens": tokens, "max_tokens_per_second": 500.0, "ignore_eos": True}
        end = server.read(session_id=session, **asked).end
        assert store.read(session, time.time()).summary.position == end.next_position


def test_a_killed_servers_streams_go_on_bit_for_bit_after_its_restart(tiny_repository, start, sqlite):
    plain, heads, rests = start(slots=32), [], []
    asked = [{"text": "O" * (1 + i), "max_tokens": 400, "ignore_eos": True, "sampling": seeded(i)} for i in range(8)]
    with Process(tiny_repository, "--store", sqlite) as server, server.connect() as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        new = g.NewSession(model="tiny")
        calls = [stub.Generate(g.GenerateRequest(new_session=new, max_tokens_per_second=400.0, **a)) for a in asked]
        heads = [[*first(call, 1), *(token(call) for _ in range(3 + i))] for i, call in enumerate(calls)]
        server.signal(signal.SIGKILL)
        heads = [[*head, *broken(lambda: call)[0]] for head, call in zip(heads, calls, strict=True)]  # noqa: B023
    with Process(tiny_repository, "--store", sqlite) as server, server.connect() as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        for head, a in zip(heads, asked, strict=True):
            here = {"session_id": head[0].start.session_id, "generation_id": head[0].start.generation_id}
            at = head[-1].position + len(head[-1].token_ids)
            rests.append(list(stub.Generate(g.GenerateRequest(from_position=at, **here, **a))))
    for head, rest, a in zip(heads, rests, asked, strict=True):
        assert Read([*head, *rest]).tokens == plain.read(**a).tokens


def test_sessions_leave_memory_for_the_store_and_come_back_as_they_were(start, sqlite, server):
    small = start(store=sqlite, sessions=SessionsConfig(budget_bytes=30_000), slots=32)
    asked = {"text": "O", "max_tokens": 20}
    sessions = [small.create() for _ in range(60)]
    for i, session in enumerate(sessions):
        small.read(session_id=session, sampling=seeded(i), **asked)
    until(lambda: len(small.server.table) < 30)
    assert small.metric("gruve_session_moves_total", reason="evicted") > 20
    for i, session in enumerate(sessions):
        twin = server.create()
        server.read(session_id=twin, sampling=seeded(i), **asked)
        assert small.read(session_id=session, max_tokens=9).tokens == server.read(session_id=twin, max_tokens=9).tokens
    assert small.metric("gruve_session_memory_bytes") <= 30_000
    assert small.metric("gruve_session_moves_total", reason="returned") > 20
    assert [i for page in listed(small, page_size=7) for i in page] == sessions[::-1]


def test_a_stored_session_expires_and_a_deleted_one_is_gone(start, sqlite):
    clock = Clock()
    server = start(store=sqlite, clock=clock)
    kept, brief, deleted = (server.create(idle_ttl=duration_pb2.Duration(seconds=ttl)) for ttl in (90, 10, 90))
    delete(server, deleted)
    stop(server)
    clock.now_s += 10
    server = start(store=sqlite, clock=clock)
    assert [i for page in listed(server) for i in page] == [kept]
    for gone in (brief, deleted):
        assert refusal(lambda: server.generate(session_id=gone)).reason == "SESSION_EXPIRED"  # noqa: B023
        assert refusal(lambda: get(server, gone)).reason == "SESSION_EXPIRED"  # noqa: B023
    until(lambda: server.metric("gruve_sessions", where="store") == 1)


def test_a_model_that_is_gone_leaves_its_sessions_to_be_read(start, sqlite, repository, tiny_repository):
    server = start(store=sqlite, models=repository)
    session = server.create("lstm")
    server.read(session_id=session, max_tokens=3, ignore_eos=True, sampling=s.SamplingParameters(top_k=5))
    stop(server)
    server = start(store=sqlite, models=tiny_repository)
    page = get(server, session)
    assert (page.session.model, len(page.token_ids), page.text) == ("lstm", 4, "")
    assert refusal(lambda: server.generate(session_id=session)).reason == "MODEL_UNKNOWN"


def fill(server):
    """The disk is full."""
    server.server.persistence.store._writer.execute("PRAGMA max_page_count = 1")


def drain_disk(server):
    server.server.persistence.store._writer.execute("PRAGMA max_page_count = 1000000")


class Lock:
    """Another program that locks a database."""

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
def test_a_store_that_cannot_write_stops_no_stream_and_is_told_of(start, sqlite, server, spoil):
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
    small.server.persistence.store._writer.execute("PRAGMA cache_size = 1")  # it would not look into the file again
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


def test_a_session_is_used_on_one_server_at_a_time_and_on_any(start):
    store = MemoryStore()
    one, two = start(shared=store), start(shared=store)
    session = one.create()
    asked = {"session_id": session, "generation_id": "a", "text": "O", "max_tokens": 12, "sampling": seeded(4)}
    call = one.generate(max_tokens_per_second=HELD, **asked)
    begun = token(call)
    failure = refusal(lambda: two.generate(**asked))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "SESSION_ELSEWHERE")
    assert failure.retry_after_s is not None
    seen = two.session(session)
    assert (seen.location, seen.in_use) == (p.SESSION_LOCATION_ELSEWHERE, True)
    assert refusal(lambda: delete(two, session)).reason == "SESSION_ELSEWHERE"
    call.cancel()
    until(lambda: not two.session(session).in_use)
    rest = two.read(from_position=begun.position + 1, **asked)
    assert list(begun.token_ids) + rest.tokens == one.read(model="tiny", **without(asked, "session_id")).tokens
    until(lambda: not one.session(session).in_use)
    assert one.session(session).position == 14
    assert one.read(session_id=session, max_tokens=3).end.next_position == 17


class Slow(MemoryStore):
    """Takes its time to write, though not so long that it would be called failing."""

    def write(self, owner, writes):
        time.sleep(0.4)
        return super().write(owner, writes)


def test_a_new_session_is_known_to_every_server_however_slow_the_store(start):
    store = Slow()
    one, two = start(shared=store), start(shared=store)
    session = one.create()
    assert two.session(session).position == 1
    (branch,) = fork(one, session, 3)
    assert two.session(branch.id).position == 1


class Held(MemoryStore):
    """Takes sessions out only once it is let."""

    def __init__(self):
        super().__init__()
        self.asked, self.let = threading.Event(), threading.Event()

    def acquire(self, session_id, owner, known, now_s):
        self.asked.set()
        assert self.let.wait(PATIENCE_S)
        return super().acquire(session_id, owner, known, now_s)


def test_a_caller_who_leaves_while_a_session_is_fetched_keeps_it_from_nobody(start):
    store = Held()
    one, two = start(shared=store), start(shared=store)
    session = one.create()
    call = two.generate(session_id=session, text="O", max_tokens=12)
    assert store.asked.wait(PATIENCE_S)
    call.cancel()
    until(lambda: two.handled("Generate", "CANCELLED"))
    store.let.set()
    until(lambda: two.server.persistence.moves["returned"])
    until(lambda: not two.server.persistence.behind)
    assert one.read(session_id=session, text="O", max_tokens=12).end.next_position == 14
    assert two.session(session).position == 14


class Counting(MemoryStore):
    """Remembers how many sessions each write was for."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def write(self, owner, writes):
        self.writes.append(len(writes))
        return super().write(owner, writes)


def test_what_many_streams_depend_on_is_written_together(start, monkeypatch):
    monkeypatch.setattr(writer, "PAUSE_S", 0.15)
    monkeypatch.setattr(writer, "PAUSE_PER_SESSION_S", 0.15)
    server = start(shared=(store := Counting()), slots=32)
    asked = {"new_session": g.NewSession(model="tiny"), "text": "O", "max_tokens": 100}
    calls = [server.generate(max_tokens_per_second=HELD, **asked) for _ in range(24)]
    for call in calls:
        token(call)
    assert max(store.writes) >= 12
    for call in calls:
        call.cancel()


def test_sessions_of_all_servers_are_listed_once(start):
    store = MemoryStore()
    one, two = start(shared=store), start(shared=store)
    sessions = [(one, two)[i % 2].create() for i in range(9)]
    one.read(session_id=sessions[3], max_tokens=1)
    for server in (one, two):
        assert [i for page in listed(server, page_size=2) for i in page] == sessions[::-1]


def test_a_server_that_was_overtaken_sends_no_further_token_and_writes_nothing(start):
    store = MemoryStore(clock=(clock := Ticks()))
    one, two = start(shared=store), start(shared=store)
    session = one.create()
    asked = {"session_id": session, "generation_id": "a", "text": "O", "max_tokens": 40, "sampling": seeded(4)}
    call = one.generate(max_tokens_per_second=20.0, **asked)
    token(call)
    clock.now += 11.0
    rest = two.read(**asked)
    until(lambda: one.server.persistence.moves["lost"] == 1)
    failure = refusal(lambda: call)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "SESSION_ELSEWHERE")
    assert get(one, session).token_ids[2:] == rest.tokens
    assert store.read(session, time.time()).summary.position == 42


class Ticks:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.slow
def test_a_server_that_was_stopped_for_longer_than_its_lease_sends_nothing_more(tiny_repository, redis_server, server):
    asked = {"generation_id": "a", "text": "O", "max_tokens": 300, "ignore_eos": True, "sampling": seeded(6)}
    flags = ("--store", redis_server.url)
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(Process(tiny_repository, *flags)) for _ in range(2))
        here, there = (stack.enter_context(each.connect()) for each in (one, two))
        stub, other = (generation_pb2_grpc.GenerationServiceStub(channel) for channel in (here, there))
        new = g.NewSession(model="tiny")
        call = stub.Generate(g.GenerateRequest(new_session=new, max_tokens_per_second=50.0, **asked))
        head = [next(call), *(token(call) for _ in range(10))]
        session = head[0].start.session_id
        one.signal(signal.SIGSTOP)
        resume = g.GenerateRequest(session_id=session, **asked)
        rest = None
        while rest is None:
            messages, failure = broken(lambda: other.Generate(resume))
            assert failure is None or failure.reason == "SESSION_ELSEWHERE"
            rest = Read(messages) if failure is None else time.sleep(0.5)
        one.signal(signal.SIGCONT)
        late, failure = broken(lambda: call)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "SESSION_ELSEWHERE")
        assert rest.tokens == server.read(**asked).tokens
        # What was on its way before the stop may come; nothing that was made after it.
        assert sum(len(message.token_ids) for message in [*head, *late]) < 40
        sessions = session_pb2_grpc.SessionServiceStub(here)
        page = sessions.GetSession(p.GetSessionRequest(session_id=session))
        assert list(page.token_ids[2:]) == rest.tokens


def test_a_server_that_ends_hands_its_streams_over_at_once(start):
    store = MemoryStore()
    one, two = start(shared=store, drain_s=3_600.0), start(shared=store)
    session = one.create()
    asked = {"session_id": session, "generation_id": "a", "max_tokens": 9, "sampling": seeded(4)}
    call = one.generate(max_tokens_per_second=HELD, **asked)
    begun = token(call)
    drain(one)
    one.close()
    messages, failure = broken(lambda: call)
    assert (failure.reason, messages[-1].end.finish_reason) == ("HANDED_OVER", g.FINISH_REASON_HANDED_OVER)
    rest = two.read(from_position=int(failure.metadata["next_position"]), **asked)
    assert list(begun.token_ids) + rest.tokens == two.read(**asked).tokens


def test_servers_share_a_redis_and_go_on_when_it_restarts(start, tmp_path_factory, server):
    redis = RedisServer(tmp_path_factory.mktemp("r"))
    one, two = start(store=redis.url), start(store=redis.url)
    session = one.create()
    asked = {"generation_id": "a", "text": "O", "max_tokens": 2_000, "ignore_eos": True, "sampling": seeded(6)}
    call = one.generate(session_id=session, max_tokens_per_second=2_000.0, **asked)
    messages = [token(call)]
    redis.stop()
    messages += [token(call) for _ in range(30)]
    until(lambda: one.server.persistence.failing)
    assert refusal(lambda: two.generate(session_id=session)).reason == "STORE_UNAVAILABLE"
    redis.start()
    messages += call
    whole = server.read(**asked)
    assert Read(messages).tokens == whole.tokens
    until(lambda: not one.session(session).HasField("durable_position"))
    until(lambda: not two.session(session).in_use)
    assert two.read(session_id=session, generation_id="a").tokens == whole.tokens
    for each in (one, two):
        stop(each)
    redis.stop()


def test_the_store_of_the_command_line_is_a_file_where_a_user_expects_it(tiny_repository, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with Process(tiny_repository, "--store", "sqlite") as server, server.connect() as channel:
        stub = session_pb2_grpc.SessionServiceStub(channel)
        session = stub.CreateSession(p.CreateSessionRequest(session=g.NewSession(model="tiny"))).session
        assert session.idle_ttl.seconds == 30 * 86_400
        with Process(tiny_repository, "--store", "sqlite") as second:
            code, out, err = second.end()
        assert (code, out) == (1, "")
        assert "in use by another server" in err
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
    assert (tmp_path / "gruve" / "sessions.db").stat().st_mode & 0o777 == 0o600


def test_a_server_whose_redis_is_not_there_says_which_and_why_and_ends(tiny_repository):
    with socket.socket() as nobody:  # has the port, and does not listen
        nobody.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{nobody.getsockname()[1]}"
        command = [sys.executable, "-m", "gruve.cli", "serve", "--models", str(tiny_repository), "--port", "0"]
        command += ["--metrics-port", "0", "--store", f"redis://:secret@{where}/3"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"gruve: the session store does not answer or refuses the call: redis://{where}/3: ")
    assert "refused" in ended.stderr
    assert "secret" not in ended.stderr
