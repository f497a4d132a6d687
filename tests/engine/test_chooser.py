"""The choice of a call: which rows it has, how many steps, and whether it has the whole machine."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.engine.chooser import FEW_ROWS, FEW_ROWS_CALL_S, CallChooser
from gruve.engine.scheduler import Scheduler
from gruve.engine.sequence import Admission, Sequence
from gruve.engine.step_times import MAX_STEPS
from gruve.model.sampling import SamplingParameters

START = np.zeros(1, dtype=np.int32)


def sequence(id_, prompt=0, **admission):
    admission = {"max_tokens": 1 << 20, **admission}
    return Sequence(id_, Admission(SamplingParameters(), START, 0, np.zeros(prompt, dtype=np.int32), **admission))


def chooser_of(rows, *, workers=1, worker_rows=16, max_call_s=0.01, pipelined=False):
    scheduler = Scheduler(max(1, len(rows)), 64)
    for row in rows:
        scheduler.add(row)
    scheduler.admit()
    return CallChooser(scheduler, workers=workers, worker_rows=worker_rows, max_call_s=max_call_s, pipelined=pipelined)


@given(st.integers(0, 40), st.integers(1, 4), st.integers(2, 16), st.booleans())
def test_rows_are_shared_among_workers_and_one_row_gets_the_whole_machine(count, workers, worker_rows, pipelined):
    chooser = chooser_of(
        [sequence(i) for i in range(count)], workers=workers, worker_rows=worker_rows, pipelined=pipelined
    )
    max_rows, exclusive = chooser.share()
    assert exclusive == (workers == 1 or count < 2)
    assert max_rows == (worker_rows if exclusive else min(worker_rows, -(-count // workers)))
    assert chooser.can_pick() == (count > 0)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 4), st.integers(2, 16))
def test_workers_never_share_a_row_and_a_call_with_the_whole_machine_is_the_only_one(seed, count, workers, worker_rows):
    chance = random.Random(seed)
    chooser = chooser_of([sequence(i) for i in range(count)], workers=workers, worker_rows=worker_rows)
    calls: dict[int, tuple[list[Sequence], bool]] = {}
    for _ in range(40):
        worker = chance.randrange(workers)
        if worker in calls:
            chooser.scheduler.finish_call(calls.pop(worker)[0])
        rows, exclusive = chooser.pick(0.0, [])
        if rows:
            calls[worker] = rows, exclusive
        ids = [row.id for rows, _ in calls.values() for row in rows]
        assert len(set(ids)) == len(ids)
        assert all(len(rows) <= worker_rows for rows, _ in calls.values())
        assert len(calls) == 1 or not any(exclusive for _, exclusive in calls.values())


def test_no_worker_waits_while_rows_are_left_for_it():
    chooser = chooser_of([sequence(i) for i in range(8)], workers=4)
    picked = [chooser.pick(0.0, [])[0] for _ in range(4)]
    assert [len(rows) for rows in picked] == [2, 2, 2, 2]
    assert not chooser.can_pick()


def test_a_worker_gets_nothing_while_another_has_the_whole_machine_unless_calls_are_pipelined():
    for pipelined in (False, True):
        chooser = chooser_of([sequence(1)], workers=1 if pipelined else 2, pipelined=pipelined)
        chooser.pick(0.0, [])
        assert chooser.share() == (16 if pipelined else 0, True)


def test_a_pipelined_call_takes_new_rows_first_and_then_those_that_can_continue():
    rows = [sequence(i, max_tokens=1 if i in (0, 2) else 1 << 20) for i in range(8)]
    chooser = chooser_of(rows, worker_rows=5, pipelined=True)
    first, _ = chooser.pick(0.0, [])
    for row in first:
        row.submitted = 1
    second, exclusive = chooser.pick(0.0, first)
    assert ([row.id for row in second], exclusive) == ([5, 6, 7, 1, 3], True)  # rows 0 and 2 may end in the first call
    assert [row.in_flight for row in rows] == [1, 2, 1, 2, 1, 1, 1, 1]


row_kinds = st.tuples(
    st.sampled_from([0, 0, 1, 5, 100]),
    st.sampled_from([0, 3]),
    st.sampled_from([None, None, None, 5.0]),
    st.sampled_from([None, None, 2, 30]),
)


@given(st.lists(row_kinds, min_size=1, max_size=8), st.booleans(), st.integers(1, 4_000), st.integers(1, 20))
def test_a_call_takes_the_steps_that_its_time_its_limits_and_the_first_tokens_awaited_allow(
    kinds, exclusive, step_us, max_call_ms
):
    rows = []
    for i, (prompt, generated, pace, credit) in enumerate(kinds):
        rows.append(sequence(i, prompt, max_tokens_per_second=pace))
        if generated:
            rows[-1].advance(prompt + generated, 0.0)
        rows[-1].credit = credit
    chooser = chooser_of(rows, max_call_s=max_call_ms / 1e3)
    unknown = chooser.plan(rows, exclusive=exclusive)
    assert unknown.steps == 1, "a call of a size not seen yet takes one step"
    chooser.record(unknown, step_us / 1e6)
    plan, few = chooser.plan(rows, exclusive=exclusive), exclusive and len(rows) <= FEW_ROWS
    max_s = min(max_call_ms / 1e3, FEW_ROWS_CALL_S) if few else max_call_ms / 1e3
    awaited = [row.forced_left + (1 if few else 2) for row in rows if row.prompting]
    limits = [row.step_limit() for row in rows]
    fitting = max(1, int(max_s / (step_us / 1e6)))
    assert (plan.rows, plan.limits, plan.exclusive) == (rows, limits, exclusive)
    assert plan.steps == min(fitting, MAX_STEPS, max(limits), *awaited)


def test_step_times_of_calls_with_and_without_the_whole_machine_are_kept_apart():
    rows = [sequence(i) for i in range(8)]
    for row in rows:
        row.advance(1, 0.0)  # no reader waits for a first token
    chooser = chooser_of(rows)
    chooser.record(chooser.plan(rows, exclusive=True), 0.001)
    assert chooser.plan(rows, exclusive=True).steps == 10
    assert chooser.plan(rows, exclusive=False).steps == 1
