"""Delivery policy: when generated tokens are delivered, singly or batched while the reader has unread output.

A message costs about as much as decoding some tokens, so where many streams share a machine, tokens are delivered less
often than calls make them. Pure: no threads, no clock (a time is an argument).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

READ_TOKENS_PER_S = 50.0
"""The reading speed for which batching causes no pause."""
MAX_BATCH_TOKENS, MAX_HELD_S = 32, 1.0
"""This many tokens, or tokens this old, are delivered even if the reader has unread output."""


@dataclasses.dataclass(slots=True)
class PendingOutput:
    """The undelivered tokens of one sequence, and an estimate of what its reader has not read yet."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    forced: int = 0
    """How many of `tokens` were forced; they come first."""
    _delivered_s: float = -math.inf
    """When generated tokens were last delivered."""
    _read_s: float = -math.inf
    """When a reader of `READ_TOKENS_PER_S` will have read everything delivered."""
    _last_turn_s: float = -math.inf
    """When `is_due` was last called."""

    def add(self, tokens: Sequence[int], forced: int) -> None:
        """Appends tokens, of which the first `forced` were forced."""
        self.tokens += tokens
        self.forced += forced

    def is_due(self, now_s: float, next_s: float, gap_s: float, max_tokens: int) -> bool:
        """Whether to deliver now: if delivery waited for the sequence's next turn, the reader might wait too.

        Call it once a turn. The next turn comes at `next_s` at the earliest, `math.inf` if it may never come. At least
        `gap_s` seconds lie between two deliveries; 0 delivers every turn. `max_tokens` tokens are due at once.
        """
        turn_s, self._last_turn_s = now_s - self._last_turn_s, now_s
        count = len(self.tokens)
        if not count or not gap_s or next_s == math.inf or count >= max_tokens:
            return count > 0
        next_s = max(now_s, next_s)
        if next_s < self._delivered_s + gap_s:
            return False
        return count >= MAX_BATCH_TOKENS or next_s + turn_s >= min(self._read_s, self._delivered_s + MAX_HELD_S)

    def take(self, now_s: float) -> tuple[list[int], int]:
        """Removes and returns the tokens, to be delivered now, and how many of them were forced."""
        tokens, forced = self.tokens, self.forced
        if generated := len(tokens) - forced:
            self._delivered_s = now_s
            self._read_s = max(self._read_s, now_s) + generated / READ_TOKENS_PER_S
        self.tokens, self.forced = [], 0
        return tokens, forced
