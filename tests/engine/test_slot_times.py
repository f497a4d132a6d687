"""When a sequence is refused for its deadline, against a plain simulation of the queue."""

from __future__ import annotations

import dataclasses
import math
import random

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
    times.record(seconds, tokens, tokens)
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


@pytest.mark.parametrize(("ahead", "wait_s"), [(0, 0.0), (1, 6.0), (2, 10.0), (3, 16.0), (4, 20.0)])
def test_those_ahead_take_the_free_slots_first(ahead, wait_s):
    """One of two slots is free, the other has been held for 4 s; a sequence holds its slot for 10 s."""
    assert measured(10.0).wait_s(ahead, 2, [4.0]) == pytest.approx(wait_s)


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
        times.record(seconds, tokens, tokens)
    assert min(s for s, _ in ended) - 1e-9 <= times.held_s <= max(s for s, _ in ended) + 1e-9


def test_a_sequence_is_expected_to_have_the_share_of_its_tokens_that_others_had():
    times = SlotTimes()
    times.record(8.0, 100, allowed=400)
    assert times.decoding_s(400) == times.held_s == pytest.approx(8.0)
    assert times.decoding_s(100) == pytest.approx(2.0)


def test_a_sequence_that_its_deadline_cut_says_nothing_about_that_share():
    times = SlotTimes()
    times.record(1.0, 5, 100, cut=True)
    assert times.held_s == 0.0
    times.record(8.0, 100, 100)
    times.record(2.4, 30, 300, cut=True)
    assert times.decoding_s(100) == pytest.approx(8.0)
    assert times.held_s == pytest.approx(16.0)  # of 200 tokens, the average of both


def test_the_speed_is_that_of_the_calls_while_all_slots_are_taken():
    times = measured(8.0)
    times.record_call(0.0, 999, 4, full=False)
    times.record_call(1.0, 40, 4, full=True)  # the slots were not taken since the call before
    assert times.held_s == pytest.approx(8.0)
    times.record_call(2.0, 40, 4, full=True)  # 40 tokens a second on 4 slots
    assert times.held_s == pytest.approx(10.0)
    times.record_call(90.0, 40, 4, full=False)
    assert times.held_s == pytest.approx(10.0)


def test_of_two_average_speeds_the_lower_one_counts():
    times = measured(8.0)
    for second in range(100):
        times.record_call(float(second), 40, 4, full=True)
    times.record_call(99.5, 100, 4, full=True)
    assert 6.0 < times.held_s < 9.0  # the slower average has hardly moved
    for tenth in range(1, 20):
        times.record_call(99.5 + 0.1 * tenth, 1, 4, full=True)
    assert times.held_s > 25.0  # the faster one has followed


def test_nothing_is_too_late_before_a_sequence_has_ended_or_while_a_slot_is_free():
    assert not too_late(SlotTimes().wait_s(1_000, 1, [5.0]), 1e9, 0.001)
    assert not too_late(measured(9.0).wait_s(0, 2, [0.0]), 9.0, 0.001)


SLOTS, STEP_S, STEPS = 32, 0.0016, 8


def goodput(load: float, wobble: float, seed: int = 1, lasts_s: float = 30.0) -> float:
    """The tokens of sequences finished in time, as a share of what the slots can decode: a plain simulation.

    Arrivals are random and `load` times what can be served, lengths and the speed vary, and a deadline leaves a
    sequence four times what it takes to decode on average.
    """
    chance, times = random.Random(seed), SlotTimes()
    arrivals_per_s, deadline_s = load * SLOTS / STEP_S / 272.0, 4 * 272.0 * STEP_S
    waiting: list[Simulated] = []
    running: list[Simulated] = []
    now, arrival, good = 0.0, chance.expovariate(arrivals_per_s), 0
    while now < lasts_s:
        while arrival <= now:
            new = Simulated(arrival + deadline_s, chance.randint(144, 400))
            wait_s = times.wait_s(len(waiting), SLOTS, [now - other.started_s for other in running])
            if not too_late(wait_s, times.decoding_s(new.tokens), new.deadline_s - now):
                waiting.append(new)
            arrival += chance.expovariate(arrivals_per_s)
        for late in [other for other in running if other.deadline_s <= now]:
            times.record(now - late.started_s, late.done, late.tokens, cut=True)
        waiting, running = (
            [other for other in queue if other.deadline_s > now and other.done < other.tokens]
            for queue in (waiting, running)
        )
        while waiting and len(running) < SLOTS:
            running.append(waiting.pop(0))
            running[-1].started_s = now
        slowness = 1 + wobble * math.sin(2 * math.pi * now / 3.0) + wobble * (chance.random() - 0.5)
        now += STEPS * STEP_S * (0.3 + 0.7 * len(running) / SLOTS) * slowness
        before = sum(other.done for other in running)
        for other in running:
            other.done = min(other.tokens, other.done + STEPS)
        served = sum(other.done for other in running) - before
        times.record_call(now, served, SLOTS, full=len(running) == SLOTS)
        for whole in [other for other in running if other.done == other.tokens]:
            times.record(now - whole.started_s, whole.tokens, whole.tokens)
            good += whole.tokens if whole.deadline_s >= now else 0
    return good * STEP_S / SLOTS / lasts_s


@dataclasses.dataclass
class Simulated:
    deadline_s: float
    tokens: int
    done: int = 0
    started_s: float = 0.0


@pytest.mark.parametrize("wobble", [0.0, 0.3])
def test_at_five_times_the_capacity_as_much_is_finished_in_time_as_without_overload(wobble):
    assert goodput(5.0, wobble) > 0.9 * goodput(1.0, wobble)
    assert goodput(1.0, wobble) > 0.9


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
        recorder.wait_for_end(first)
        recorder.wait_for_tokens(engine.admit(admission_of(max_tokens=ENDLESS)))
        engine.admit(admission_of(max_tokens=ENDLESS))
        load, held_s = engine.load, engine.slot_times.held_s
        assert held_s >= 10.0  # as far as is known
        with pytest.raises(DeadlineTooSoon, match="behind 1 waiting requests for 1 slots") as refused:
            engine.admit(admission_of(max_tokens=ENDLESS, deadline_s=25.0))
        assert (refused.value.estimate_s, refused.value.left_s) == (pytest.approx(3 * held_s), 15.0)
        assert (refused.value.retry_after_s, engine.load) == (pytest.approx(3 * held_s - 15.0), load)
        engine.admit(admission_of(max_tokens=ENDLESS, deadline_s=10.0 + 4 * held_s))
        engine.admit(admission_of(max_tokens=ENDLESS, deadline_s=25.0), readmitted=True)
        engine.admit(admission_of(max_tokens=ENDLESS))
