"""What the loop remembers of time: how long a step takes, and whether a burst of arrivals is under way.

Mere arithmetic: time is a number it is given.
"""

from __future__ import annotations

MOST_STEPS = 64
ROWS = 16
"""Calls of as many groups of 16 rows are taken to last equally long."""


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


class Arrivals:
    """Notices when requests come in quick succession, and says until when it pays to let them all come in first.

    Taking in a request needs the same cores as a call does. Calls for the first few of a burst are small, so they cost
    most for each row, and they keep the others waiting at the door. A request that comes by itself waits for nobody.
    """

    def __init__(self, pause_s: float, most_s: float) -> None:
        """A burst ends when none has come for `pause_s`, 0 for no bursts; what lasts beyond `most_s` is load."""
        self._pause_s = pause_s
        self._most_s = most_s
        self._began_s = self._last_s = float("-inf")
        self.gathering_until_s = float("-inf")

    def note(self, now_s: float) -> None:
        """Hears of an arrival."""
        if now_s - self._last_s >= self._pause_s:
            self._began_s = now_s
        else:
            self.gathering_until_s = min(now_s + self._pause_s, self._began_s + self._most_s)
        self._last_s = now_s
