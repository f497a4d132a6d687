"""A worker's calls in flight: their order, their number, and the counts on their rows."""

from __future__ import annotations

import pytest

from decoding import AheadBackend, FakeBackend, admission_of, row_of
from gruve.engine.calls import CallQueue
from gruve.engine.chooser import CallPlan
from gruve.engine.sequence import Sequence


def rows_in(backend, count=3):
    rows = [Sequence(i, admission_of(max_tokens=1 << 20, seed=i), slot=i) for i in range(count)]
    for row in rows:
        backend.admit(row.slot, row_of(row.admission), None)
    return rows


def plan_of(rows, steps=4, limit=9):
    return CallPlan(rows, [limit] * len(rows), steps, exclusive=True)


def test_an_asynchronous_backend_has_two_calls_and_any_other_one():
    for backend, most in [(FakeBackend(), 1), (AheadBackend(), 2)]:
        calls, plan = CallQueue(backend), plan_of(rows_in(backend))
        for count in range(most):
            assert (len(calls), calls.full) == (count, False)
            calls.submit(plan)
        assert calls.full


def test_calls_return_in_the_order_they_were_submitted():
    backend = AheadBackend()
    calls, (a, b) = CallQueue(backend), rows_in(backend, 2)
    calls.submit(plan_of([a]))
    calls.submit(plan_of([b]))
    assert (calls.oldest_rows, calls.latest_rows) == ([a], [b])
    assert [calls.finish().plan.rows for _ in range(2)] == [[a], [b]]
    assert calls.latest_rows == []


@pytest.mark.parametrize(("steps", "limit"), [(4, 9), (9, 4)])
def test_rows_count_the_steps_that_their_calls_in_flight_may_take(steps, limit):
    backend = AheadBackend()
    calls, rows = CallQueue(backend), rows_in(backend)
    for at, submitted in enumerate([4, 8]):
        calls.submit(plan_of(rows[: 3 - at], steps, limit))
        assert rows[0].submitted == submitted
    assert [row.submitted for row in rows] == [8, 8, 4]
    calls.finish()
    calls.finish()
    assert [row.submitted for row in rows] == [0, 0, 0]


def test_a_call_that_the_backend_refuses_is_not_in_flight():
    backend = AheadBackend()
    calls, rows = CallQueue(backend), rows_in(backend)
    backend.submit = lambda *call: 1 / 0
    with pytest.raises(ZeroDivisionError):
        calls.submit(plan_of(rows))
    assert (len(calls), [row.submitted for row in rows]) == (0, [0, 0, 0])


def test_a_call_that_raises_is_no_longer_in_flight():
    backend = FakeBackend()
    calls, rows = CallQueue(backend), rows_in(backend)
    backend.hook = lambda slots: 1 / 0
    calls.submit(plan_of(rows))
    with pytest.raises(ZeroDivisionError):
        calls.finish()
    assert len(calls) == 0


def test_a_call_is_timed_from_when_the_backend_was_free_for_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gruve.engine.calls.time.perf_counter", lambda: now[0])
    backend = AheadBackend()
    calls, rows = CallQueue(backend), rows_in(backend)
    calls.submit(plan_of(rows))
    now[0] = 1.0
    calls.submit(plan_of(rows))
    now[0] = 3.0
    assert calls.finish().seconds == 3.0
    now[0] = 5.0
    assert calls.finish().seconds == 2.0
