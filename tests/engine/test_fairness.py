"""Tenants share calls by tokens served and slots by number, for their weights, however many streams each has."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.engine.scheduler import MAX_PREEMPTED, OWN_CALL_ROWS, Scheduler
from gruve.engine.sequence import Admission, FinishReason, Sequence
from gruve.engine.step_times import MAX_STEPS
from gruve.model.sampling import SamplingParameters

GREEDY = SamplingParameters(temperature=0.0)
START = np.zeros(1, dtype=np.int32)


def sequence(id_, tenant, *, weight=1.0, prompt=0, pace=None, credit=None):
    forced = np.zeros(prompt, dtype=np.int32)
    rest = {"max_tokens_per_second": pace, "tenant": tenant, "weight": weight}
    return Sequence(id_, Admission(GREEDY, START, 0, forced, max_tokens=1 << 30, **rest), credit=credit)


class Tenant:
    """What the simulation knows of a tenant: plain sums, no queue."""

    def __init__(self, name: str, weight: float) -> None:
        self.name, self.weight = name, weight
        self.alive: list[Sequence] = []
        self.served = 0.0
        """Tokens for its weight, since it is backlogged."""


class Machine:
    """Uses a scheduler as workers do, with several calls in flight that return in any order, and counts by itself."""

    def __init__(self, chance: random.Random, slots: int, micro_batch: int, calls: int) -> None:
        self.chance, self.calls = chance, calls
        self.scheduler = Scheduler(slots, micro_batch)
        weights = [chance.choice([0.5, 1.0, 1.0, 3.0]) for _ in range(chance.randint(2, 5))]
        self.tenants = {f"t{i}": Tenant(f"t{i}", weight) for i, weight in enumerate(weights)}
        rows = micro_batch * calls
        self.bound = 3 * rows * MAX_STEPS / min(weights)
        self.flying: list[list[Sequence]] = []
        self.together: dict[tuple[str, str], float] = {}
        """For each pair of tenants: how much more the first was served since both are backlogged."""
        self.now = 1.0
        self.ids = 0

    def join(self):
        tenant = self.tenants[self.chance.choice(list(self.tenants))]
        for _ in range(self.chance.choice([1, 1, 3, 20])):
            self.ids += 1
            new = sequence(
                self.ids,
                tenant.name,
                weight=tenant.weight,
                prompt=self.chance.choice([0, 0, 5, 300]),
                pace=self.chance.choice([None, None, None, 40.0]),
                credit=self.chance.choice([None, None, 60]),
            )
            self.scheduler.add(new)
            tenant.alive.append(new)

    def leave(self):
        tenant = self.tenants[self.chance.choice(list(self.tenants))]
        gone = [s for s in tenant.alive if not s.in_flight and self.chance.random() < 0.3]
        for victim in gone:
            tenant.alive.remove(victim)
            self.scheduler.remove(victim)

    def pick(self):
        self.scheduler.admit()
        self.now += self.chance.choice([0.0, 0.01, 0.1])
        rows = self.scheduler.pick(self.now, self.chance.choice([None, 2, 5]))
        self.flying.append(rows)
        backlogged = {t.name for t in self.tenants.values() if self.ready_left(t)}
        for a in self.tenants:
            for b in self.tenants:
                if a != b and {a, b} <= backlogged:
                    self.together.setdefault((a, b), 0.0)
                else:
                    self.together.pop((a, b), None)

    def ready_left(self, tenant):
        """Whether a call left out a row of the tenant that it could have taken."""
        rows = [s for s in tenant.alive if s.id in self.scheduler.running and not s.in_flight]
        return any(s.forced_left > 0 or (s.credit != 0 and s.ready_s <= self.now) for s in rows)

    def finish(self):
        rows = self.flying.pop(self.chance.randrange(len(self.flying)))
        steps = self.chance.choice([1, 8, MAX_STEPS])
        for row in rows:
            taken = min(row.step_limit(), self.chance.randint(1, steps))
            row.advance(taken, self.now)
            for pair in self.together:
                sign = (pair[0] == row.tenant) - (pair[1] == row.tenant)
                self.together[pair] += sign * taken / row.weight
            if self.chance.random() < 0.02:
                row.ended = True
                self.tenants[row.tenant].alive.remove(row)
        self.scheduler.finish_call(rows)
        assert all(abs(difference) <= self.bound for difference in self.together.values())

    def run(self, turns):
        for _ in range(turns):
            for _ in range(self.chance.choice([0, 1, 1, 2])):
                self.chance.choice([self.join, self.join, self.leave])()
            self.pick()
            while len(self.flying) >= self.calls or (self.flying and self.chance.random() < 0.4):
                self.finish()


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(2, 60), st.integers(2, 12), st.integers(1, 3))
def test_while_two_tenants_are_backlogged_their_tokens_differ_by_a_bounded_amount(seed, slots, micro_batch, calls):
    Machine(random.Random(seed), slots, micro_batch, calls).run(120)


def serve(scheduler, calls, *, steps=8, places=64):
    """The tokens that each tenant is served in so many calls."""
    served: dict[str, int] = {}
    for _ in range(calls):
        scheduler.admit()
        rows = scheduler.pick(0.0, places)
        for row in rows:
            row.advance(steps, 0.0)
            served[row.tenant] = served.get(row.tenant, 0) + steps
        scheduler.finish_call(rows)
    return served


def scheduler_of(*rows, slots=1_024):
    scheduler = Scheduler(slots, 64)
    for row in rows:
        scheduler.add(row)
    return scheduler


def streams(tenant, count, first=0, **more):
    return [sequence(first + i, tenant, **more) for i in range(count)]


def test_a_tenant_with_many_streams_gets_no_more_than_one_with_few():
    scheduler = scheduler_of(*streams("many", 500), *streams("few", 40, first=1_000))
    served = serve(scheduler, 200)
    assert abs(served["many"] - served["few"]) <= 64 * 8


def test_tokens_follow_the_weights():
    scheduler = scheduler_of(*streams("a", 200), *streams("b", 200, first=1_000, weight=3.0))
    served = serve(scheduler, 400)
    assert abs(served["b"] / 3 - served["a"]) <= 64 * 8


def test_the_weight_of_a_tenant_is_that_of_its_latest_sequence():
    scheduler = scheduler_of(*streams("a", 200), *streams("b", 200, first=1_000))
    scheduler.add(sequence(2_000, "b", weight=3.0))
    served = serve(scheduler, 400)
    assert abs(served["b"] / 3 - served["a"]) <= 64 * 8


def test_a_tenant_gets_all_it_asks_for_as_long_as_it_is_below_its_share():
    scheduler = scheduler_of(*streams("many", 500), *streams("one", 1, first=1_000))
    served = serve(scheduler, 100)
    assert served == {"many": 63 * 99 * 8, "one": 100 * 8}  # the one's prompt had a call of its own


def test_what_a_tenant_left_unused_it_cannot_claim_later():
    scheduler = scheduler_of(*streams("busy", 500), *streams("modest", 1, first=1_000))
    serve(scheduler, 300)
    for row in streams("modest", 400, first=2_000):
        scheduler.add(row)
    served = serve(scheduler, 100)
    assert abs(served["busy"] - served["modest"]) <= 3 * 64 * 8


def test_a_tenant_that_comes_later_owes_and_is_owed_nothing():
    scheduler = scheduler_of(*streams("first", 500))
    serve(scheduler, 300)
    for row in streams("second", 500, first=1_000):
        scheduler.add(row)
    served = serve(scheduler, 100)
    assert abs(served["first"] - served["second"]) <= 3 * 64 * 8


def test_a_tenant_that_comes_back_to_an_empty_machine_is_owed_nothing_either():
    rows = [*streams("a", 100), *streams("b", 100, first=1_000)]
    scheduler = scheduler_of(*rows)
    serve(scheduler, 300)
    for row in rows:
        scheduler.remove(row)
    assert not scheduler._tenants, "a tenant that has nothing takes no memory"
    for row in streams("a", 100, first=2_000):
        scheduler.add(row)
    serve(scheduler, 1)
    for row in streams("b", 100, first=3_000):
        scheduler.add(row)
    served = serve(scheduler, 50)
    assert abs(served["a"] - served["b"]) <= 3 * 64 * 8


def test_prompt_tokens_count_as_tokens_served():
    scheduler = scheduler_of(*streams("reads", 200, prompt=10_000), *streams("writes", 200, first=1_000))
    served = serve(scheduler, 200)
    assert abs(served["reads"] - served["writes"]) <= 64 * 8


def test_with_a_place_for_each_tenant_a_flood_of_prompts_still_leaves_turns_to_its_decoding_rows():
    tenants = [f"t{i}" for i in range(8)]
    scheduler = Scheduler(1_024, 8)
    decoding = [sequence(i, tenant) for i, tenant in enumerate(tenants)]
    for row in decoding:
        row.generated = 1
    for row in [*decoding, *[sequence(100 + i, t, prompt=1 << 20) for i, t in enumerate(tenants * 10)]]:
        scheduler.add(row)
    serve(scheduler, 600, steps=1, places=8)
    assert all(row.generated >= 600 // 40 for row in decoding)


def test_free_slots_go_to_the_tenant_that_holds_the_fewest():
    scheduler = scheduler_of(*streams("a", 6), *streams("b", 2, first=10), *streams("c", 9, first=20), slots=8)
    admitted = [row.tenant for row in scheduler.admit()]
    assert {t: admitted.count(t) for t in "abc"} == {"a": 3, "b": 2, "c": 3}


def preempt(scheduler):
    """Moves slots as the engine does, until none moves any more."""
    for _ in range(1_000):
        if not (victims := scheduler.preemptable()):
            return
        assert len(victims) <= MAX_PREEMPTED
        for victim in victims:
            scheduler.remove(victim)
        scheduler.admit()
        for victim in victims:
            scheduler.add(victim, first=True)
    raise AssertionError("slots move for ever")


def held(scheduler):
    tenants = [row.tenant for row in scheduler.running.values()]
    return {tenant: tenants.count(tenant) for tenant in sorted(set(tenants))}


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=6), st.data())
def test_slots_settle_where_no_tenant_has_too_few(tenants, data):
    slots = data.draw(st.integers(1, 50))
    scheduler = Scheduler(slots, 64)
    for i, (count, weight) in enumerate(tenants):  # the first ones take all slots before the others come
        for row in streams(f"t{i}", count, first=100 * i, weight=weight):
            scheduler.add(row)
        scheduler.admit()
    preempt(scheduler)
    has = held(scheduler)
    assert sum(has.values()) == min(slots, sum(count for count, _ in tenants)), "no slot stays empty"
    for i, (count, weight) in enumerate(tenants):
        mine = has.get(f"t{i}", 0)
        if mine < count:
            for j, (_, other) in enumerate(tenants):
                assert (mine + 1) / weight >= has.get(f"t{j}", 0) / other


def test_thousands_of_streams_of_a_tenant_do_not_keep_another_from_a_slot():
    scheduler = scheduler_of(*streams("many", 1_500))
    scheduler.admit()
    scheduler.add(late := sequence(5_000, "one"))
    (victim,) = scheduler.preemptable()
    assert (victim.tenant, victim.id, late.slot) == ("many", 1_023, None)
    scheduler.remove(victim)
    assert scheduler.admit() == [late]
    scheduler.add(victim, first=True)
    assert scheduler.preemptable() == []
    scheduler.remove(late)
    assert scheduler.admit() == [victim], "it gets its slot back before those that never had one"


def test_as_many_slots_move_at_once_as_others_are_to_get():
    scheduler = scheduler_of(*streams("many", 9), slots=8)
    scheduler.admit()
    for row in streams("few", 5, first=100):
        scheduler.add(row)
    assert [row.id for row in scheduler.preemptable()] == [7, 6, 5, 4]
    assert scheduler.preemptable() == [], "until these have left"


def test_sequences_in_a_call_lose_their_slots_last_and_ending_ones_never():
    rows = streams("many", 4)
    scheduler = scheduler_of(*rows, slots=4)
    scheduler.admit()
    scheduler.pick(0.0, 2)
    rows[3].finish_requested = FinishReason.CANCELLED
    for row in streams("few", 3, first=100):
        scheduler.add(row)
    assert [row.id for row in scheduler.preemptable()] == [2, 1]


def test_no_slot_moves_from_a_tenant_whose_sequences_all_end():
    rows = streams("many", 4)
    scheduler = scheduler_of(*rows, *streams("few", 1, first=100), slots=4)
    scheduler.admit()
    for row in rows:
        row.finish_requested = FinishReason.CANCELLED
    scheduler.add(sequence(200, "late"))
    assert scheduler.preemptable() == []


def test_the_prospect_of_a_tenant_is_all_slots_while_no_other_waits_and_else_its_share():
    rows = streams("a", 6)
    scheduler = scheduler_of(*rows, slots=6)
    scheduler.admit()
    assert scheduler.prospect("a", 1.0) == (6, rows)
    assert scheduler.prospect("b", 1.0) == (6, rows[:3]), "it may take three from the other"
    assert scheduler.prospect("b", 2.0) == (6, rows[:2])
    scheduler.add(sequence(6, "a"))
    assert scheduler.prospect("b", 1.0) == (3, [])
    assert scheduler.prospect("b", 2.0) == (4, [])
    for row in rows[:2]:
        scheduler.remove(row)
    own = streams("b", 2, first=100)
    for row in own:
        scheduler.add(row)
    scheduler.admit()
    assert scheduler.prospect("b", 1.0) == (3, own)


def test_a_prompt_of_a_tenant_with_few_rows_gets_a_call_of_its_own_when_its_turn_comes():
    scheduler = Scheduler(slots=200, micro_batch=64)
    for id_ in range(100):
        scheduler.add(sequence(id_, "many"))
    scheduler.admit()
    for row in (first := scheduler.pick(0.0)):
        row.advance(1, 0.0)
    scheduler.finish_call(first)
    for id_ in (100, 101):
        scheduler.add(sequence(id_, "few", prompt=16))
    scheduler.admit()
    own = scheduler.pick(0.0)
    assert [row.id for row in own] == [100, 101]
    assert {row.tenant for row in scheduler.pick(0.0)} == {"many"}
    for row in own:
        row.advance(17, 0.0)
    scheduler.finish_call(own)
    assert {row.tenant for row in scheduler.pick(0.0)} == {"few", "many"}  # after its prompts its rows join others


def beside(others, prompts):
    """The tenants of a call, where one has so many rows that decode and the other so many prompts."""
    scheduler = Scheduler(slots=200, micro_batch=64)
    rows = streams("decodes", others)
    for row in rows:
        row.generated = 1
    for row in [*rows, *streams("prompts", prompts, first=100, prompt=4)]:
        scheduler.add(row)
    scheduler.admit()
    return sorted({row.tenant for row in scheduler.pick(0.0)})


def test_a_call_of_its_own_is_for_few_rows_beside_more_of_others():
    assert beside(others=OWN_CALL_ROWS + 1, prompts=OWN_CALL_ROWS) == ["prompts"]
    assert beside(others=OWN_CALL_ROWS + 1, prompts=OWN_CALL_ROWS + 1) == ["decodes", "prompts"]
    assert beside(others=OWN_CALL_ROWS, prompts=1) == ["decodes", "prompts"]
