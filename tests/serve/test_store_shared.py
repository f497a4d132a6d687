"""Several servers that share one store: one at a time uses a session, and any can continue it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

import grpc
import pytest

from gruve.sessions.store import LEASE_S
from gruve.v1 import generation_pb2 as g
from gruve.v1 import generation_pb2_grpc, session_pb2_grpc
from gruve.v1 import session_pb2 as p
from memory_store import MemoryStore
from redis_server import RedisServer
from server_process import Process, drain
from serving import HELD, PATIENCE_S, Read, broken, refusal, token, until
from session_calls import delete, fork, get, listed, rewind, seeded, stop, without


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
    """A store with slow writes, though not so slow that it counts as failing."""

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
    """A store that returns sessions only after `let` is set."""

    def __init__(self):
        super().__init__()
        self.asked, self.let = threading.Event(), threading.Event()

    def acquire(self, session_id, owner, known, now_s):
        self.asked.set()
        assert self.let.wait(PATIENCE_S)
        return super().acquire(session_id, owner, known, now_s)


def test_a_caller_that_leaves_while_a_session_is_fetched_does_not_block_others(start):
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


class Overtaken(MemoryStore):
    """A store in which another server takes `session`, if one is named, before the next write."""

    def __init__(self):
        self.session, self.now_s = "", 0.0
        super().__init__(clock=lambda: self.now_s)

    def write(self, owner, writes):
        if self.session:
            self.now_s += LEASE_S + 1
            self.acquire(self.session, "other", None, time.time())
            self.session = ""
        return super().write(owner, writes)


def test_a_rewind_that_another_server_has_overtaken_is_refused(start):
    server = start(shared=(store := Overtaken()))
    session = server.create()
    server.read(session_id=session, text="O", max_tokens=5)
    until(lambda: not server.server.persistence.behind)
    store.session = session
    assert refusal(lambda: rewind(server, session, 2)).reason == "SESSION_ELSEWHERE"
    assert server.session(session).position == 7


class Counting(MemoryStore):
    """A store that keeps the number of sessions in each write, and makes none before `let` is set."""

    def __init__(self):
        super().__init__()
        self.writes = []
        self.let = threading.Event()

    def write(self, owner, writes):
        assert self.let.wait(PATIENCE_S)
        self.writes.append(len(writes))
        return super().write(owner, writes)


def test_what_many_streams_depend_on_is_written_together(start):
    server = start(shared=(store := Counting()), slots=32)
    asked = {"new_session": g.NewSession(model="tiny"), "text": "O", "max_tokens": 100}
    calls = [server.generate(max_tokens_per_second=HELD, **asked) for _ in range(24)]
    until(lambda: server.host("tiny").engine.load == 24)
    store.let.set()
    for call in calls:
        token(call)
    assert sum(store.writes[:2]) >= 24  # a session may be in both
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
        # Messages sent before the stop may still arrive, but none from after it.
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
