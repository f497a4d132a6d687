"""Failures of rows, slots, states, the backend and the loop, and what continues after each."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from decoding import PATIENCE_S, AheadBackend, FakeBackend, admission_of, alone
from engines import Recorder, engine_of
from gruve.engine.engine import Engine
from gruve.engine.sequence import FinishReason
from gruve.errors import EngineFailed

ENDLESS = 1 << 30


def test_a_call_that_raises_fails_its_rows_once_and_the_engine_continues(caplog):
    backend = FakeBackend(slots=4)
    with engine_of(backend) as (engine, recorder):
        parked = engine.admit(admission_of(max_tokens=3), credit=0)

        def fail_once(slots):
            backend.hook = lambda slots: None
            raise RuntimeError("secret")

        backend.hook = fail_once
        failed = recorder.wait_for_end(engine.admit(admission_of()))
        assert failed.incident
        assert failed.finish_reason is None
        engine.grant(parked, 9)
        assert recorder.wait_for_end(parked).finish_reason is FinishReason.LENGTH
        assert recorder.wait_for_end(engine.admit(admission_of())).finish_reason is FinishReason.LENGTH
        assert (engine.load, backend.rows) == (0, {})
    assert failed.incident in caplog.text


def test_a_call_that_raises_with_two_in_flight_fails_its_rows_once_and_the_engine_continues(caplog):
    backend, admissions = AheadBackend(), [admission_of(max_tokens=ENDLESS, seed=i) for i in range(3)]
    with engine_of(backend) as (engine, recorder):
        ids = [engine.admit(admission) for admission in admissions]
        recorder.wait(lambda recorder: backend.continued > 5)
        backend.hook = lambda slots: 1 / 0
        failures = [recorder.wait_for_end(i) for i in ids]
        backend.hook = lambda slots: None
        backend.submitted.clear()
        assert recorder.wait_for_end(engine.admit(admission_of(max_tokens=3))).finish_reason is FinishReason.LENGTH
    assert all(failure.incident and failure.incident in caplog.text for failure in failures)
    for i, admission in zip(ids, admissions, strict=True):
        got = recorder.tokens[i]
        few = dataclasses.replace(admission, max_tokens=len(got))
        assert got == alone(AheadBackend(), few)[0]


@pytest.mark.parametrize("when", ["submit", "result"])
def test_a_lost_backend_fails_the_engine_and_every_sequence(when, caplog):
    backend = AheadBackend(slots=2)
    backend.check_health = lambda: 1 / 0
    whole = backend.submit

    def submit(*call):
        return 1 / 0 if when == "submit" else (lambda: whole(*call)() and 1 / 0)

    backend.submit, failed = submit, threading.Event()
    engine = Engine(backend, recorder := Recorder(), on_failure=failed.set)
    ids = [engine.admit(admission_of()) for _ in range(5)]
    engine.start()
    assert failed.wait(PATIENCE_S)
    assert all(recorder.last[i].incident and recorder.last[i].incident in caplog.text for i in ids)
    with pytest.raises(EngineFailed):
        engine.admit(admission_of())


def test_a_slot_that_cannot_be_filled_fails_its_sequence_and_no_other(caplog):
    backend = FakeBackend()
    fill = backend.admit

    def refuse_prompts(slot, row, state):
        fill(slot, row, state)
        if len(row.forced):
            raise RuntimeError("secret")

    backend.admit = refuse_prompts
    with engine_of(backend) as (engine, recorder):
        good, bad = engine.admit(admission_of()), engine.admit(admission_of([1]))
        assert recorder.wait_for_end(bad).incident
        assert recorder.wait_for_end(good).finish_reason is FinishReason.LENGTH


def test_a_state_that_cannot_be_read_fails_its_sequence_and_no_other(caplog):
    backend = FakeBackend()
    read = backend.snapshot

    def refuse_slot_0(slot):
        if slot == 0:
            raise RuntimeError("secret")
        return read(slot)

    backend.snapshot = refuse_slot_0
    with engine_of(backend) as (engine, recorder):
        bad, good = engine.admit(admission_of()), engine.admit(admission_of())
        assert recorder.wait_for_end(bad).incident
        assert recorder.wait_for_end(good).finish_reason is FinishReason.LENGTH
        assert recorder.wait_for_end(engine.admit(admission_of(keep_state=False))).finish_reason is FinishReason.LENGTH


def test_states_that_cannot_be_read_together_are_read_one_by_one(caplog):
    backend, admissions = AheadBackend(), [admission_of(max_tokens=9, seed=i) for i in range(4)]
    backend.snapshots = lambda slots: 1 / 0
    with engine_of(backend) as (engine, recorder):
        ids = [engine.admit(admission) for admission in admissions]
        states = [recorder.wait_for_end(i).state for i in ids]
    assert states == [alone(AheadBackend(), admission)[1][-1] for admission in admissions]
    assert "read together" in caplog.text


def test_a_failure_of_the_loop_itself_fails_every_sequence_and_refuses_new_ones(caplog):
    backend = FakeBackend(slots=2)
    backend.decode = lambda slots, limits, steps, exclusive: None  # None instead of a block breaks the loop itself
    failed = threading.Event()
    engine = Engine(backend, recorder := Recorder(), on_failure=failed.set)
    ids = [engine.admit(admission_of()) for _ in range(5)]
    engine.start()
    assert failed.wait(PATIENCE_S)
    (incident,) = {recorder.last[i].incident for i in ids}
    assert engine.load == 0
    with pytest.raises(EngineFailed, match=incident):
        engine.admit(admission_of())
    assert incident in caplog.text
