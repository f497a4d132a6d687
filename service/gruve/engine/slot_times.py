"""Estimates when a new sequence would be finished, from its tokens and from how fast the slots decode now.

- *Tokens.* A sequence is expected to have the share of its allowed tokens, prompt included, that ended sequences had.
  Sequences that their deadlines cut say nothing about that share, but their allowed tokens count in the average: those
  that are finished in time are the short ones.
- *Speed.* It is measured while all slots are taken, over the last seconds (`MEMORIES_S`). Before they have been for the
  first time, it is the speed of the ended sequences.
- *Waiting.* Slots are given out in order, so the sequence that waits behind `ahead` others gets the slot that becomes
  free after `ahead` more have. Each is held for `held_s`: the average tokens at the speed of a slot.

A sequence is `too_late` if it has to wait and the estimate is above `USABLE` of the time to its deadline. The rest is a
margin: those ahead may have more tokens than the average. If those ahead, and the sequence itself, hold their slots as
long as estimated or longer, none is refused that could have been finished in `USABLE` of its time. One that gets a slot
at once is never too late: it yields what its deadline allows.

Pure: no threads and no clock (a time is an argument).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

USABLE = 0.8
"""The share of the time to its deadline that a sequence may be expected to need."""
NEW_WEIGHT = 0.02
"""The least weight of a sequence that has ended in the moving averages."""
MEMORIES_S = (0.5, 5.0)
"""The time constants of two average speeds, of which the lower one counts. A speed that was high for a moment may not
last, and one that has just fallen is what a flood of requests gets."""


class SlotTimes:
    """How long sequences hold their slots. One thread may record while others ask."""

    def __init__(self) -> None:
        self._ended = 0
        self._allowed = 0.0
        """The average tokens that a sequence may have."""
        self._whole_allowed = self._whole_tokens = 0.0
        """The averages of sequences that no deadline has cut: the tokens that they might have, and those they had."""
        self._seconds = self._tokens = 0.0
        """The averages of all ended sequences, of which only the ratio matters."""
        self._rates: list[float] = []
        """Tokens a second of all slots while all are taken, an average for each of `MEMORIES_S`; empty before."""
        self._slots = 1
        self._full_since_s: float | None = None
        """When the latest call returned, if all slots were taken then."""

    def record(self, seconds: float, tokens: int, allowed: int, *, cut: bool = False) -> None:
        """Adds a sequence that held its slot for `seconds` and consumed or generated `tokens` of `allowed` in it.

        `cut` says that its deadline ended it.
        """
        if cut and not self._whole_tokens:
            return
        self._ended += 1
        weight = max(NEW_WEIGHT, 1.0 / self._ended)
        self._seconds += weight * (seconds - self._seconds)
        self._tokens += weight * (tokens - self._tokens)
        self._allowed += weight * (allowed - self._allowed)
        if not cut:
            self._whole_tokens += weight * (tokens - self._whole_tokens)
            self._whole_allowed += weight * (allowed - self._whole_allowed)

    def record_call(self, now_s: float, tokens: int, slots: int, *, full: bool) -> None:
        """Adds a call that has returned with the tokens of its rows; `full` says that all `slots` are taken.

        Calls of several workers may overlap: what counts is the time between returns.
        """
        since_s, self._full_since_s = self._full_since_s, now_s if full else None
        if not full or since_s is None or now_s <= since_s:
            return
        seconds, self._slots = now_s - since_s, slots
        now = tokens / seconds
        self._rates = [
            rate + (now - rate) * -math.expm1(-seconds / memory_s)
            for rate, memory_s in zip(self._rates or [now] * len(MEMORIES_S), MEMORIES_S, strict=True)
        ]

    @property
    def held_s(self) -> float:
        """How long a sequence is expected to hold its slot on average; 0 until one has ended."""
        return self.decoding_s(self._allowed)

    def wait_s(self, ahead: int, slots: int, held_s: Sequence[float]) -> float:
        """How long a sequence waits for a slot behind `ahead` others; 0 until a sequence has ended.

        `held_s` says for each slot that is taken how long its sequence has held it, the longest first.
        """
        if ahead < slots - len(held_s):
            return 0.0
        average_s = self.held_s
        rounds, place = divmod(ahead - (slots - len(held_s)), slots)
        first_s = max(0.0, average_s - held_s[place]) if place < len(held_s) else average_s
        return rounds * average_s + first_s

    def decoding_s(self, tokens: float) -> float:
        """How long a sequence that may have `tokens`, its prompt included, holds its slot; 0 until one has ended."""
        return tokens * self._whole_tokens / max(1.0, self._whole_allowed) * self._slot_token_s

    @property
    def _slot_token_s(self) -> float:
        """The seconds that a slot takes for a token."""
        if not self._rates:
            return self._seconds / max(self._tokens, 1e-9)
        return self._slots / max(min(self._rates), 1e-9)


def too_late(wait_s: float, decoding_s: float, left_s: float) -> bool:
    """Whether a sequence that waits `wait_s` and decodes `decoding_s` is refused, with `left_s` to its deadline."""
    return wait_s > 0.0 and wait_s + decoding_s > USABLE * left_s
