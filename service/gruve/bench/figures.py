"""Computes the figures: percentiles, token lateness, goodput. Pure arithmetic over times; knows no clock.

Times are integer nanoseconds of one monotonic clock. Definitions follow vLLM's `benchmarks/serve.py` where it has one
(TTFT, gaps between messages), with one difference: in the open loop TTFT counts from the scheduled arrival.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

MS = 1_000_000
S = 1_000_000_000
MAX_TTFT_MS = MAX_LATENESS_MS = 50.0
"""The objective: the bounds within which a request counts as good."""
PLAYOUT_TOKENS_PER_S = 50.0
"""The rate at which a stream's tokens are consumed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One request as its client saw it."""

    scheduled_ns: int
    """The scheduled time of the request. In the closed loop it is the time of sending."""
    sent_ns: int
    times_ns: tuple[int, ...] = ()
    """The arrival of each message that contains tokens."""
    counts: tuple[int, ...] = ()
    """The number of tokens of each of them."""
    tokens: tuple[int, ...] = ()
    """The generated tokens, for comparison with a solo run."""
    prompt: tuple[int, ...] = ()
    """The transcript before `tokens`, without the start token."""
    seed: int = 0
    failed: str = ""
    """The status or error that ended the request; empty if it ended normally. A refusal is an error."""

    @property
    def ttft_ns(self) -> int | None:
        """From the scheduled arrival to the first token; None if no token arrived."""
        return self.times_ns[0] - self.scheduled_ns if self.times_ns else None


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """One run's figures over its window. Latencies are in milliseconds, NaN if there were none."""

    requests: int
    failed: int
    tokens_per_s: float
    messages_per_s: float
    tokens_per_message: float
    ttft_ms_p50: float
    ttft_ms_p99: float
    gap_ms_p50: float
    gap_ms_p99: float
    lateness_ms_p99: float
    goodput_requests_per_s: float
    slo_attainment: float
    """The share of requests that met the objective. Refused and failed ones did not."""
    client_lag_ms_p99: float
    """How late the generator sent its requests. Above a few milliseconds, the figures say little about the server."""


def percentile(values: Iterable[float], p: float) -> float:
    """The nearest-rank percentile: the smallest value such that `p` percent of all are at most as large.

    NaN if there is none.
    """
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)]


def median(values: Iterable[float]) -> float:
    """The middle value, or the mean of the two in the middle. NaN if there is none."""
    known = list(values)
    return statistics.median(known) if known else math.nan


def lateness_ns(times_ns: Sequence[int], counts: Sequence[int]) -> list[int]:
    """How late each token is for playout at a constant rate that begins with the first token's arrival; 0 if in time.

    The tokens of one message arrive together.
    """
    period = S / PLAYOUT_TOKENS_PER_S
    late: list[int] = []
    for time_ns, count in zip(times_ns, counts, strict=True):
        since, first = time_ns - times_ns[0], len(late)
        late += [max(0, int(since - i * period)) for i in range(first, first + count)]
    return late


def is_good(record: Record) -> bool:
    """Whether a request met the objective: complete, first token in time, 99th percentile of its tokens in time."""
    if record.failed or record.ttft_ns is None:
        return False
    late = percentile(lateness_ns(record.times_ns, record.counts), 99)
    return record.ttft_ns <= MAX_TTFT_MS * MS and late <= MAX_LATENESS_MS * MS


def figures(records: Sequence[Record], begin_ns: int, end_ns: int) -> Figures:
    """The figures of [begin, end): tokens and gaps by their arrival, requests by their scheduled time."""
    window_s = (end_ns - begin_ns) / S
    ours = [r for r in records if begin_ns <= r.scheduled_ns < end_ns]
    messages = [
        (time, count)
        for r in records
        for time, count in zip(r.times_ns, r.counts, strict=True)
        if begin_ns <= time < end_ns
    ]
    gaps = [
        (later - earlier) / MS
        for r in records
        for earlier, later in zip(r.times_ns, r.times_ns[1:], strict=False)
        if begin_ns <= later < end_ns
    ]
    late = [ns / MS for r in ours for ns in lateness_ns(r.times_ns, r.counts)]
    ttft = [r.ttft_ns / MS for r in ours if r.ttft_ns is not None]
    good = sum(map(is_good, ours))
    tokens = sum(count for _, count in messages)
    return Figures(
        requests=len(ours),
        failed=sum(bool(r.failed) for r in ours),
        tokens_per_s=tokens / window_s,
        messages_per_s=len(messages) / window_s,
        tokens_per_message=tokens / len(messages) if messages else math.nan,
        ttft_ms_p50=percentile(ttft, 50),
        ttft_ms_p99=percentile(ttft, 99),
        gap_ms_p50=percentile(gaps, 50),
        gap_ms_p99=percentile(gaps, 99),
        lateness_ms_p99=percentile(late, 99),
        goodput_requests_per_s=good / window_s,
        slo_attainment=good / len(ours) if ours else math.nan,
        client_lag_ms_p99=percentile([(r.sent_ns - r.scheduled_ns) / MS for r in ours], 99),
    )


def slope_per_minute(times_s: Sequence[float], values: Sequence[float]) -> float:
    """The least-squares slope of `values` over time, per minute. NaN if there are fewer than two."""
    return 60 * statistics.linear_regression(times_s, values).slope if len(times_s) > 1 else math.nan
