"""How long a step takes, and when a burst of arrivals is over."""

from __future__ import annotations

from gruve.engine.pace import Arrivals, StepTimes


def test_as_many_steps_are_taken_as_fit():
    times = StepTimes()
    assert times.steps_within(32, True, 0.005) == 1
    times.note(32, True, 2, 0.002)
    assert times.steps_within(32, True, 0.005) == 5
    assert times.steps_within(32, False, 0.005) == 1


def test_an_arrival_by_itself_is_waited_for_by_nobody():
    arrivals = Arrivals(0.002, 0.025)
    for now in (1.0, 1.002, 1.1):
        arrivals.note(now)
        assert arrivals.gathering_until_s < now


def test_a_burst_is_waited_for_until_it_pauses():
    arrivals = Arrivals(0.002, 0.025)
    for now in (1.0, 1.001, 1.0025):
        arrivals.note(now)
    assert arrivals.gathering_until_s == 1.0025 + 0.002


def test_a_burst_that_does_not_end_is_not_waited_for_any_longer():
    arrivals = Arrivals(0.002, 0.025)
    for k in range(100):
        arrivals.note(1.0 + k * 0.001)
    assert arrivals.gathering_until_s == 1.025


def test_no_pause_means_no_burst():
    arrivals = Arrivals(0.0, 0.025)
    for _ in range(3):
        arrivals.note(1.0)
    assert arrivals.gathering_until_s < 1.0
