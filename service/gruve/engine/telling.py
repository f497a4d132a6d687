"""When tokens that were drawn are told: at once, or several together as long as a reader has enough.

A message costs about as much as decoding some tokens, so where many streams share a machine they are told less often
than they are called. Mere arithmetic: time is a number it is given.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

READ_TOKENS_PER_S = 50.0
"""Where tokens are held back, a reader of this speed does not run out of them."""
FULL_TOKENS, HELD_S = 32, 1.0
"""So many are not held back any longer, nor are any for so long, however much a reader still has."""


@dataclasses.dataclass(slots=True)
class Untold:
    """The last tokens of a sequence, of which nobody has been told yet, and what its reader has."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    forced: int = 0
    """How many of them were forced; those are the first."""
    _told_s: float = -math.inf
    """When drawn ones were last told,"""
    _read_s: float = -math.inf
    """when whoever reads them as they come will have read all of those,"""
    _seen_s: float = -math.inf
    """and when the sequence last had its turn."""

    def add(self, tokens: Sequence[int], forced: int) -> None:
        """Takes what follows; `forced` of them were forced."""
        self.tokens += tokens
        self.forced += forced

    def is_due(self, now_s: float, next_s: float, gap_s: float, most: int) -> bool:
        """Whether a sequence that goes on is to be told of: what its next turn makes may come too late.

        It is called once for each turn; the next one comes at `next_s` at the earliest, `math.inf` where it is not
        known to come at all. `most` are never held back, and with a `gap_s` of 0 nothing is.
        """
        turn_s, self._seen_s = now_s - self._seen_s, now_s
        untold = len(self.tokens)
        if not untold or not gap_s or next_s == math.inf or untold >= most:
            return untold > 0
        next_s = max(now_s, next_s)
        if next_s < self._told_s + gap_s:
            return False
        return untold >= FULL_TOKENS or next_s + turn_s >= min(self._read_s, self._told_s + HELD_S)

    def take(self, now_s: float) -> tuple[list[int], int]:
        """What is told now, and how many of it were forced."""
        tokens, forced = self.tokens, self.forced
        if drawn := len(tokens) - forced:
            self._told_s = now_s
            self._read_s = max(self._read_s, now_s) + drawn / READ_TOKENS_PER_S
        self.tokens, self.forced = [], 0
        return tokens, forced
