"""Admission, cancellation, deadlines and closing of an engine."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from decoding import PATIENCE_S, AheadBackend, FakeBackend, admission_of, alone, row_of
from engines import Clock, Recorder, engine_of, wake
from gruve.engine.engine import Engine, EngineConfig
from gruve.engine.sequence import FinishReason
from gruve.errors import Draining, QueueFull

ENDLESS = 1 << 30


def test_a_full_queue_refuses_at_once_and_admits_again_when_a_sequence_has_ended():
    with engine_of(FakeBackend(slots=1), max_waiting=2) as (engine, recorder):
        _, *waiting = (engine.admit(admission_of(max_tokens=ENDLESS)) for _ in range(3))
        with pytest.raises(QueueFull, match="3 sequences run or wait; at most 1 run and 2 wait"):
            engine.admit(admission_of())
        engine.cancel(waiting[0])
        recorder.wait_for_end(waiting[0])
        assert engine.load == 2
        engine.admit(admission_of())


def test_a_sequence_that_comes_back_is_admitted_to_a_full_queue():
    with engine_of(FakeBackend(slots=1), max_waiting=0) as (engine, recorder):
        first = engine.admit(admission_of(max_tokens=ENDLESS))
        again = engine.admit(admission_of(max_tokens=3), readmitted=True)
        engine.cancel(first)
        assert recorder.wait_for_end(again).finish_reason is FinishReason.LENGTH


def test_a_burst_that_the_slots_can_hold_is_not_refused_before_the_loop_has_seen_it():
    engine = Engine(FakeBackend(slots=8), Recorder(), EngineConfig(max_waiting=0))
    for _ in range(8):
        engine.admit(admission_of())
    with pytest.raises(QueueFull):
        engine.admit(admission_of())


def test_a_cancelled_sequence_frees_its_slot_for_a_waiting_one():
    with engine_of(FakeBackend(slots=1)) as (engine, recorder):
        first = engine.admit(admission_of(max_tokens=ENDLESS))
        second = engine.admit(admission_of(max_tokens=3))
        recorder.wait_for_tokens(first)
        engine.cancel(first)
        assert recorder.wait_for_end(second).finish_reason is FinishReason.LENGTH
        assert recorder.last[first].finish_reason is FinishReason.CANCELLED


def test_a_sequence_cancelled_while_it_waits_returns_the_state_it_came_with():
    state = np.full((1, 1, 1), 42.0, dtype=np.float32)
    with engine_of(FakeBackend(slots=1)) as (engine, recorder):
        recorder.wait_for_tokens(engine.admit(admission_of(max_tokens=ENDLESS)))
        waiting = engine.admit(admission_of(state=state))
        engine.cancel(waiting)
        last = recorder.wait_for_end(waiting)
    assert (last.finish_reason, last.tokens, last.state) == (FinishReason.CANCELLED, [], state)


def test_a_sequence_cancelled_during_a_call_ends_when_the_call_returns():
    backend, entered, leave = FakeBackend(slots=2, workers=2), threading.Event(), threading.Event()
    backend.hook = lambda slots: (entered.set(), leave.wait(PATIENCE_S))
    with engine_of(backend) as (engine, recorder):
        sequence = engine.admit(admission_of(max_tokens=ENDLESS))
        assert entered.wait(PATIENCE_S)
        engine.cancel(sequence)
        wake(engine)  # the other worker applies the cancellation
        leave.set()
        last = recorder.wait_for_end(sequence)
    assert last.finish_reason is FinishReason.CANCELLED
    assert backend.rows == {}


def test_cancelling_an_ended_or_unknown_sequence_does_nothing():
    with engine_of(FakeBackend()) as (engine, recorder):
        recorder.wait_for_end(done := engine.admit(admission_of()))
        engine.cancel(done)
        engine.cancel(12_345)
        assert recorder.wait_for_end(engine.admit(admission_of())).finish_reason is FinishReason.LENGTH


def test_a_deadline_ends_a_running_and_a_waiting_sequence():
    clock = Clock()
    with engine_of(FakeBackend(slots=1), clock=clock) as (engine, recorder):
        running = engine.admit(admission_of(max_tokens=ENDLESS, deadline_s=5.0))
        waiting = engine.admit(admission_of(deadline_s=5.0))
        later = engine.admit(admission_of(max_tokens=2, deadline_s=6.0))
        recorder.wait_for_tokens(running)
        clock.now = 5.0
        assert recorder.wait_for_end(running).finish_reason is FinishReason.DEADLINE
        assert recorder.wait_for_end(waiting).finish_reason is FinishReason.DEADLINE
        assert recorder.wait_for_end(later).finish_reason is FinishReason.LENGTH


def test_a_deadline_ends_a_parked_sequence_of_an_idle_engine():
    clock = Clock()
    with engine_of(FakeBackend(), clock=clock) as (engine, recorder):
        parked = engine.admit(admission_of(deadline_s=3.0), credit=0)
        clock.now = 3.0
        wake(engine)
        assert recorder.wait_for_end(parked).finish_reason is FinishReason.DEADLINE


def test_a_deadline_that_has_passed_at_admission_ends_a_sequence_without_a_token():
    clock = Clock()
    clock.now = 10.0
    with engine_of(FakeBackend(), clock=clock) as (engine, recorder):
        assert recorder.wait_for_end(engine.admit(admission_of(deadline_s=9.0))).finish_reason is FinishReason.DEADLINE
    assert recorder.tokens == {1: []}


def test_closing_hands_over_every_sequence_running_or_waiting_and_refuses_new_ones():
    with engine_of(FakeBackend(slots=2)) as (engine, recorder):
        ids = [engine.admit(admission_of(max_tokens=ENDLESS)) for _ in range(5)]
        recorder.wait_for_tokens(ids[1])
        engine.close()
        assert {recorder.last[i].finish_reason for i in ids} == {FinishReason.HANDED_OVER}
        assert engine.load == 0
        with pytest.raises(Draining):
            engine.admit(admission_of())


def test_closing_with_two_calls_in_flight_hands_over_the_tokens_of_both():
    backend = AheadBackend()
    with engine_of(backend) as (engine, recorder):
        sequence = engine.admit(admission_of(max_tokens=ENDLESS))
        recorder.wait(lambda recorder: backend.continued > 5)
    assert (recorder.last[sequence].finish_reason, backend.submitted) == (FinishReason.HANDED_OVER, [])
    tokens, states, _ = alone(AheadBackend(), admission_of(max_tokens=len(recorder.tokens[sequence])))
    assert (recorder.tokens[sequence], recorder.last[sequence].state) == (tokens, states[-1])


def test_the_state_handed_over_has_consumed_all_tokens_but_the_last():
    admission = admission_of([2, 3], max_tokens=ENDLESS)
    with engine_of(FakeBackend()) as (engine, recorder):
        sequence = engine.admit(admission)
        recorder.wait(lambda recorder: len(recorder.tokens.get(sequence, ())) > 20)
    tokens = recorder.tokens[sequence]
    again = FakeBackend()
    again.admit(0, row_of(admission), None)
    assert again.decode([0], [len(tokens)], len(tokens)).tokens[:, 0].tolist() == tokens
    assert again.snapshot(0) == recorder.last[sequence].state


def test_closing_an_idle_engine_ends_its_threads():
    with engine_of(FakeBackend()) as _:
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gruve-fake")]
