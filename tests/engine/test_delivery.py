"""The delivery policy: no token is lost, and no reader waits for tokens that are held back."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from gruve.engine.delivery import MAX_BATCH_TOKENS, MAX_HELD_S, READ_TOKENS_PER_S, PendingOutput

NEVER = math.inf


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=5), st.integers(0, 5), st.booleans())))
def test_output_is_taken_once_in_order_with_its_forced_tokens_counted(turns):
    output, added, taken, forced, prompt_left = PendingOutput(), [], [], [0, 0], 6
    for at, (tokens, wanted, take) in enumerate(turns):
        count = min(wanted, len(tokens), prompt_left)
        prompt_left = 0 if count < len(tokens) else prompt_left - count  # forced tokens come first
        output.add(tokens, count)
        added, forced[0] = added + tokens, forced[0] + count
        if take:
            got, count = output.take(float(at))
            taken, forced[1] = taken + got, forced[1] + count
    got, count = output.take(0.0)
    assert (taken + got, forced[1] + count) == (added, forced[0])


@given(st.floats(1e-4, 0.5), st.floats(1e-3, 2.0), st.integers(1, 8), st.integers(1, 200))
def test_a_reader_never_runs_out_of_tokens_that_are_held(turn_s, gap_s, tokens_per_turn, turns):
    output, unread_until, last_s = PendingOutput(), -math.inf, -math.inf
    for turn in range(turns):
        now = turn * turn_s
        output.add([1] * tokens_per_turn, 0)
        if output.is_due(now, now, gap_s, 1 << 30):
            assert now + 1e-9 >= last_s + gap_s, "two deliveries are at least a gap apart"
            may_run_out = now + turn_s >= min(unread_until, last_s + MAX_HELD_S) - 1e-9
            assert may_run_out or len(output.tokens) >= MAX_BATCH_TOKENS, "output is held as long as it can be"
            tokens, _ = output.take(now)
            last_s, unread_until = now, max(unread_until, now) + len(tokens) / READ_TOKENS_PER_S
        elif now >= last_s + gap_s:
            assert now + turn_s < unread_until + 1e-9, "the next turn comes before the reader has read everything"
            assert now - last_s < MAX_HELD_S
            assert len(output.tokens) < MAX_BATCH_TOKENS


@given(st.integers(1, 50), st.floats(0, 100))
def test_output_is_due_at_once_without_a_gap_at_the_bound_and_if_no_turn_follows(count, now):
    for next_s, gap_s, max_tokens in [(now, 0.0, 1 << 30), (now, 1e6, count), (NEVER, 1e6, 1 << 30)]:
        output = PendingOutput()
        output.add([1], 0)
        output.is_due(now, now, 0.0, 1)
        output.take(now)
        output.add([1] * count, 0)
        assert output.is_due(now, next_s, gap_s, max_tokens)


def test_no_output_is_never_due():
    assert not PendingOutput().is_due(0.0, NEVER, 0.0, 1)
    assert not PendingOutput().is_due(0.0, 0.0, 1.0, 1)


def test_prompt_tokens_are_not_for_reading_and_delay_nothing():
    output = PendingOutput()
    output.add([1] * 100, 100)
    output.take(5.0)
    output.add([1], 0)
    assert output.is_due(5.0, 5.0, 1.0, 1 << 30)
    output.add([1] * 100, 100)
    output.take(5.0)
    output.add([1], 0)
    assert output.is_due(6.0, 0.0, 0.1, 1 << 30), "the reader has read the one token"


def test_a_batch_is_due_when_it_is_full_although_the_reader_has_unread_output():
    output = PendingOutput()
    output.add([1] * 1_000, 0)
    output.is_due(0.0, 0.0, 0.1, 1 << 30)
    output.take(0.0)
    output.add([1] * (MAX_BATCH_TOKENS - 1), 0)
    assert not output.is_due(0.2, 0.2, 0.1, 1 << 30)
    output.add([1], 0)
    assert output.is_due(0.2, 0.2, 0.1, 1 << 30)
