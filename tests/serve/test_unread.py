"""A tenant whose requests are refused too often has more of them refused unread, and costs others little."""

from __future__ import annotations

import asyncio
import logging
import time

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruve.errors import LimitExceeded
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from gruve.serve.callers.identity import Limits
from gruve.serve.calls import access_log, refusals
from gruve.serve.calls.interceptor import Interceptor
from gruve.serve.calls.reading import MEMORY_S, TURNS, Reading, TurnTimes
from gruve.serve.calls.refusals import BURST, MAX_TENANTS, PER_SECOND, Refusals
from gruve.serve.metrics import Metrics
from gruve.v1 import generation_pb2 as g
from serving import broken, read, refusal, until

GENERATE = "/gruve.v1.GenerationService/Generate"


class Context:
    """gRPC's context of a call, as far as a call is refused unread by it."""

    def __init__(self, left_s: float | None = None, peer: str = "ipv4:10.0.0.1:4711") -> None:
        self._left_s, self._peer = left_s, peer

    def time_remaining(self) -> float | None:
        return self._left_s

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return self._peer


def counted(metrics: Metrics, method: str, code: str) -> float | None:
    labels = {"grpc_service": "gruve.v1.GenerationService", "grpc_method": method, "grpc_code": code}
    kind = {"grpc_type": "server_stream" if method == "Generate" else "unary"}
    return metrics.registry.get_sample_value("grpc_server_handled_total", labels | kind)


def outcome(call) -> str:
    """The finish reason of a generation, or the limit by which it was refused."""
    messages, failure = broken(lambda: call)
    return failure.metadata["limit"] if failure else read(messages).reason


def test_a_burst_of_refusals_is_given_in_full_and_then_so_many_a_second():
    seen = Refusals()
    for _ in range(BURST):
        assert not seen.are_too_many("a", 0.0)
        seen.add("a", 0.0)
    assert seen.are_too_many("a", 0.0)
    assert not seen.are_too_many("b", 0.0)
    given = 0
    for tenth in range(1, 101):
        while not seen.are_too_many("a", tenth / 10):
            seen.add("a", tenth / 10)
            given += 1
    assert 10 * PER_SECOND - 1 <= given <= 10 * PER_SECOND  # the bucket's rounding may withhold one
    assert not seen.are_too_many("a", 1_000.0)
    assert not seen


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.0, 0.5), st.integers(1, 60)), max_size=40))
def test_the_buckets_are_those_of_a_plain_simulation(steps: list[tuple[str, float, int]]) -> None:
    seen, now_s = Refusals(), 0.0
    spent = {"a": 0.0, "b": 0.0}
    for tenant, wait_s, count in steps:
        now_s += wait_s
        spent = {name: max(0.0, value - PER_SECOND * wait_s) for name, value in spent.items()}
        for _ in range(count):
            seen.add(tenant, now_s)
        spent[tenant] = min(BURST, spent[tenant] + count)
        for name, value in spent.items():
            if abs(value - (BURST - 1)) > 1e-6:
                assert seen.are_too_many(name, now_s) == (value > BURST - 1)


def test_requests_that_are_read_side_by_side_take_from_a_half_empty_bucket():
    seen = Refusals()
    assert not seen.begin_reading("a", 0.0)
    for _ in range(BURST - 2):
        seen.add("a", 0.0)
    assert not seen.begin_reading("b", 0.0)
    assert seen.begin_reading("a", 0.0)
    assert not seen.are_too_many("a", 0.0)
    assert seen.begin_reading("a", 0.0)
    assert seen.are_too_many("a", 0.0)
    assert not seen.are_too_many("b", 0.0)
    seen.end_reading("a")
    assert not seen.are_too_many("a", 0.0)
    seen.add("a", 0.0)
    assert seen.are_too_many("a", 0.0), "the other one is still read"
    seen.end_reading("a")
    assert not seen._reading, "a tenant whose requests are read takes no memory"


def test_refusals_beyond_an_empty_bucket_do_not_close_it_for_longer():
    seen = Refusals()
    for _ in range(3 * BURST):
        seen.add("a", 0.0)
    assert seen.are_too_many("a", 0.0)
    assert not seen.are_too_many("a", 1.5 / PER_SECOND)


def test_tenants_are_forgotten_when_there_are_too_many_or_nothing_is_left():
    seen = Refusals()
    for n in range(2 * MAX_TENANTS):
        seen.add(f"t{n}", 0.0)
    assert len(seen) == MAX_TENANTS
    assert not seen.are_too_many(f"t{2 * MAX_TENANTS - 1}", 100.0)
    assert len(seen) == MAX_TENANTS - 1


