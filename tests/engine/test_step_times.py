"""How long a step takes."""

from __future__ import annotations

from gruve.engine.step_times import StepTimes


def test_as_many_steps_are_taken_as_fit():
    times = StepTimes()
    assert times.steps_within(32, True, 0.005) == 1
    times.record(32, True, 2, 0.002)
    assert times.steps_within(32, True, 0.005) == 5
    assert times.steps_within(32, False, 0.005) == 1
