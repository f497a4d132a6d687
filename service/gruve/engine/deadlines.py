"""The deadlines of sequences, in order of time. Pure: knows sequence ids and no clock (a time is an argument)."""

from __future__ import annotations

import heapq
from typing import Protocol

STALE = 1_024
"""The heap is rebuilt when it has more entries of ended sequences than there are sequences and these."""


class SequenceIds(Protocol):
    """The ids of the sequences that have not ended."""

    def __contains__(self, sequence_id: object) -> bool: ...

    def __len__(self) -> int: ...


class Deadlines:
    """A heap of (time, sequence id). Entries of sequences that have ended are removed at the top or by a rebuild."""

    def __init__(self, alive: SequenceIds) -> None:
        """`alive` changes as sequences come and end."""
        self._alive = alive
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        """How many entries the heap has."""
        return len(self._heap)

    def add(self, deadline_s: float, sequence_id: int) -> None:
        """Adds a sequence that ends at `deadline_s`."""
        heapq.heappush(self._heap, (deadline_s, sequence_id))
        if len(self._heap) > 2 * len(self._alive) + STALE:
            self._heap = [entry for entry in self._heap if entry[1] in self._alive]
            heapq.heapify(self._heap)

    def pop_overdue(self, now_s: float) -> list[int]:
        """Removes and returns the ids whose deadline is `now_s` or earlier, earliest first; they may have ended."""
        overdue = []
        while self._heap and self._heap[0][0] <= now_s:
            overdue.append(heapq.heappop(self._heap)[1])
        return overdue

    def next_s(self) -> float | None:
        """The earliest deadline of a sequence that has not ended, or None."""
        while self._heap and self._heap[0][1] not in self._alive:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
