"""The figures' definitions, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest

from gruve.bench.figures import MS, Record, S, figures, lateness_ns, median, percentile, slope_per_minute
from gruve.bench.rounds import in_turn


def record(first_ms: int, gap_ms: int, count: int, *, scheduled_ms: int = 0, failed: str = "") -> Record:
    times = tuple((scheduled_ms + first_ms + i * gap_ms) * MS for i in range(count))
    return Record(scheduled_ms * MS, scheduled_ms * MS, times, (1,) * count, (7,) * count, failed=failed)


@pytest.mark.parametrize(("p", "expected"), [(1, 10.0), (50, 20.0), (75, 30.0), (76, 40.0), (99, 40.0), (100, 40.0)])
def test_a_percentile_is_a_value_that_was_seen(p, expected):
    assert percentile([40.0, 10.0, 30.0, 20.0], p) == expected


def test_the_median_of_an_even_number_lies_between_the_two_in_the_middle():
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.5
    assert median([5.0, 1.0, 3.0]) == 3.0


def test_alternatives_take_turns_in_beginning_a_round():
    assert [in_turn("abc", i) for i in range(4)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_nothing_has_neither_percentile_nor_median():
    assert math.isnan(percentile([], 50))
    assert math.isnan(median([]))


def test_a_token_is_late_by_what_playout_would_have_to_wait_for_it():
    times = [1000 * MS, 1020 * MS, 1090 * MS]  # at 50 tokens/s the third is due 40 ms after the first
    assert lateness_ns(times, [1, 1, 1]) == [0, 0, 50 * MS]


def test_the_tokens_of_one_message_arrive_together_and_are_due_one_by_one():
    assert lateness_ns([0, 100 * MS], [2, 3]) == [0, 0, 60 * MS, 40 * MS, 20 * MS]


def test_a_stream_that_runs_ahead_is_never_late():
    assert lateness_ns([0, MS, 2 * MS], [4, 4, 4]) == [0] * 12


def test_ttft_counts_from_the_scheduled_arrival_and_not_from_the_sending():
    late_sender = Record(0, 30 * MS, (40 * MS,), (1,), (7,))
    found = figures([late_sender], 0, S)
    assert found.ttft_ms_p50 == 40.0
    assert found.client_lag_ms_p99 == 30.0


def test_only_what_arrives_inside_the_window_is_counted():
    found = figures([record(0, 100, 20)], 500 * MS, 1_500 * MS)
    assert found.tokens_per_s == 10.0
    assert found.gap_ms_p50 == 100.0
    assert found.requests == 0


def test_refused_requests_are_misses():
    records = [record(10, 10, 5), Record(0, 0, failed="RESOURCE_EXHAUSTED")]
    found = figures(records, 0, S)
    assert (found.requests, found.failed, found.slo_attainment) == (2, 1, 0.5)


def test_a_request_is_good_if_its_first_token_and_its_tokens_are_in_time():
    good, slow_start, slow_stream = record(50, 20, 50), record(51, 20, 50), record(50, 100, 50)
    found = figures([good, slow_start, slow_stream], 0, 10 * S)
    assert found.goodput_requests_per_s == pytest.approx(0.1)


def test_tokens_per_message_is_their_ratio():
    found = figures([Record(0, 0, (MS, 2 * MS), (1, 5), (7,) * 6)], 0, S)
    assert found.tokens_per_message == 3.0


def test_memory_that_grows_by_two_a_second_grows_by_120_a_minute():
    assert slope_per_minute([10.0, 11.0, 12.0], [5.0, 7.0, 9.0]) == pytest.approx(120.0)
