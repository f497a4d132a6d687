"""Deadlines by id, in order of time. Pure: knows ids and no clock (a time is an argument)."""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar

STALE = 1_024
"""The heap is rebuilt when it has more entries than twice the ids that are alive and these."""
Id = TypeVar("Id", int, str)


class Ids(Protocol):
    """The ids whose deadlines count."""

    def __contains__(self, id_: object, /) -> bool: ...

    def __len__(self) -> int: ...


class Deadlines(Generic[Id]):
    """A heap of (time, id). Entries of ids that are not alive any more are removed at the top or by a rebuild."""

    def __init__(self, alive: Ids) -> None:
        """`alive` changes as ids come and go."""
        self._alive = alive
        self._heap: list[tuple[float, Id]] = []

    def __len__(self) -> int:
        """How many entries the heap has."""
        return len(self._heap)

    def add(self, deadline_s: float, id_: Id) -> None:
        """Adds a deadline. Of several of one id, a rebuild keeps the earliest."""
        heapq.heappush(self._heap, (deadline_s, id_))
        if len(self._heap) > 2 * len(self._alive) + STALE:
            earliest: dict[Id, float] = {}
            for at_s, other in sorted(self._heap):
                if other in self._alive:
                    earliest.setdefault(other, at_s)
            self._heap = [(at_s, other) for other, at_s in earliest.items()]  # in order of time, so it is a heap

    def pop_overdue(self, now_s: float) -> list[Id]:
        """Removes and returns the ids whose deadline is `now_s` or earlier, earliest first; some may not be alive."""
        overdue = []
        while self._heap and self._heap[0][0] <= now_s:
            overdue.append(heapq.heappop(self._heap)[1])
        return overdue

    def next_s(self) -> float | None:
        """The earliest deadline of an id that is alive, or None."""
        while self._heap and self._heap[0][1] not in self._alive:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
