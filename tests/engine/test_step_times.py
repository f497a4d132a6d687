"""The estimate of a step's time."""

from __future__ import annotations

from gruve.engine.step_times import StepTimes


def test_as_many_steps_fit_as_the_estimate_of_that_size_and_kind_says():
    times = StepTimes()
    assert times.steps_within(32, True, 0.005) == 1
    times.record(32, True, 2, 0.002)
    assert times.steps_within(32, True, 0.005) == 5
    assert times.steps_within(32, False, 0.005) == 1
