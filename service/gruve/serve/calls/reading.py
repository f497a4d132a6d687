"""Requests that are read: whether there is time for it, and which of them may still be refused.

Under a flood, calls wait in gRPC's core, the oldest first. A server that reads all of them reads requests whose
deadlines are nearly over, and nothing that it does is in time. So a call is read only if its deadline leaves the time
of some turns of the event loop. The turns are measured and not the reading, which a client can make as slow as it
likes.
"""

from __future__ import annotations

import contextvars
import dataclasses
import math

from gruve.serve.calls.refusals import Refusals

TURNS = 8
"""The turns of the event loop that a call must have left. A request is read and admitted in 3 to 4, under any load."""
WEIGHT = 0.1
"""The weight of the latest turn in the average."""
MEMORY_S = 0.2
"""The average halves in this time without a turn: no call may be read because of it."""


class TurnTimes:
    """How long the latest turns of the event loop took in which a call began. No clock (a time is an argument)."""

    def __init__(self) -> None:
        self._average_s = 0.0
        self._recorded_s = 0.0
        """When the average changed."""

    def record(self, seconds: float, now_s: float) -> None:
        """Adds a turn."""
        self._average_s = (1.0 - WEIGHT) * self._average(now_s) + WEIGHT * seconds
        self._recorded_s = now_s

    def least_left_s(self, now_s: float) -> float:
        """The time that a call must have left to be read; 0 if no call began lately."""
        return TURNS * self._average(now_s)

    def _average(self, now_s: float) -> float:
        return self._average_s * math.exp2(-max(0.0, now_s - self._recorded_s) / MEMORY_S)


@dataclasses.dataclass(slots=True)
class Reading:
    """A request from when its call was accepted until it is admitted, refused or gone."""

    accepted_s: float
    refusals: Refusals
    tenant: str
    """Whose bucket it takes from; "" for none, and once it has ended."""

    def end(self) -> None:
        """Gives back what it took. May be called again."""
        if self.tenant:
            self.refusals.end_reading(self.tenant)
            self.tenant = ""


_current: contextvars.ContextVar[Reading | None] = contextvars.ContextVar("reading", default=None)


def set_reading(reading: Reading | None) -> None:
    """Sets the request for the tasks that this task starts from now on."""
    _current.set(reading)


def current_reading() -> Reading | None:
    """The request of the call that this task serves, if it could have been refused unread."""
    return _current.get()


def end_reading() -> None:
    """The request of the call that this task serves is admitted, refused or gone."""
    if (reading := _current.get()) is not None:
        reading.end()
