"""The counts of one sequence: what it has consumed and generated, and what it may still do."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from gruve.engine.sequence import MAX_PACE_DEBT_S, UNLIMITED, Admission, FinishReason, Sequence
from gruve.model.sampling import SamplingParameters


def sequence(*, prompt=0, credit=None, **admission):
    forced = np.zeros(prompt, dtype=np.int32)
    admission = {"max_tokens": 1 << 20, **admission}
    return Sequence(1, Admission(SamplingParameters(), np.zeros(1, np.int32), 0, forced, **admission), credit=credit)


def counts(s):
    return s.position, s.forced_left, s.generated, s.credit, s.window


@given(st.integers(0, 40), st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_steps_count_the_same_in_one_call_or_in_several(prompt, calls):
    once, often = (sequence(prompt=prompt, credit=1_000, window=1_000) for _ in range(2))
    forced = once.advance(sum(calls), 0.0)
    assert sum(often.advance(steps, 0.0) for steps in calls) == forced == min(prompt, sum(calls))
    assert counts(often) == counts(once)
    assert once.position == once.generated + forced


@given(st.floats(0.5, 1_000.0), st.lists(st.floats(0.0, 3.0), min_size=1, max_size=30))
def test_a_paced_row_is_never_ahead_of_its_pace_by_more_than_the_debt_allows(pace, delays):
    row, now, times = sequence(max_tokens_per_second=pace), 10.0, []
    for delay in delays:
        now = max(now, row.ready_s) + delay
        times.append(now)
        row.advance(1, now)
    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first <= pace * (times[last] - times[first] + MAX_PACE_DEBT_S) + 1e-6


@given(
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([None, 0, 1, 5]),
    st.sampled_from([None, 10.0]),
    st.sampled_from([None, 1, 7]),
)
def test_the_steps_of_a_call_are_the_prompt_and_what_credit_pace_and_window_allow(
    prompt, submitted, credit, pace, window
):
    row = sequence(prompt=prompt, credit=credit, max_tokens_per_second=pace, window=window)
    row.submitted = submitted
    allowed = min(UNLIMITED if credit is None else credit, UNLIMITED if pace is None else 1)
    most = prompt + allowed if window is None else min(prompt + allowed, window)
    assert row.step_limit() == max(0, most - submitted)


def test_the_steps_to_the_first_tokens_count_the_prompt_until_one_is_generated_or_submitted():
    row = sequence(prompt=7)
    assert row.steps_until(2) == 9
    row.submitted = 7
    assert row.steps_until(2) == 2
    row.submitted = 8
    assert row.steps_until(2) == UNLIMITED
    row.submitted = 0
    row.advance(8, 0.0)
    assert row.steps_until(2) == UNLIMITED


@given(st.integers(0, 30), st.integers(1, 30), st.integers(0, 40), st.integers(1, 8), st.sampled_from([None, 3, 20]))
def test_a_row_continues_only_if_the_calls_in_flight_leave_it_tokens_and_no_snapshot(
    prompt, max_tokens, submitted, steps, every
):
    assume(submitted <= prompt + max_tokens)
    row = sequence(prompt=prompt, max_tokens=max_tokens, snapshot_tokens=every)
    row.in_flight, row.submitted = 1, submitted
    may_end = submitted >= prompt + max_tokens
    snapshot_due = every is not None and submitted + steps > every
    assert row.can_continue(steps) == (not may_end and not snapshot_due)


def test_a_row_that_ends_is_to_end_or_is_in_no_call_or_two_does_not_continue():
    for change in [{"ended": True}, {"finish_requested": FinishReason.CANCELLED}, {"in_flight": 0}, {"in_flight": 2}]:
        row = sequence()
        row.in_flight = 1
        assert row.can_continue(1)
        for name, value in change.items():
            setattr(row, name, value)
        assert not row.can_continue(1)