def test_the_tenant_whose_refusals_are_the_oldest_is_forgotten_first():
    seen = Refusals()
    for n in range(MAX_TENANTS):
        seen.add(f"t{n}", 0.0)
    for _ in range(BURST):
        seen.add("t0", 0.0)
    seen.add("another", 0.0)
    assert seen.are_too_many("t0", 0.0)


def test_a_call_must_have_some_turns_of_the_event_loop_left():
    turns = TurnTimes()
    assert turns.least_left_s(0.0) == 0.0
    for _ in range(100):
        turns.record(0.010, 5.0)
    assert turns.least_left_s(5.0) == pytest.approx(TURNS * 0.010, rel=1e-3)
    assert turns.least_left_s(5.0 + MEMORY_S) == pytest.approx(TURNS * 0.005, rel=1e-3)
    for _ in range(100):
        turns.record(0.001, 6.0)
    assert turns.least_left_s(6.0) == pytest.approx(TURNS * 0.001, rel=1e-2)


def test_a_request_takes_from_the_bucket_until_it_is_admitted_and_gives_back_once():
    seen = Refusals()
    for _ in range(BURST - 1):
        seen.add("a", 0.0)
    reading = Reading(0.0, seen, "a" if seen.begin_reading("a", 0.0) else "")
    assert seen.are_too_many("a", 0.0)
    reading.end()
    reading.end()
    assert not seen.are_too_many("a", 0.0)
    assert seen.begin_reading("a", 0.0)
    assert seen.are_too_many("a", 0.0)


def test_a_call_whose_deadline_comes_before_it_can_be_read_is_not_read():
    interceptor = Interceptor(Metrics())
    interceptor._turns.record(10.0, time.monotonic())
    left_s = interceptor._turns.least_left_s(time.monotonic())
    for factor, refused in [(0.5, True), (2.0, False)]:
        assert (interceptor.refuse_unread(GENERATE, Context(factor * left_s)) is not None) == refused
    assert interceptor.refuse_unread(GENERATE, Context(None)) is None


def test_a_call_whose_deadline_is_over_is_not_read():
    interceptor = Interceptor(metrics := Metrics())
    overdue = interceptor.refuse_unread(GENERATE, Context(0.0))
    assert overdue is not None
    assert overdue.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert counted(metrics, "Generate", "DEADLINE_EXCEEDED") == 1
    for context, method in [
        (Context(0.5), GENERATE),
        (Context(None), GENERATE),
        (Context(0.0), "/gruve.v1.GenerationService/Control"),
        (Context(0.0), "/grpc.health.v1.Health/Check"),
    ]:
        assert interceptor.refuse_unread(method, context) is None
    interceptor.draining = True
    assert interceptor.refuse_unread(GENERATE, Context(0.0)) is None


async def test_what_the_access_log_lacks_of_unread_calls_is_written_when_the_server_ends():
    lines = []
    interceptor = Interceptor(Metrics(), log_call=lines.append)
    interceptor.refuse_unread(GENERATE, Context(0.0))
    interceptor.write_unread()
    assert lines == [{"method": GENERATE[1:], "code": "DEADLINE_EXCEEDED", "unread": 1}]


