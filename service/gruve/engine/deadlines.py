"""The deadlines of sequences, in order of time. Pure: knows sequence ids and no clock (a time is an argument)."""

from __future__ import annotations

import heapq
from collections.abc import Container


class Deadlines:
    """A heap of (time, sequence id). Entries of sequences that have ended stay until they come to the top."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []

    def add(self, deadline_s: float, sequence_id: int) -> None:
        """Adds a sequence that ends at `deadline_s`."""
        heapq.heappush(self._heap, (deadline_s, sequence_id))

    def pop_overdue(self, now_s: float) -> list[int]:
        """Removes and returns the ids whose deadline is `now_s` or earlier, earliest first; they may have ended."""
        overdue = []
        while self._heap and self._heap[0][0] <= now_s:
            overdue.append(heapq.heappop(self._heap)[1])
        return overdue

    def next_s(self, alive: Container[int]) -> float | None:
        """The earliest deadline of a sequence in `alive`, or None."""
        while self._heap and self._heap[0][1] not in alive:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
