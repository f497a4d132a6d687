"""Pace, credit and delivery through an engine, on a clock that the test sets."""

from __future__ import annotations

import pytest

from decoding import FakeBackend, admission_of, alone
from engines import Clock, delivered, engine_of, wake
from gruve.engine.sequence import FinishReason

ENDLESS = 1 << 30
STEPWISE = {"max_call_ms": 1e-6}
"""Calls of one step."""


def test_the_first_and_the_last_tokens_are_delivered_at_once_and_those_between_together():
    with engine_of(FakeBackend(), clock=Clock(), message_gap_s=1e-9) as (engine, recorder):
        recorder.wait_for_end(few := engine.admit(admission_of(max_tokens=20)))
        recorder.wait_for_end(sequence := engine.admit(admission_of(max_tokens=100)))
    assert delivered(recorder, few) == [1, 19]
    assert delivered(recorder, sequence) == [1, 99]  # on a clock that does not move, the time never comes


@pytest.mark.parametrize(("step_s", "expected"), [(0.001, [1, 19, 32]), (0.013, [1, 1, 2, 3]), (0.1, [1, 1, 1, 1])])
def test_a_reader_of_50_tokens_a_second_does_not_wait_for_output_that_is_held(step_s, expected):
    clock, backend = Clock(), FakeBackend()
    backend.hook = lambda slots: setattr(clock, "now", clock.now + step_s)
    with engine_of(backend, clock=clock, message_gap_s=step_s / 2, **STEPWISE) as (engine, recorder):
        recorder.wait_for_end(sequence := engine.admit(admission_of(max_tokens=200)))
    assert delivered(recorder, sequence)[: len(expected)] == expected


def test_output_of_a_stream_that_slows_down_is_held_for_a_second_at_most():
    clock, backend = Clock(), FakeBackend()
    backend.hook = lambda slots: setattr(clock, "now", clock.now + (0.001 if clock.now < 1.0 else 0.3))
    with engine_of(backend, clock=clock, message_gap_s=0.01, **STEPWISE) as (engine, recorder):
        recorder.wait_for_end(sequence := engine.admit(admission_of(max_tokens=1_040)))
    assert delivered(recorder, sequence)[-10:-1] == [3] * 9  # 0.9 s old, and the next turn would come after 1.2 s


def test_a_paced_token_is_delivered_if_the_next_one_would_come_too_late():
    clock = Clock()
    with engine_of(FakeBackend(), clock=clock, message_gap_s=0.5) as (engine, recorder):
        sequence = engine.admit(admission_of(max_tokens=3, max_tokens_per_second=1.0))
        for second in (1.0, 2.0):
            recorder.wait(lambda recorder, second=second: len(recorder.tokens.get(sequence, ())) == second)
            clock.now = second
            wake(engine)
        recorder.wait_for_end(sequence)
    assert delivered(recorder, sequence) == [1, 1, 1]


def test_a_sequence_that_parks_without_credit_has_no_undelivered_output():
    with engine_of(FakeBackend(), message_gap_s=1e6) as (engine, recorder):
        sequence = engine.admit(admission_of([1, 2], max_tokens=ENDLESS), credit=7)
        recorder.wait(lambda recorder: len(recorder.tokens.get(sequence, ())) == 9)
        engine.grant(sequence, 5)
        recorder.wait(lambda recorder: len(recorder.tokens[sequence]) == 14)


def test_at_most_as_many_tokens_are_held_as_the_admission_allows():
    with engine_of(FakeBackend(), message_gap_s=1e6, **STEPWISE) as (engine, recorder):
        recorder.wait_for_end(sequence := engine.admit(admission_of(max_tokens=20, max_pending_output=6)))
    assert delivered(recorder, sequence) == [1, 6, 6, 6, 1]


def test_a_cancelled_sequence_ends_with_all_output_that_was_held():
    backend = FakeBackend()
    with engine_of(backend, message_gap_s=1e6) as (engine, recorder):
        sequence = engine.admit(admission_of(max_tokens=ENDLESS))
        recorder.wait(lambda recorder: len(recorder.calls) > 20)
        engine.cancel(sequence)
        last = recorder.wait_for_end(sequence)
    tokens, states, _ = alone(FakeBackend(), admission_of(max_tokens=len(recorder.tokens[sequence])))
    assert len(last.tokens) > 10
    assert (recorder.tokens[sequence], last.state) == (tokens, states[-1])


