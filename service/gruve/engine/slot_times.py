"""Estimates when a new sequence would be finished, from how long ended ones have held their slots.

The estimate assumes that each sequence holds its slot for `held_s`, a moving average of the ended ones, and that slots
are given out in order. So the sequence that waits behind `ahead` others gets the slot that becomes free after
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
        self._whole_tokens: float | None = None
        """The average tokens of a sequence that no deadline has cut; None until one has ended."""
        self._seconds = self._tokens = 0.0
        """The averages of all sequences, of which only the ratio matters."""

    def record(self, seconds: float, tokens: int, *, cut: bool = False) -> None:
        """Adds a sequence that held its slot for `seconds` and consumed or generated `tokens` in it.

        `cut` says that its deadline ended it. Then it counts for the seconds of a token alone: otherwise sequences that
        come too late would make the average short, and with it those that follow them.
        """
        if self._whole_tokens is None:
            if cut:
                return
            self._whole_tokens, self._seconds, self._tokens = float(tokens), seconds, float(tokens)
            return
        self._seconds += NEW_WEIGHT * (seconds - self._seconds)
        self._tokens += NEW_WEIGHT * (tokens - self._tokens)
        if not cut:
            self._whole_tokens += NEW_WEIGHT * (tokens - self._whole_tokens)

    @property
    def held_s(self) -> float:
        """How long a sequence holds its slot on average; 0 until one has ended."""
        return (self._whole_tokens or 0.0) * self._seconds / max(self._tokens, 1e-9)

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

    def decoding_s(self, tokens: int) -> float:
        """How long a sequence of at most `tokens`, its prompt included, holds its slot; 0 until one has ended."""
        return self.held_s * min(1.0, tokens / max(1.0, self._whole_tokens or 0.0))


def too_late(wait_s: float, decoding_s: float, left_s: float) -> bool:
    """Whether a sequence that waits `wait_s` and decodes `decoding_s` is refused, with `left_s` to its deadline."""
    return wait_s > 0.0 and wait_s + decoding_s > USABLE * left_s
