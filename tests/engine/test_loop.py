"""The loop with an arithmetic backend: exact under every schedule, with calls of the right size."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from decoding import PATIENCE_S, AheadBackend, FakeBackend, admission_of, alone
from engines import Clock, Recorder, delivered, engine_of, random_schedule
from gruve.engine.engine import Engine
from gruve.engine.sequence import FinishReason

ENDLESS = 1 << 30


def test_a_sequence_is_decoded_as_if_alone():
    admission = admission_of([3, 4, 5], max_tokens=20)
    with engine_of(FakeBackend()) as (engine, recorder):
        last = recorder.wait_for_end(sequence := engine.admit(admission))
    tokens, states, reason = alone(FakeBackend(), admission)
    assert (recorder.tokens[sequence], last.finish_reason) == (tokens, reason)
    assert last.state == states[-1]


def test_positions_continue_from_the_pending_token():
    admission = admission_of([3, 4, 5], max_tokens=4)
    with engine_of(FakeBackend()) as (engine, recorder):
        recorder.wait_for_end(engine.admit(admission))
    steps = [progress for call in recorder.calls for progress in call.progress]
    assert [p.position for p in steps] == [1 + sum(len(q.tokens) for q in steps[:i]) for i in range(len(steps))]
    assert sum(p.forced for p in steps) == 3


@pytest.mark.parametrize("seed", range(6))
def test_no_schedule_of_joins_leaves_credit_and_pace_changes_a_token_or_a_state(seed):
    random_schedule(seed, lambda: FakeBackend(slots=7), 13, end_id=1)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_no_schedule_on_several_workers_changes_a_token_or_a_state(seed, workers):
    random_schedule(seed, lambda: FakeBackend(slots=60, workers=workers), 13, end_id=1, sequences=100)


@pytest.mark.parametrize("seed", range(12))
def test_no_schedule_with_two_calls_in_flight_changes_a_token_or_a_state(seed):
    backends = []

    def backend_of():
        backends.append(AheadBackend(slots=7))
        return backends[-1]

    random_schedule(seed, backend_of, 13, end_id=1, sequences=60)
    assert backends[0].continued > 20
    assert backends[0].read_together > 0


@pytest.mark.parametrize("message_gap_s", [1e-4, 0.01, 1e6])
def test_no_delivery_gap_changes_a_token_or_a_state(message_gap_s):
    random_schedule(
        1, lambda: FakeBackend(slots=60, workers=2), 13, end_id=1, sequences=60, message_gap_s=message_gap_s
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_no_schedule_changes_a_token_or_a_state_for_long(seed):
    def backend_of():
        slots = 5 + seed % 90
        return AheadBackend(slots) if seed % 5 == 4 else FakeBackend(slots, workers=1 + seed % 4)

    random_schedule(seed, backend_of, 13, end_id=1, sequences=150)


def test_many_rows_are_decoded_by_all_workers_at_a_time():
    backend, met = FakeBackend(slots=32, workers=2), threading.Barrier(2)
    backend.hook = lambda slots: met.wait(PATIENCE_S) if len(backend.calls) <= 2 else None
    engine = Engine(backend, recorder := Recorder())
    ids = [engine.admit(admission_of()) for _ in range(32)]
    engine.start()
    assert {recorder.wait_for_end(i).finish_reason for i in ids} == {FinishReason.LENGTH}
    engine.close()
    assert backend.beside > 0


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no nice values of their own")
def test_workers_run_at_the_nice_value_of_the_backend():
    def nice():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    backend, seen = FakeBackend(workers=2), []
    backend.nice, backend.hook = 3, lambda slots: seen.append(nice())
    with engine_of(backend) as (engine, recorder):
        recorder.wait_for_end(engine.admit(admission_of()))
    assert set(seen) == {min(19, nice() + 3)}


def test_a_worker_that_waits_for_its_core_is_not_taken_for_slow(monkeypatch):
    ticks = iter(range(1 << 30))
    monkeypatch.setattr("gruve.engine.calls.time.perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr("gruve.engine.calls.time.thread_time", lambda: 1e-9 * next(ticks))
    backend = FakeBackend(workers=2)
    backend.nice = 1
    with engine_of(backend, max_call_ms=5.0) as (engine, recorder):
        for sequence in [engine.admit(admission_of(max_tokens=300)) for _ in range(4)]:
            recorder.wait_for_end(sequence)
    assert max(steps for _, _, steps in backend.calls) == 64


def test_a_call_ends_with_the_first_two_tokens_of_a_row_that_has_none():
    backend = FakeBackend(slots=8)
    with engine_of(backend, max_call_ms=1e6) as (engine, recorder):
        for sequence in [engine.admit(admission_of(max_tokens=ENDLESS)) for _ in range(6)]:
            recorder.wait_for_tokens(sequence)
        recorder.wait_for_tokens(engine.admit(admission_of([1] * 40, max_tokens=ENDLESS)))
    late = max(slot for slots, _, _ in backend.calls for slot in slots)
    assert next(steps for slots, _, steps in backend.calls if late in slots) == 42


def test_a_single_stream_comes_token_by_token_where_steps_are_slow():
    backend = FakeBackend()
    backend.hook = lambda slots: time.sleep(0.003)
    with engine_of(backend, max_call_ms=1_000.0) as (engine, recorder):
        recorder.wait_for_end(engine.admit(admission_of(max_tokens=20)))
    assert [len(c.progress[0].tokens) for c in recorder.calls] == [1] * 20


def test_among_few_rows_the_first_token_ends_a_call_and_the_next_ones_come_together():
    backend = FakeBackend()
    with engine_of(backend, max_call_ms=1e6) as (engine, recorder):
        recorder.wait_for_end(engine.admit(admission_of(max_tokens=100)))  # it learns that steps take little time
        recorder.wait_for_end(sequence := engine.admit(admission_of([1] * 30, max_tokens=40)))
    assert delivered(recorder, sequence) == [31, 39]


def test_many_rows_take_several_steps_a_call_and_at_most_64():
    backend = FakeBackend(slots=64)
    with engine_of(backend, max_call_ms=1e6) as (engine, recorder):
        for id_ in [engine.admit(admission_of(max_tokens=200)) for _ in range(40)]:
            recorder.wait_for_end(id_)
    assert 1 < max(steps for _, _, steps in backend.calls) <= 64


def test_a_waiting_sequence_gets_the_slot_of_the_last_that_ended_though_nothing_else_happens():
    with engine_of(FakeBackend(slots=1)) as (engine, recorder):
        ids = [engine.admit(admission_of(max_tokens=3)) for _ in range(4)]
        assert [recorder.wait_for_end(i).finish_reason for i in ids] == [FinishReason.LENGTH] * 4


def test_every_report_counts_the_running_and_the_waiting():
    with engine_of(FakeBackend(slots=1)) as (engine, recorder):
        for id_ in [engine.admit(admission_of(max_tokens=4)) for _ in range(3)]:
            recorder.wait_for_end(id_)
    assert (recorder.calls[-1].running, recorder.calls[-1].waiting) == (0, 0)
    assert all(call.rows == 1 and call.running <= 1 for call in recorder.calls)


def test_the_last_progress_has_the_time_a_sequence_waited():
    clock = Clock()
    with engine_of(FakeBackend(slots=1), clock=clock) as (engine, recorder):
        first = engine.admit(admission_of(max_tokens=ENDLESS))
        second = engine.admit(admission_of())
        recorder.wait_for_tokens(first)
        clock.now = 7.0
        engine.cancel(first)
        assert recorder.wait_for_end(second).queue_s == 7.0
        assert recorder.last[first].queue_s == 0.0


def test_the_fake_backend_of_these_tests_is_exact():
    admission = admission_of([1, 2], max_tokens=9)
    assert alone(FakeBackend(), admission)[0] == alone(FakeBackend(slots=3), admission)[0]