def test_without_delivery_of_forced_tokens_the_first_token_is_the_first_generated_one():
    admission = admission_of([3, 4, 5], max_tokens=4, deliver_forced=False)
    with engine_of(FakeBackend()) as (engine, recorder):
        recorder.wait_for_end(sequence := engine.admit(admission))
    (first, *_) = [progress for call in recorder.calls for progress in call.progress]
    assert (first.position, first.forced) == (4, 0)
    assert recorder.tokens[sequence] == alone(FakeBackend(), admission_of([3, 4, 5], max_tokens=4))[0][3:]


def test_a_paced_sequence_that_is_admitted_again_generates_nothing_before_its_time():
    clock = Clock()
    with engine_of(FakeBackend(), clock=clock) as (engine, recorder):
        early = engine.admit(admission_of([3, 4], max_tokens=1, max_tokens_per_second=1.0, ready_s=7.0))
        recorder.wait_for_end(engine.admit(admission_of(max_tokens=9)))
        assert early not in recorder.last
        clock.now = 7.0
        wake(engine)
        assert recorder.wait_for_end(early).finish_reason is FinishReason.LENGTH


def test_paced_rows_take_one_token_a_call_and_no_other_row_waits_for_them():
    clock = Clock()
    backend = FakeBackend()
    with engine_of(backend, clock=clock) as (engine, recorder):
        paced = engine.admit(admission_of([1, 2], max_tokens=3, max_tokens_per_second=1.0))
        recorder.wait(lambda recorder: len(recorder.tokens.get(paced, ())) == 3)
        assert recorder.wait_for_end(engine.admit(admission_of(max_tokens=50))).finish_reason is FinishReason.LENGTH
        assert len(recorder.tokens[paced]) == 3
        for second in (1.0, 2.0):
            clock.now = second
            wake(engine)
            recorder.wait(lambda recorder, second=second: len(recorder.tokens[paced]) == 3 + second)
        assert recorder.wait_for_end(paced).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("bound", [{"max_tokens_per_second": 50.0}, {"window": 5}, {"credit": 5}])
def test_what_a_client_slows_down_says_nothing_of_how_long_others_take(bound):
    with engine_of(FakeBackend()) as (engine, recorder):
        credit = bound.get("credit")
        sequence = engine.admit(admission_of(max_tokens=5, **{k: v for k, v in bound.items() if k != "credit"}), credit)
        assert recorder.wait_for_end(sequence).finish_reason is FinishReason.LENGTH
        assert engine.slot_times.held_s == 0.0
        assert recorder.wait_for_end(engine.admit(admission_of(max_tokens=5))).finish_reason is FinishReason.LENGTH
        assert engine.slot_times.held_s > 0.0


def test_a_row_with_a_window_is_decoded_exactly_as_far_as_it_is_acknowledged():
    with engine_of(FakeBackend()) as (engine, recorder):
        sequence = engine.admit(admission_of([1, 2, 3], max_tokens=ENDLESS, window=2))
        recorder.wait(lambda recorder: len(recorder.tokens.get(sequence, ())) == 2)
        engine.acknowledge(sequence, 4)
        recorder.wait(lambda recorder: len(recorder.tokens[sequence]) == 6)
        assert recorder.wait_for_end(engine.admit(admission_of(max_tokens=20))).finish_reason is FinishReason.LENGTH
        assert len(recorder.tokens[sequence]) == 6


def test_a_row_with_credit_generates_exactly_what_it_is_granted():
    with engine_of(FakeBackend()) as (engine, recorder):
        sequence = engine.admit(admission_of([1, 2, 3], max_tokens=ENDLESS), credit=2)
        recorder.wait(lambda recorder: len(recorder.tokens.get(sequence, ())) == 5)
        engine.grant(sequence, 4)
        recorder.wait(lambda recorder: len(recorder.tokens[sequence]) == 9)
        assert recorder.wait_for_end(engine.admit(admission_of(max_tokens=20))).finish_reason is FinishReason.LENGTH
        assert len(recorder.tokens[sequence]) == 9
