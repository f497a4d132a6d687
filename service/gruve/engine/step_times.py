"""Estimates how long a step takes, from the calls that have been made. Pure: no clock, no threads."""

from __future__ import annotations

MAX_STEPS = 64
"""The most steps of one call."""
ROWS_PER_GROUP = 4
"""Calls with as many groups of 4 rows share one estimate."""


class StepTimes:
    """Step times by number of rows and by whether the call had the whole machine (`exclusive`)."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, bool], float] = {}

    def record(self, rows: int, exclusive: bool, steps: int, seconds: float) -> None:
        """Adds a call of `steps` steps to the moving average, in which a new call weighs 0.3."""
        key, step_s = (-(-rows // ROWS_PER_GROUP), exclusive), seconds / steps
        self._seconds[key] = 0.7 * self._seconds.get(key, step_s) + 0.3 * step_s

    def steps_within(self, rows: int, exclusive: bool, seconds: float) -> int:
        """How many steps fit into `seconds`, 1 to `MAX_STEPS`; 1 until a call of that size has been recorded."""
        step_s = self._seconds.get((-(-rows // ROWS_PER_GROUP), exclusive))
        return 1 if step_s is None else max(1, min(MAX_STEPS, int(seconds / max(step_s, 1e-9))))
