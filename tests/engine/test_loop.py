"""The loop with a backend of mere arithmetic: who is answered, when, and how often."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time

import numpy as np
import pytest

from decoding import PATIENCE_S, AheadBackend, Ear, FakeBackend, admission_of, alone, engine_of, random_schedule, row_of
from gruve.engine.engine import Engine, EngineConfig
from gruve.engine.sequence import FinishReason
from gruve.errors import Draining, EngineFailed, QueueFull

ENDLESS = 1 << 30
STEPWISE = {"max_call_ms": 1e-6}


class Clock:
    """A time that moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def nudge(engine):
    """Makes an engine that waits for a moment of a clock that stands look at it again."""
    engine.grant(0, 1)


def test_a_sequence_is_decoded_as_if_alone():
    admission = admission_of([3, 4, 5], max_tokens=20)
    with engine_of(FakeBackend()) as (engine, ear):
        last = ear.end(sequence := engine.admit(admission))
    tokens, states, reason = alone(FakeBackend(), admission)
    assert (ear.tokens[sequence], last.finish_reason) == (tokens, reason)
    assert last.state == states[-1]


def test_positions_count_on_from_the_pending_token():
    admission = admission_of([3, 4, 5], max_tokens=4)
    with engine_of(FakeBackend()) as (engine, ear):
        ear.end(engine.admit(admission))
    steps = [progress for call in ear.calls for progress in call.progress]
    assert [p.position for p in steps] == [1 + sum(len(q.tokens) for q in steps[:i]) for i in range(len(steps))]
    assert sum(p.forced for p in steps) == 3


@pytest.mark.parametrize("seed", range(6))
def test_any_schedule_of_joins_leaves_credit_and_pace_leaves_every_sequence_as_it_is_alone(seed):
    random_schedule(seed, lambda: FakeBackend(slots=7), 13, end_id=1)


