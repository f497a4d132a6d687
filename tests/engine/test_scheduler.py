"""The scheduler under random joins, leaves, parking and pacing: fair turns, one sequence per slot, none lost."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.engine.scheduler import Scheduler
from gruve.engine.sequence import Admission, Sequence
from gruve.engine.tenant_queue import BURST_CALLS, LEAD_CALLS, SHORT_TOKENS
from gruve.model.sampling import SamplingParameters

GREEDY = SamplingParameters(temperature=0.0)
START = np.zeros(1, dtype=np.int32)


def sequence(id_, *, prompt=0, credit=None, pace=None, window=None):
    forced = np.zeros(prompt, dtype=np.int32)
    admission = Admission(GREEDY, START, 0, forced, max_tokens=1 << 20, max_tokens_per_second=pace, window=window)
    return Sequence(id_, admission, credit=credit)


def ready(s, now):
    return s.window != 0 and (s.forced_left > 0 or (s.credit != 0 and s.ready_s <= now))


class Simulation:
    """Uses a scheduler as an engine does, on its own clock, and checks every call."""

    def __init__(self, chance: random.Random, slots: int, micro_batch: int) -> None:
        self.chance, self.slots, self.micro_batch = chance, slots, micro_batch
        self.scheduler = Scheduler(slots, micro_batch)
        self.now = 100.0
        self.alive: dict[int, Sequence] = {}
        self.arrivals: list[int] = []
        self.waited: dict[int, int] = {}
        self.most_running: dict[int, int] = {}
        self.ahead = 0
        self.ids = 0

    def join(self):
        self.ids += 1
        new = sequence(
            self.ids,
            prompt=self.chance.choice([0, 0, 1, 5, 100]),
            credit=self.chance.choice([None, None, 0, 3]),
            pace=self.chance.choice([None, None, None, 1.0, 50.0]),
            window=self.chance.choice([None, None, 4]),
        )
        self.scheduler.add(new)
        self.alive[new.id] = new
        self.arrivals.append(new.id)

    def leave(self):
        if self.alive:
            victim = self.alive.pop(self.chance.choice(list(self.alive)))
            self.scheduler.remove(victim)
            self.scheduler.remove(victim)  # removing it again does nothing

    def grant(self):
        if self.alive:
            granted = self.alive[self.chance.choice(list(self.alive))]
            self.scheduler.grant(granted, self.chance.choice([0, 1, 4]), self.chance.choice([0, 2, 8]))

    def call(self):
        self.admit()
        rows = self.scheduler.pick(self.now)
        self.check(rows)
        self.finish(rows)

    def two_calls(self):
        self.admit()
        calls = [self.scheduler.pick(self.now, max(2, self.micro_batch // 2)) for _ in range(2)]
        ids = [row.id for rows in calls for row in rows]
        assert len(set(ids)) == len(ids) == self.scheduler.in_flight, "no row is in two calls"
        self.chance.shuffle(calls)
        for rows in calls:
            self.grant_in_flight(rows)
            self.finish(rows)
        assert not self.scheduler.in_flight
        self.waited.clear()  # the bounds hold for calls that follow each other
        self.ahead = 0

    def grant_in_flight(self, rows):
        for row in rows:
            self.scheduler.grant(row, self.chance.choice([0, 1]), self.chance.choice([0, 1]))

    def finish(self, rows):
        for row in rows:
            row.advance(self.chance.randint(1, min(row.step_limit(), 8)), self.now)
            if self.chance.random() < 0.1:
                row.ended = True
                del self.alive[row.id]
        self.scheduler.finish_call(rows)

    def admit(self):
        waiting = [i for i in self.arrivals if i in self.alive and i not in self.scheduler.running]
        free = self.slots - len(self.scheduler.running)
        admitted = self.scheduler.admit()
        assert [s.id for s in admitted] == waiting[:free], "slots are given in order of arrival"
        slots = [s.slot for s in self.scheduler.running.values()]
        assert len(set(slots)) == len(slots) <= self.slots
        assert set(slots) <= set(range(self.slots))
        left = [i for queue in self.scheduler._tenants.values() for i in queue.waiting]
        assert len(left) == self.scheduler.waiting
        assert {*self.scheduler.running, *left} == set(self.alive), "no sequence is lost"

    def check(self, rows):
        running, picked = self.scheduler.running.values(), {row.id for row in rows}
        could = [s for s in running if ready(s, self.now)]
        assert picked <= {s.id for s in could}, "no row is picked before pace and credit allow it"
        assert len(rows) == len(picked) == min(self.micro_batch, len(could)), "no place is left empty"
        firsts = [s for s in could if s.prompting]
        half = self.micro_batch // 2
        taken_by_firsts = sum(row.prompting for row in rows)
        assert taken_by_firsts >= min(half, len(firsts)), "rows without a token go first"
        decoding = len(could) - len(firsts)
        left_out = decoding - (len(rows) - taken_by_firsts)
        denied = min(decoding, self.micro_batch - half) - (decoding - left_out)
        self.ahead = max(0, self.ahead + denied) if left_out else 0
        assert self.ahead <= BURST_CALLS * (self.micro_batch - half), (
            "and exceed their half by a bounded number of places"
        )
        for s in running:
            if s.id in picked or not ready(s, self.now):
                self.waited[s.id] = self.most_running[s.id] = 0
                continue
            self.waited[s.id] = self.waited.get(s.id, 0) + 1
            self.most_running[s.id] = max(self.most_running.get(s.id, 0), len(self.scheduler.running))
            # A prompt that two more calls finish may overtake another prompt; a burst of prompts may overtake a
            # decoding row.
            rivals = 3 * self.most_running[s.id] if s.prompting else self.most_running[s.id] + BURST_CALLS * half
            assert self.waited[s.id] <= math.ceil(rivals / half), "no row waits longer than the bound"


def simulate(seed, slots, micro_batch, calls, *, workers=False):
    chance = random.Random(seed)
    simulation = Simulation(chance, slots, micro_batch)
    for _ in range(chance.randint(0, 2 * slots)):
        simulation.join()
    for _ in range(calls):
        for _ in range(chance.choice([0, 0, 1, 3])):
            chance.choice([simulation.join, simulation.join, simulation.leave, simulation.grant])()
        simulation.now += chance.choice([0.0, 0.001, 0.02, 1.0])
        simulation.call()
        if workers:
            simulation.two_calls()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(2, 9))
def test_every_schedule_keeps_the_bounds(seed, slots, micro_batch):
    simulate(seed, slots, micro_batch, calls=60)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(2, 9))
def test_calls_in_flight_at_the_same_time_have_no_row_in_common(seed, slots, micro_batch):
    simulate(seed, slots, micro_batch, calls=30, workers=True)


def call_of(scheduler, rows, now=0.0):
    """Makes a call of one step and returns the ids of its rows."""
    picked = scheduler.pick(now, rows)
    for row in picked:
        row.advance(1, now)
    scheduler.finish_call(picked)
    return [row.id for row in picked]


def decoding(*ids):
    rows = [sequence(i) for i in ids]
    for row in rows:
        row.generated = 1
    return rows


def test_a_burst_of_prompts_is_read_at_once():
    scheduler = running(*decoding(*range(4)), *[sequence(i, prompt=3) for i in range(10, 18)])
    assert [call_of(scheduler, 8) for _ in range(4)] == [list(range(10, 18))] * 4
    assert call_of(scheduler, 4) == [0, 1, 2, 3]


def test_a_flood_of_prompts_leaves_half_of_a_call_to_decoding_rows():
    scheduler = running(*decoding(*range(8)), *[sequence(i, prompt=10_000) for i in range(10, 18)])
    calls = [call_of(scheduler, 8) for _ in range(100)]
    alone = sum(all(i >= 10 for i in ids) for ids in calls)
    assert alone == LEAD_CALLS
    assert all(sum(i < 10 for i in ids) == 4 for ids in calls[alone:])


@pytest.mark.parametrize(("prompt", "lead"), [(SHORT_TOKENS, BURST_CALLS), (SHORT_TOKENS + 1, LEAD_CALLS)])
def test_a_burst_of_short_prompts_may_lead_for_longer(prompt, lead):
    scheduler = running(*decoding(*range(8)), *[sequence(i, prompt=prompt) for i in range(10, 250)])
    calls = []
    for _ in range(25):
        rows = scheduler.pick(0.0, 8)  # prompts that no call finishes, so that all stay as short as they are
        calls.append([row.id for row in rows])
        scheduler.finish_call(rows)
    assert sum(all(i >= 10 for i in ids) for ids in calls) == lead


@pytest.mark.parametrize("streams", [1, 3])
def test_a_few_streams_among_long_prompts_miss_few_calls(streams):
    rows = decoding(*range(streams))
    scheduler = running(*rows, *[sequence(i, prompt=10_000) for i in range(10, 26)])
    calls = [call_of(scheduler, 4) for _ in range(100)]
    for row in rows:
        at = [-1, *[turn for turn, ids in enumerate(calls) if row.id in ids], 100]
        assert max(b - a for a, b in itertools.pairwise(at)) - 1 <= LEAD_CALLS + streams // 2


def test_decoding_rows_get_back_the_places_that_a_burst_took():
    rows, flood = decoding(*range(8)), [sequence(i, prompt=10_000) for i in range(10, 18)]
    scheduler = running(*rows, *flood)
    while 0 not in call_of(scheduler, 8):
        pass
    for row in flood:
        scheduler.remove(row)
    for _ in range(8):
        assert all(i < 10 for i in call_of(scheduler, 4))
    for row in [sequence(i, prompt=10_000) for i in range(20, 28)]:
        scheduler.add(row)
    scheduler.admit()
    calls = [call_of(scheduler, 8) for _ in range(20)]
    assert [sum(i < 10 for i in ids) for ids in calls] == [0] * 4 + [4] * 16


def test_a_prompt_that_is_nearly_read_goes_before_those_not_begun():
    scheduler = running(sequence(1, prompt=10_000), *[sequence(i, prompt=2) for i in range(2, 5)])
    assert [call_of(scheduler, 2) for _ in range(5)] == [[1, 2], [2, 3], [2, 3], [3, 4], [4, 1]]


@settings(max_examples=5)
@given(st.integers(0, 2**32))
def test_hundreds_of_rows_keep_the_bounds(seed):
    simulate(seed, slots=400, micro_batch=64, calls=40)


@pytest.mark.slow
@settings(max_examples=600)
@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(2, 64))
def test_every_schedule_keeps_the_bounds_for_long(seed, slots, micro_batch):
    simulate(seed, slots, micro_batch, calls=150)


def running(*sequences, slots=64):
    scheduler = Scheduler(slots, 64)
    for s in sequences:
        scheduler.add(s)
    scheduler.admit()
    return scheduler


def test_the_first_to_arrive_gets_the_first_free_slot():
    a, b, c = (sequence(i) for i in range(3))
    scheduler = running(a, b, c, slots=1)
    assert (a.slot, b.slot, c.slot) == (0, None, None)
    scheduler.remove(b)
    scheduler.remove(a)
    assert scheduler.admit() == [c]
    assert c.slot == 0


def test_a_row_without_credit_is_parked_until_it_is_granted_some():
    row = sequence(1, credit=0)
    scheduler = running(row)
    assert not scheduler.ready()
    scheduler.grant(row, 2)
    assert scheduler.pick(0.0) == [row]
    assert row.step_limit() == 2


def test_a_row_without_credit_still_reads_its_prompt():
    row = sequence(1, prompt=5, credit=0)
    assert running(row).pick(0.0) == [row]
    assert row.step_limit() == 5


def test_a_row_without_window_is_parked_even_in_its_prompt_until_it_gets_one():
    row = sequence(1, prompt=5, window=2)
    scheduler = Scheduler(1, 2)
    scheduler.add(row)
    scheduler.admit()
    assert (scheduler.pick(0.0), row.step_limit()) == ([row], 2)
    row.advance(2, 0.0)
    scheduler.finish_call([row])
    assert scheduler.pick(0.0) == []
    scheduler.grant(row, credit=3)
    assert scheduler.pick(0.0) == []
    scheduler.grant(row, window=4)
    assert (scheduler.pick(0.0), row.step_limit()) == ([row], 4)


@pytest.mark.parametrize("bound", [{"credit": 1}, {"pace": 1.0}, {"window": 4}])
def test_slots_are_full_only_of_rows_that_no_client_slows_down(bound):
    rows = [sequence(1), sequence(2, **bound), sequence(3)]
    scheduler = Scheduler(2, 4)
    for row in rows:
        scheduler.add(row)
    assert not scheduler.is_full
    scheduler.admit()
    assert not scheduler.is_full
    scheduler.remove(rows[1])
    assert not scheduler.is_full
    scheduler.admit()
    assert scheduler.is_full


def test_a_grant_gives_no_bound_to_a_row_without_one():
    row = sequence(1)
    scheduler = running(row)
    scheduler.grant(row, 3, 3)
    assert (row.credit, row.window) == (None, None)


def test_a_paced_row_takes_one_token_and_wakes_at_its_time():
    row = sequence(1, pace=10.0)
    scheduler = running(row)
    assert scheduler.pick(1.0) == [row]
    assert row.step_limit() == 1
    row.generated, row.ready_s = 1, 1.1
    scheduler.finish_call([row])
    assert (scheduler.ready(), scheduler.next_wake_s()) == (False, 1.1)
    assert scheduler.pick(1.09) == []
    assert scheduler.pick(1.1) == [row]


def test_many_grants_to_a_paced_row_add_no_heap_entries():
    row = sequence(1, pace=0.01, credit=1)
    scheduler = running(row)
    scheduler.pick(0.0)
    row.generated, row.ready_s = 1, 100.0
    scheduler.finish_call([row])
    for _ in range(1_000):
        scheduler.grant(row, 1)
    assert len(scheduler._paced) == 1


def test_a_micro_batch_too_small_for_two_queues_is_refused():
    with pytest.raises(ValueError, match="micro_batch is 1; at least 2"):
        Scheduler(4, 1)
