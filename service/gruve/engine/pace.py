"""What the loop remembers of time: how long a step takes. Mere arithmetic: time is a number it is given."""

from __future__ import annotations

MOST_STEPS = 64
ROWS = 4
"""Calls of as many groups of 4 rows are taken to last equally long."""


class StepTimes:
    """Remembers how long a step takes for so many rows, alone on its lane or not."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, bool], float] = {}

    def note(self, rows: int, alone: bool, steps: int, seconds: float) -> None:
        """A moving average, quick to follow."""
        key, each = (-(-rows // ROWS), alone), seconds / steps
        self._seconds[key] = 0.7 * self._seconds.get(key, each) + 0.3 * each

    def steps_within(self, rows: int, alone: bool, seconds: float) -> int:
        """How many steps fit, at least 1; 1 until a call of that size has been seen."""
        each = self._seconds.get((-(-rows // ROWS), alone))
        return 1 if each is None else max(1, min(MOST_STEPS, int(seconds / max(each, 1e-9))))