@pytest.mark.parametrize("lanes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_any_schedule_on_several_lanes_leaves_every_sequence_as_it_is_alone(seed, lanes):
    random_schedule(seed, lambda: FakeBackend(slots=60, lanes=lanes), 13, end_id=1, sequences=100)


@pytest.mark.parametrize("seed", range(12))
def test_any_schedule_one_call_ahead_leaves_every_sequence_as_it_is_alone(seed):
    backends = []

    def backend_of():
        backends.append(AheadBackend(slots=7))
        return backends[-1]

    random_schedule(seed, backend_of, 13, end_id=1, sequences=60)
    assert backends[0].went_on > 20
    assert backends[0].read_together > 0


def test_a_call_that_raises_one_call_ahead_fails_its_rows_once_and_the_engine_goes_on(caplog):
    backend, admissions = AheadBackend(), [admission_of(max_tokens=ENDLESS, seed=i) for i in range(3)]
    with engine_of(backend) as (engine, ear):
        ids = [engine.admit(admission) for admission in admissions]
        ear.wait(lambda ear: backend.went_on > 5)
        backend.hook = lambda slots: 1 / 0
        failures = [ear.end(i) for i in ids]
        backend.hook = lambda slots: None
        backend.under_way.clear()
        assert ear.end(engine.admit(admission_of(max_tokens=3))).finish_reason is FinishReason.LENGTH
    assert all(failure.incident and failure.incident in caplog.text for failure in failures)
    for i, admission in zip(ids, admissions, strict=True):
        got = ear.tokens[i]
        few = dataclasses.replace(admission, max_tokens=len(got))
        assert got == alone(AheadBackend(), few)[0]


@pytest.mark.parametrize("when", ["submit", "result"])
def test_a_backend_that_is_lost_ends_the_engine_and_everybody_is_answered(when, caplog):
    backend = AheadBackend(slots=2)
    backend.check = lambda: 1 / 0
    whole = backend.submit

    def submit(*call):
        return 1 / 0 if when == "submit" else (lambda: whole(*call)() and 1 / 0)

    backend.submit, failed = submit, threading.Event()
    engine = Engine(backend, ear := Ear(), on_failure=failed.set)
    ids = [engine.admit(admission_of()) for _ in range(5)]
    engine.start()
    assert failed.wait(PATIENCE_S)
    assert all(ear.last[i].incident and ear.last[i].incident in caplog.text for i in ids)
    with pytest.raises(EngineFailed):
        engine.admit(admission_of())


def test_a_state_that_cannot_be_read_with_others_is_read_alone(caplog):
    backend, admissions = AheadBackend(), [admission_of(max_tokens=9, seed=i) for i in range(4)]
    backend.snapshots = lambda slots: 1 / 0
    with engine_of(backend) as (engine, ear):
        ids = [engine.admit(admission) for admission in admissions]
        states = [ear.end(i).state for i in ids]
    assert states == [alone(AheadBackend(), admission)[1][-1] for admission in admissions]
    assert "read together" in caplog.text


def test_closing_one_call_ahead_hands_over_what_all_calls_have_made():
    backend = AheadBackend()
    with engine_of(backend) as (engine, ear):
        sequence = engine.admit(admission_of(max_tokens=ENDLESS))
        ear.wait(lambda ear: backend.went_on > 5)
    assert (ear.last[sequence].finish_reason, backend.under_way) == (FinishReason.HANDED_OVER, [])
    tokens, states, _ = alone(AheadBackend(), admission_of(max_tokens=len(ear.tokens[sequence])))
    assert (ear.tokens[sequence], ear.last[sequence].state) == (tokens, states[-1])


@pytest.mark.parametrize("message_gap_s", [1e-4, 0.01, 1e6])
def test_a_schedule_that_is_told_of_now_and_then_leaves_every_sequence_as_it_is_alone(message_gap_s):
    random_schedule(1, lambda: FakeBackend(slots=60, lanes=2), 13, end_id=1, sequences=60, message_gap_s=message_gap_s)


def told(ear, sequence):
    """How many tokens came with each progress of a sequence."""
    return [len(p.tokens) for call in ear.calls for p in call.progress if p.sequence_id == sequence]


def test_tokens_that_are_held_back_come_when_they_are_many_and_the_first_and_the_last_at_once():
    with engine_of(FakeBackend(), clock=Clock(), message_gap_s=1e-9) as (engine, ear):
        ear.end(few := engine.admit(admission_of(max_tokens=20)))
        ear.end(sequence := engine.admit(admission_of(max_tokens=100)))
    assert told(ear, few) == [1, 19]
    assert told(ear, sequence) == [1, 99]  # at a time that stands it is always too early


@pytest.mark.parametrize(("step_s", "expected"), [(0.001, [1, 19, 32]), (0.013, [1, 1, 2, 3]), (0.1, [1, 1, 1, 1])])
def test_a_reader_of_50_tokens_a_second_does_not_wait_for_what_is_held_back(step_s, expected):
    clock, backend = Clock(), FakeBackend()
    backend.hook = lambda slots: setattr(clock, "now", clock.now + step_s)
    with engine_of(backend, clock=clock, message_gap_s=step_s / 2, **STEPWISE) as (engine, ear):
        ear.end(sequence := engine.admit(admission_of(max_tokens=200)))
    assert told(ear, sequence)[: len(expected)] == expected


def test_a_stream_that_slows_down_is_not_held_back_for_what_its_reader_was_given_before():
    clock, backend = Clock(), FakeBackend()
    backend.hook = lambda slots: setattr(clock, "now", clock.now + (0.001 if clock.now < 1.0 else 0.3))
    with engine_of(backend, clock=clock, message_gap_s=0.01, **STEPWISE) as (engine, ear):
        ear.end(sequence := engine.admit(admission_of(max_tokens=1_040)))
    assert told(ear, sequence)[-10:-1] == [3] * 9  # after 0.9 s, and the next turn would come after 1.2 s


def test_a_paced_token_is_told_when_the_next_one_would_come_too_late():
    clock = Clock()
    with engine_of(FakeBackend(), clock=clock, message_gap_s=0.5) as (engine, ear):
        sequence = engine.admit(admission_of(max_tokens=3, max_tokens_per_second=1.0))
        for second in (1.0, 2.0):
            ear.wait(lambda ear, second=second: len(ear.tokens.get(sequence, ())) == second)
            clock.now = second
            nudge(engine)
        ear.end(sequence)
    assert told(ear, sequence) == [1, 1, 1]


def test_who_parks_without_credit_has_been_told_of_everything():
    with engine_of(FakeBackend(), message_gap_s=1e6) as (engine, ear):
        sequence = engine.admit(admission_of([1, 2], max_tokens=ENDLESS), credit=7)
        ear.wait(lambda ear: len(ear.tokens.get(sequence, ())) == 9)
        engine.grant(sequence, 5)
        ear.wait(lambda ear: len(ear.tokens[sequence]) == 14)


def test_no_more_tokens_are_held_back_than_may_be():
    with engine_of(FakeBackend(), message_gap_s=1e6, **STEPWISE) as (engine, ear):
        ear.end(sequence := engine.admit(admission_of(max_tokens=20, max_pending_output=6)))
    assert told(ear, sequence) == [1, 6, 6, 6, 1]


def test_a_cancelled_sequence_is_told_of_with_all_that_was_held_back():
    backend = FakeBackend()
    with engine_of(backend, message_gap_s=1e6) as (engine, ear):
        sequence = engine.admit(admission_of(max_tokens=ENDLESS))
        ear.wait(lambda ear: len(ear.calls) > 20)
        engine.cancel(sequence)
        last = ear.end(sequence)
    tokens, states, _ = alone(FakeBackend(), admission_of(max_tokens=len(ear.tokens[sequence])))
    assert len(last.tokens) > 10
    assert (ear.tokens[sequence], last.state) == (tokens, states[-1])


def test_of_a_prompt_that_need_not_be_told_the_first_drawn_token_is_the_first_that_is():
    admission = admission_of([3, 4, 5], max_tokens=4, deliver_forced=False)
    with engine_of(FakeBackend()) as (engine, ear):
        ear.end(sequence := engine.admit(admission))
    (first, *_) = [progress for call in ear.calls for progress in call.progress]
    assert (first.position, first.forced) == (4, 0)
    assert ear.tokens[sequence] == alone(FakeBackend(), admission_of([3, 4, 5], max_tokens=4))[0][3:]


def test_a_lane_that_waits_for_its_core_is_not_taken_for_slow(monkeypatch):
    ticks = iter(range(1 << 30))
    monkeypatch.setattr("gruve.engine.calls.time.perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr("gruve.engine.calls.time.thread_time", lambda: 1e-9 * next(ticks))
    backend = FakeBackend(lanes=2)
    backend.nice = 1
    with engine_of(backend, max_call_ms=5.0) as (engine, ear):
        for sequence in [engine.admit(admission_of(max_tokens=300)) for _ in range(4)]:
            ear.end(sequence)
    assert max(steps for _, _, steps in backend.calls) == 64


def test_many_rows_are_decoded_on_all_lanes_at_a_time():
    backend, met = FakeBackend(slots=32, lanes=2), threading.Barrier(2)
    backend.hook = lambda slots: met.wait(PATIENCE_S) if len(backend.calls) <= 2 else None
    engine = Engine(backend, ear := Ear())
    ids = [engine.admit(admission_of()) for _ in range(32)]
    engine.start()
    assert {ear.end(i).finish_reason for i in ids} == {FinishReason.LENGTH}
    engine.close()
    assert backend.beside > 0


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no nice values of their own")
def test_lanes_give_way_to_other_threads():
    def nice():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    backend, seen = FakeBackend(lanes=2), []
    backend.nice, backend.hook = 3, lambda slots: seen.append(nice())
    with engine_of(backend) as (engine, ear):
        ear.end(engine.admit(admission_of()))
    assert set(seen) == {min(19, nice() + 3)}


def test_a_call_ends_with_the_first_two_tokens_that_are_waited_for():
    backend = FakeBackend(slots=8)
    with engine_of(backend, max_call_ms=1e6) as (engine, ear):
        for sequence in [engine.admit(admission_of(max_tokens=ENDLESS)) for _ in range(6)]:
            ear.begun(sequence)
        ear.begun(engine.admit(admission_of([1] * 40, max_tokens=ENDLESS)))
    late = max(slot for slots, _, _ in backend.calls for slot in slots)
    assert next(steps for slots, _, steps in backend.calls if late in slots) == 42


def test_a_sequence_that_is_cancelled_while_a_lane_has_it_ends_when_the_call_returns():
    backend, entered, leave = FakeBackend(slots=2, lanes=2), threading.Event(), threading.Event()
    backend.hook = lambda slots: (entered.set(), leave.wait(PATIENCE_S))
    with engine_of(backend) as (engine, ear):
        sequence = engine.admit(admission_of(max_tokens=ENDLESS))
        assert entered.wait(PATIENCE_S)
        engine.cancel(sequence)
        nudge(engine)  # the other lane carries the cancellation out
        leave.set()
        last = ear.end(sequence)
    assert last.finish_reason is FinishReason.CANCELLED
    assert backend.rows == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_any_schedule_leaves_every_sequence_as_it_is_alone_for_long(seed):
    def backend_of():
        slots = 5 + seed % 90
        return AheadBackend(slots) if seed % 5 == 4 else FakeBackend(slots, lanes=1 + seed % 4)

    random_schedule(seed, backend_of, 13, end_id=1, sequences=150)


def test_a_full_queue_refuses_at_once_and_takes_again_when_one_has_left():
    with engine_of(FakeBackend(slots=1), max_waiting=2) as (engine, ear):
        _, *waiting = (engine.admit(admission_of(max_tokens=ENDLESS)) for _ in range(3))
        with pytest.raises(QueueFull, match="3 sequences run or wait; at most 1 run and 2 wait"):
            engine.admit(admission_of())
        engine.cancel(waiting[0])
        ear.end(waiting[0])
        assert engine.load == 2
        engine.admit(admission_of())


def test_one_who_comes_back_is_taken_although_the_queue_is_full():
    with engine_of(FakeBackend(slots=1), max_waiting=0) as (engine, ear):
        first = engine.admit(admission_of(max_tokens=ENDLESS))
        again = engine.admit(admission_of(max_tokens=3), readmitted=True)
        engine.cancel(first)
        assert ear.end(again).finish_reason is FinishReason.LENGTH


def test_a_paced_sequence_that_comes_back_draws_nothing_before_its_time():
    clock = Clock()
    with engine_of(FakeBackend(), clock=clock) as (engine, ear):
        early = engine.admit(admission_of([3, 4], max_tokens=1, max_tokens_per_second=1.0, ready_s=7.0))
        ear.end(engine.admit(admission_of(max_tokens=9)))
        assert early not in ear.last
        clock.now = 7.0
        nudge(engine)
        assert ear.end(early).finish_reason is FinishReason.LENGTH


def test_a_burst_that_the_slots_can_hold_is_not_refused_before_the_loop_has_seen_it():
    engine = Engine(FakeBackend(slots=8), Ear(), EngineConfig(max_waiting=0))
    for _ in range(8):
        engine.admit(admission_of())
    with pytest.raises(QueueFull):
        engine.admit(admission_of())


def test_a_cancelled_sequence_frees_its_slot_for_the_one_that_waits():
    with engine_of(FakeBackend(slots=1)) as (engine, ear):
        first = engine.admit(admission_of(max_tokens=ENDLESS))
        second = engine.admit(admission_of(max_tokens=3))
        ear.begun(first)
        engine.cancel(first)
        assert ear.end(second).finish_reason is FinishReason.LENGTH
        assert ear.last[first].finish_reason is FinishReason.CANCELLED


def test_a_sequence_cancelled_while_it_waits_keeps_the_state_it_came_with():
    state = np.full((1, 1, 1), 42.0, dtype=np.float32)
    with engine_of(FakeBackend(slots=1)) as (engine, ear):
        ear.begun(engine.admit(admission_of(max_tokens=ENDLESS)))
        waiting = engine.admit(admission_of(state=state))
        engine.cancel(waiting)
        last = ear.end(waiting)
    assert (last.finish_reason, last.tokens, last.state) == (FinishReason.CANCELLED, [], state)


def test_cancelling_what_has_ended_or_never_was_does_nothing():
    with engine_of(FakeBackend()) as (engine, ear):
        ear.end(done := engine.admit(admission_of()))
        engine.cancel(done)
        engine.cancel(12_345)
        assert ear.end(engine.admit(admission_of())).finish_reason is FinishReason.LENGTH


def test_a_deadline_ends_a_running_and_a_waiting_sequence():
    clock = Clock()
    with engine_of(FakeBackend(slots=1), clock=clock) as (engine, ear):
        running = engine.admit(admission_of(max_tokens=ENDLESS, deadline_s=5.0))
        waiting = engine.admit(admission_of(deadline_s=5.0))
        later = engine.admit(admission_of(max_tokens=2, deadline_s=6.0))
        ear.begun(running)
        clock.now = 5.0
        assert ear.end(running).finish_reason is FinishReason.DEADLINE
        assert ear.end(waiting).finish_reason is FinishReason.DEADLINE
        assert ear.end(later).finish_reason is FinishReason.LENGTH


def test_a_deadline_wakes_an_engine_that_has_nothing_to_do():
    clock = Clock()
    with engine_of(FakeBackend(), clock=clock) as (engine, ear):
        parked = engine.admit(admission_of(deadline_s=3.0), credit=0)
        clock.now = 3.0
        nudge(engine)
        assert ear.end(parked).finish_reason is FinishReason.DEADLINE


def test_a_deadline_passed_before_it_came_ends_it_without_a_token():
    clock = Clock()
    clock.now = 10.0
    with engine_of(FakeBackend(), clock=clock) as (engine, ear):
        assert ear.end(engine.admit(admission_of(deadline_s=9.0))).finish_reason is FinishReason.DEADLINE
    assert ear.tokens == {1: []}


def test_closing_hands_over_everything_running_and_waiting_and_refuses_the_rest():
    with engine_of(FakeBackend(slots=2)) as (engine, ear):
        ids = [engine.admit(admission_of(max_tokens=ENDLESS)) for _ in range(5)]
        ear.begun(ids[1])
        engine.close()
        assert {ear.last[i].finish_reason for i in ids} == {FinishReason.HANDED_OVER}
        assert engine.load == 0
        with pytest.raises(Draining):
            engine.admit(admission_of())


def test_what_is_handed_over_is_the_state_behind_the_last_token_but_one():
    admission = admission_of([2, 3], max_tokens=ENDLESS)
    with engine_of(FakeBackend()) as (engine, ear):
        sequence = engine.admit(admission)
        ear.wait(lambda ear: len(ear.tokens.get(sequence, ())) > 20)
    tokens = ear.tokens[sequence]
    again = FakeBackend()
    again.admit(0, row_of(admission), None)
    assert again.decode([0], [len(tokens)], len(tokens)).tokens[:, 0].tolist() == tokens
    assert again.snapshot(0) == ear.last[sequence].state


def test_a_call_that_raises_fails_its_rows_once_and_the_engine_goes_on(caplog):
    backend = FakeBackend(slots=4)
    with engine_of(backend) as (engine, ear):
        parked = engine.admit(admission_of(max_tokens=3), credit=0)

        def fail_once(slots):
            backend.hook = lambda slots: None
            raise RuntimeError("secret")

        backend.hook = fail_once
        failed = ear.end(engine.admit(admission_of()))
        assert failed.incident
        assert failed.finish_reason is None
        engine.grant(parked, 9)
        assert ear.end(parked).finish_reason is FinishReason.LENGTH
        assert ear.end(engine.admit(admission_of())).finish_reason is FinishReason.LENGTH
        assert (engine.load, backend.rows) == (0, {})
    assert failed.incident in caplog.text


def test_a_slot_that_cannot_be_filled_fails_that_sequence_alone(caplog):
    backend = FakeBackend()
    fill = backend.admit

    def refuse_prompts(slot, row, state):
        fill(slot, row, state)
        if len(row.forced):
            raise RuntimeError("secret")

    backend.admit = refuse_prompts
    with engine_of(backend) as (engine, ear):
        good, bad = engine.admit(admission_of()), engine.admit(admission_of([1]))
        assert ear.end(bad).incident
        assert ear.end(good).finish_reason is FinishReason.LENGTH


def test_a_state_that_cannot_be_read_fails_that_sequence_alone(caplog):
    backend = FakeBackend()
    read = backend.snapshot

    def refuse_slot_0(slot):
        if slot == 0:
            raise RuntimeError("secret")
        return read(slot)

    backend.snapshot = refuse_slot_0
    with engine_of(backend) as (engine, ear):
        bad, good = engine.admit(admission_of()), engine.admit(admission_of())
        assert ear.end(bad).incident
        assert ear.end(good).finish_reason is FinishReason.LENGTH
        assert ear.end(engine.admit(admission_of(keep_state=False))).finish_reason is FinishReason.LENGTH


def test_a_failure_of_the_loop_itself_answers_everybody_and_refuses_the_rest(caplog):
    backend = FakeBackend(slots=2)
    backend.decode = lambda slots, limits, steps, alone: None  # no block: nobody expects that
    failed = threading.Event()
    engine = Engine(backend, ear := Ear(), on_failure=failed.set)
    ids = [engine.admit(admission_of()) for _ in range(5)]
    engine.start()
    assert failed.wait(PATIENCE_S)
    (incident,) = {ear.last[i].incident for i in ids}
    assert engine.load == 0
    with pytest.raises(EngineFailed, match=incident):
        engine.admit(admission_of())
    assert incident in caplog.text


def test_paced_rows_take_one_token_a_call_and_nobody_waits_for_them():
    clock = Clock()
    backend = FakeBackend()
    with engine_of(backend, clock=clock) as (engine, ear):
        paced = engine.admit(admission_of([1, 2], max_tokens=3, max_tokens_per_second=1.0))
        ear.wait(lambda ear: len(ear.tokens.get(paced, ())) == 3)
        assert ear.end(engine.admit(admission_of(max_tokens=50))).finish_reason is FinishReason.LENGTH
        assert len(ear.tokens[paced]) == 3
        for second in (1.0, 2.0):
            clock.now = second
            nudge(engine)
            ear.wait(lambda ear, second=second: len(ear.tokens[paced]) == 3 + second)
        assert ear.end(paced).finish_reason is FinishReason.LENGTH


def test_a_row_without_credit_draws_exactly_what_it_is_granted():
    with engine_of(FakeBackend()) as (engine, ear):
        sequence = engine.admit(admission_of([1, 2, 3], max_tokens=ENDLESS), credit=2)
        ear.wait(lambda ear: len(ear.tokens.get(sequence, ())) == 5)
        engine.grant(sequence, 4)
        ear.wait(lambda ear: len(ear.tokens[sequence]) == 9)
        assert ear.end(engine.admit(admission_of(max_tokens=20))).finish_reason is FinishReason.LENGTH
        assert len(ear.tokens[sequence]) == 9


def test_a_stream_that_is_watched_comes_token_by_token_where_steps_are_slow():
    backend = FakeBackend()
    backend.hook = lambda slots: time.sleep(0.003)
    with engine_of(backend, max_call_ms=1_000.0) as (engine, ear):
        ear.end(engine.admit(admission_of(max_tokens=20)))
    assert [len(c.progress[0].tokens) for c in ear.calls] == [1] * 20


def test_the_first_token_of_a_few_is_waited_for_and_the_next_ones_come_together():
    backend = FakeBackend()
    with engine_of(backend, max_call_ms=1_000.0) as (engine, ear):
        ear.end(engine.admit(admission_of(max_tokens=100)))  # steps take no time, as is known by now
        ear.end(sequence := engine.admit(admission_of([1] * 30, max_tokens=40)))
    assert told(ear, sequence) == [31, 39]


def test_many_rows_come_in_blocks_that_last_no_longer_than_a_call_may():
    backend = FakeBackend(slots=64)
    with engine_of(backend, max_call_ms=1e6) as (engine, ear):
        for id_ in [engine.admit(admission_of(max_tokens=200)) for _ in range(40)]:
            ear.end(id_)
    assert 1 < max(steps for _, _, steps in backend.calls) <= 64


def test_one_that_waits_gets_the_slot_of_the_last_that_ended_though_nothing_else_happens():
    with engine_of(FakeBackend(slots=1)) as (engine, ear):
        ids = [engine.admit(admission_of(max_tokens=3)) for _ in range(4)]
        assert [ear.end(i).finish_reason for i in ids] == [FinishReason.LENGTH] * 4


def test_every_call_tells_how_the_engine_stands():
    with engine_of(FakeBackend(slots=1)) as (engine, ear):
        for id_ in [engine.admit(admission_of(max_tokens=4)) for _ in range(3)]:
            ear.end(id_)
    assert (ear.calls[-1].running, ear.calls[-1].waiting) == (0, 0)
    assert all(call.rows == 1 and call.running <= 1 for call in ear.calls)


def test_the_last_progress_tells_how_long_a_sequence_waited():
    clock = Clock()
    with engine_of(FakeBackend(slots=1), clock=clock) as (engine, ear):
        first = engine.admit(admission_of(max_tokens=ENDLESS))
        second = engine.admit(admission_of())
        ear.begun(first)
        clock.now = 7.0
        engine.cancel(first)
        assert ear.end(second).queue_s == 7.0
        assert ear.last[first].queue_s == 0.0


def test_an_idle_engine_ends_when_closed():
    with engine_of(FakeBackend()) as _:
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gruve-fake")]
