"""Estimates when a new sequence would be finished, from how long ended ones have held their slots.

The estimate assumes that each sequence holds its slot for `held_s`, the moving average of the ended ones, and that the
slots are given out in order. So the sequence that waits behind `ahead` others gets the slot that becomes free after
`ahead` more have; its own decoding takes `held_s` too, or less if it may have fewer tokens than the average had.

A sequence is `too_late` if it has to wait and the estimate is above `USABLE` of the time to its deadline. The rest is
a margin: sequences that ended last decide the average, and those ahead may differ from them. If those ahead, and the
sequence itself, hold their slots for the average or longer, none is refused that could have been finished in `USABLE`
of its time. One that gets a slot at once is never too late: it yields what its deadline allows.

Pure: no threads and no clock (a time is an argument).
"""

from __future__ import annotations

from collections.abc import Sequence

USABLE = 0.8
"""The share of the time to its deadline that a sequence may be expected to need."""
NEW_WEIGHT = 0.1
"""The weight of a sequence that has ended in the moving averages."""


class SlotTimes:
    """How long sequences hold their slots. One thread may record while others ask."""

    def __init__(self) -> None:
        self._average: tuple[float, float] | None = None
        """Seconds and tokens of a sequence; None until one has ended."""

    def record(self, seconds: float, tokens: int) -> None:
        """Adds a sequence that held its slot for `seconds` and consumed or generated `tokens` in it."""
        old_s, old_tokens = self._average or (seconds, float(tokens))
        weight = 1.0 - NEW_WEIGHT
        self._average = weight * old_s + NEW_WEIGHT * seconds, weight * old_tokens + NEW_WEIGHT * tokens

    def wait_s(self, ahead: int, slots: int, held_s: Sequence[float]) -> float:
        """How long a sequence waits for a slot behind `ahead` others; 0 until a sequence has ended.

        `held_s` says for each slot that is taken how long its sequence has held it, the longest first.
        """
        if self._average is None or ahead < slots - len(held_s):
            return 0.0
        average_s = self._average[0]
        rounds, place = divmod(ahead - (slots - len(held_s)), slots)
        first_s = max(0.0, average_s - held_s[place]) if place < len(held_s) else average_s
        return rounds * average_s + first_s

    def decoding_s(self, tokens: int) -> float:
        """How long a sequence of at most `tokens`, its prompt included, holds its slot; 0 until one has ended."""
        if self._average is None:
            return 0.0
        seconds, average_tokens = self._average
        return seconds * min(1.0, tokens / max(1.0, average_tokens))


def too_late(wait_s: float, decoding_s: float, left_s: float) -> bool:
    """Whether a sequence that waits and decodes for so long is to be refused, with `left_s` until its deadline."""
    return wait_s > 0.0 and wait_s + decoding_s > USABLE * left_s
