"""When a sequence is refused for its deadline, against a plain simulation of the queue."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding import FakeBackend, admission_of
from engines import Clock, Recorder, engine_of
from gruve.engine.scheduler import Scheduler
from gruve.engine.sequence import Admission, Sequence
from gruve.engine.slot_times import USABLE, SlotTimes, too_late
from gruve.errors import DeadlineTooSoon
from gruve.model.sampling import SamplingParameters

ENDLESS = 1 << 30
NOW = 1_000.0


def measured(seconds: float, tokens: int = 100) -> SlotTimes:
    times = SlotTimes()
    times.record(seconds, tokens)
    return times


def finished_after(slots: int, held: list[float], holds: list[float]) -> float:
    """When the last of the queue is finished: the first of `holds` run and have held their slots, the rest wait."""
    free = [NOW] * (slots - len(held)) + [max(NOW, NOW - at + hold) for at, hold in zip(held, holds, strict=False)]
    end = NOW
    for hold in holds[len(held) :]:
        free.sort()
        end = free[0] = free[0] + hold
    return end - NOW


@st.composite
def queues(draw, least: float = 1.0, most: float = 1.0):
    """Slots, how long the taken ones are held, and how long each sequence, running or waiting, holds its slot."""
    slots = draw(st.integers(1, 5))
    taken = draw(st.integers(0, slots))
    held = sorted(draw(st.lists(st.floats(0.0, 1.0), min_size=taken, max_size=taken)), reverse=True)
    waiting = 0 if taken < slots else draw(st.integers(0, 12))
    holds = draw(st.lists(st.floats(least, most), min_size=taken + waiting + 1, max_size=taken + waiting + 1))
    return slots, held, holds


@given(queues(), st.floats(0.01, 20.0))
def test_sequences_that_hold_their_slots_equally_long_get_the_exact_estimate(queue, left_s):
    slots, held, holds = queue
    times = measured(1.0)
    wait_s = times.wait_s(len(holds) - 1 - len(held), slots, held)
    assert wait_s + times.decoding_s(100) == pytest.approx(finished_after(slots, held, holds))
    assert too_late(wait_s, 1.0, left_s) == (wait_s > 0.0 and wait_s + 1.0 > USABLE * left_s)


@given(queues(least=1.0, most=9.0), st.floats(0.01, 20.0))
def test_none_is_refused_that_would_clearly_have_been_in_time(queue, left_s):
    slots, held, holds = queue
    times = measured(1.0)
    wait_s = times.wait_s(len(holds) - 1 - len(held), slots, held)
    if too_late(wait_s, times.decoding_s(100), left_s):
        assert finished_after(slots, held, holds) > USABLE * left_s - 1e-9


@given(st.lists(st.tuples(st.floats(0.1, 9.0), st.integers(1, 500)), min_size=1, max_size=30))
def test_averages_stay_within_what_was_recorded(ended):
    times = SlotTimes()
    for seconds, tokens in ended:
        times.record(seconds, tokens)
    assert min(s for s, _ in ended) - 1e-9 <= times.held_s <= max(s for s, _ in ended) + 1e-9
    assert times.decoding_s(ENDLESS) == times.held_s


def test_a_sequence_that_its_deadline_cut_counts_for_the_time_of_a_token_alone():
    times = SlotTimes()
    times.record(1.0, 5, cut=True)
    assert times.held_s == 0.0
    times.record(8.0, 100)
    times.record(0.8, 10, cut=True)
    assert times.held_s == pytest.approx(8.0)
    for _ in range(200):
        times.record(1.6, 10, cut=True)
    assert times.held_s == pytest.approx(16.0)


def test_a_sequence_of_few_tokens_is_expected_to_decode_for_less():
    assert measured(8.0, tokens=100).decoding_s(25) == pytest.approx(2.0)


def test_nothing_is_too_late_before_a_sequence_has_ended_or_while_a_slot_is_free():
    assert not too_late(SlotTimes().wait_s(1_000, 1, [5.0]), 1e9, 0.001)
    assert not too_late(measured(9.0).wait_s(0, 2, [0.0]), 9.0, 0.001)


def _sequence(id_: int, tenant: str) -> Sequence:
    start = np.zeros(1, dtype=np.int32)
    return Sequence(id_, Admission(SamplingParameters(), start, 0, start[:0], max_tokens=9, tenant=tenant))


def test_a_tenant_counts_on_all_slots_unless_others_wait_and_on_those_it_may_take():
    scheduler = Scheduler(slots=4, micro_batch=2)
    for id_ in range(4):
        scheduler.add(_sequence(id_, "a"))
    scheduler.admit()
    held = list(scheduler.running.values())
    assert scheduler.prospect("a", 1.0) == (4, held)
    assert scheduler.prospect("b", 1.0) == (4, held[:2])  # two of four are its share
    scheduler.add(_sequence(9, "a"))
    assert scheduler.prospect("b", 1.0) == (2, [])
    scheduler.add(_sequence(10, "b"))
    assert scheduler.prospect("a", 1.0) == (4, held)


def test_a_deadline_that_the_queue_does_not_allow_is_refused_with_the_estimate():
    clock, recorder = Clock(), Recorder()
    with engine_of(FakeBackend(slots=1), recorder, clock=clock) as (engine, _):
        first = engine.admit(admission_of(max_tokens=ENDLESS))
        recorder.wait_for_tokens(first)
        clock.now = 10.0
        engine.cancel(first)
        recorder.wait_for_end(first)  # a slot is held for 10 s, as far as is known
        recorder.wait_for_tokens(engine.admit(admission_of(max_tokens=ENDLESS)))
        engine.admit(admission_of(max_tokens=ENDLESS))
        load = engine.load
        with pytest.raises(DeadlineTooSoon, match="behind 1 waiting requests for 1 slots") as refused:
            engine.admit(admission_of(max_tokens=ENDLESS, deadline_s=25.0))
        assert (refused.value.estimate_s, refused.value.left_s) == (30.0, 15.0)
        assert (refused.value.retry_after_s, engine.load) == (15.0, load)
        engine.admit(admission_of(max_tokens=ENDLESS, deadline_s=60.0))
        engine.admit(admission_of(max_tokens=ENDLESS, deadline_s=25.0), readmitted=True)
        engine.admit(admission_of(max_tokens=ENDLESS))