def test_a_flood_is_refused_unread_over_the_wire_and_other_tenants_are_served(start, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(refusals, "PER_SECOND", 0)
    keys = tmp_path / "keys.json"
    flood, calm = (
        {"metadata": [("authorization", f"Bearer {key}")], "timeout": 20}
        for key in (
            add_key(keys, "flood", "flood", limits=Limits(tokens_per_minute=1)),
            add_key(keys, "calm", "calm"),
        )
    )
    server = start(access=AccessConfig(keys=keys))
    request = g.GenerateRequest(model="tiny", max_tokens=2)

    def limit():
        return refusal(lambda: server.generation.Generate(request, **flood)).metadata["limit"]

    assert [limit() for _ in range(BURST + 3)] == BURST * ["tokens_per_minute"] + 3 * ["refusals"]
    unread = refusal(lambda: server.generation.Score(g.ScoreRequest(model="tiny", text="A"), **flood))
    assert (unread.code, unread.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    assert (unread.metadata["bound"], unread.retry_after_s) == (str(BURST), 1.0)
    assert "this one was not read" in unread.message
    with caplog.at_level(logging.ERROR, "asyncio"):
        for _ in range(100):  # some are gone before they are answered
            server.generation.Generate(request, **flood).cancel()
        assert read(server.generation.Generate(request, **calm)).reason == "LENGTH"
    assert not caplog.records
    wrong = {"metadata": [("authorization", "Bearer wrong")]}
    unknown = refusal(lambda: server.generation.Generate(request, **wrong))
    assert unknown.code == grpc.StatusCode.UNAUTHENTICATED
    until(lambda: server.handled("Score", "RESOURCE_EXHAUSTED") == 1)
    assert server.handled("Generate", "RESOURCE_EXHAUSTED") >= BURST + 3
    service = {"grpc_service": "gruve.v1.GenerationService", "grpc_type": "unary"}
    assert server.metric("grpc_server_started_total", grpc_method="Score", **service) == 1
    monkeypatch.setattr(refusals, "PER_SECOND", 1_000_000)
    assert limit() == "tokens_per_minute"


def test_an_accepted_request_gives_back_what_it_took_from_the_bucket(start, tmp_path, monkeypatch):
    monkeypatch.setattr(refusals, "PER_SECOND", 0)
    keys = tmp_path / "keys.json"
    key = add_key(keys, "flood", "flood", limits=Limits(tokens_per_minute=5_000))
    flood = {"metadata": [("authorization", f"Bearer {key}")], "timeout": 20}
    generation = start(access=AccessConfig(keys=keys)).generation
    large = g.GenerateRequest(model="tiny", max_tokens=6_000)
    small = g.GenerateRequest(model="tiny", max_tokens=2)
    for _ in range(BURST - 1):
        assert refusal(lambda: generation.Generate(large, **flood)).metadata["limit"] == "tokens_per_minute"
    for _ in range(20):  # one at a time may be read; the server may still have a call that was cancelled
        until(lambda: outcome(generation.Generate(small, **flood)) == "LENGTH")
        generation.Generate(small, **flood).cancel()
    until(lambda: outcome(generation.Generate(small, **flood)) == "LENGTH")
    running = [generation.Generate(small, **flood) for _ in range(2 * BURST)]
    assert {outcome(call) for call in running} == {"LENGTH", "refusals"}


def test_a_fault_in_that_check_leaves_the_call_to_its_method(start, monkeypatch):
    def fail(*_):
        raise ValueError("a fault")

    server = start()
    monkeypatch.setattr(Interceptor, "refuse_unread", fail)
    assert read(server.generate(max_tokens=2)).reason == "LENGTH"


@pytest.mark.parametrize("method", ["Generate", "Score"])
def test_a_call_that_is_refused_unread_is_counted(method):
    metrics = Metrics()
    interceptor = Interceptor(metrics)
    for _ in range(BURST):
        interceptor._refusals.add("ipv4:10.0.0.1", 1e9)
    path = f"/gruve.v1.GenerationService/{method}"
    assert interceptor.refuse_unread(path, Context(peer="ipv4:10.0.0.1:9")) is not None
    assert interceptor.refuse_unread(path, Context(peer="ipv4:10.0.0.2:9")) is None
    assert counted(metrics, method, "RESOURCE_EXHAUSTED") == 1


async def test_a_refused_request_takes_from_the_bucket_once_while_its_call_ends():
    class Aborted(Context):
        async def abort(self, *_: object) -> None:
            """Sends nothing."""

    async def refuse(*_: object) -> None:
        raise LimitExceeded("full", "streams", 1, 1.0)

    interceptor = Interceptor(Metrics())
    for _ in range(BURST - 2):
        interceptor._refusals.add("ipv4:10.0.0.1", 1e9)
    assert interceptor.refuse_unread(GENERATE, Context()) is None
    with pytest.raises(LimitExceeded):
        await interceptor._unary(refuse, interceptor._rpcs[GENERATE])(g.GenerateRequest(), Aborted())
    assert interceptor.refuse_unread(GENERATE, Context()) is None  # the last that the bucket gives
    assert interceptor.refuse_unread(GENERATE, Context()) is not None


async def test_the_access_log_has_one_line_for_the_calls_of_a_tenant_that_were_refused_unread(monkeypatch):
    monkeypatch.setattr(access_log, "SUMMARY_S", 0.0)
    lines, written = [], asyncio.Event()
    interceptor = Interceptor(Metrics(), log_call=lambda fields: lines.append(fields) or written.set())
    for _ in range(BURST):
        interceptor._refusals.add("ipv4:10.0.0.1", 1e9)
    for left_s in (None, None, 0.0):
        assert interceptor.refuse_unread(GENERATE, Context(left_s)) is not None
    assert lines == []
    await written.wait()
    assert lines == [
        {"method": GENERATE[1:], "code": "RESOURCE_EXHAUSTED", "tenant": "ipv4:10.0.0.1", "unread": 2},
        {"method": GENERATE[1:], "code": "DEADLINE_EXCEEDED", "unread": 1},
    ]
    interceptor.write_unread()
    assert len(lines) == 2
