"""What a slot keeps of its transcript for pointers, on the device, and what the host writes when a row is admitted.

The kernel in `point.py` reads and changes it. Knows the definition's terms, not networks or calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gruve.model.pointers import BAR_TOKENS, WINDOW, PointerConfig

UNKNOWN = -(1 << 31)
"""The place of a token whose place is unknown."""
BARS_KEPT = 64
"""The completed bars that are kept: no pointer reaches further back, and no more are counted."""
BAR_FIELDS = 3
"""Of a completed bar: where it opens, where the next one opens, its part."""
STATE = 5
"""Where the window begins at the earliest, where the open bar opens (-1 for none), the current place, the part, and how
many bars were completed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Transcript:
    """A transcript without its pending token, in the form of the device. Positions are absolute."""

    tokens: NDArray[np.int32]
    """(WINDOW,): the last tokens, at their positions modulo WINDOW"""
    places: NDArray[np.int32]
    """(WINDOW,): their places, or `UNKNOWN`"""
    bars: NDArray[np.int32]
    """(BARS_KEPT, BAR_FIELDS): the last completed bars, by their number modulo BARS_KEPT"""
    state: NDArray[np.int32]
    """(STATE,)"""


class PointerMemory:
    """The transcripts of all slots, and the tables of the vocabulary."""

    def __init__(self, config: PointerConfig, vocabulary_size: int, slots: int, device: torch.device) -> None:
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(slots + 1, *shape, dtype=torch.int32, device=device)

        kinds = np.zeros(vocabulary_size, dtype=np.int32)
        kinds[list(config.bar_tokens)] = config.has_bars
        kinds[list(config.part_tokens)] = 2 * config.has_bars
        advances = np.array(config.advances or [0] * vocabulary_size, dtype=np.int32)
        reaches = np.array([reach for _, reach in config.named], dtype=np.int32)
        steps = np.full(vocabulary_size, -1, dtype=np.int32)
        steps[list(config.scale)] = np.arange(len(config.scale), dtype=np.int32)
        scale = np.array(config.scale or [0], dtype=np.int32)
        self.config = config
        self.tokens, self.places = zeros(WINDOW), zeros(WINDOW)
        self.bars, self.states = zeros(BARS_KEPT, BAR_FIELDS), zeros(STATE)
        self.kinds, self.advances, self.reaches, self.steps, self.scale = (
            torch.from_numpy(values).to(device) for values in (kinds, advances, reaches, steps, scale)
        )
        self.longest = max(*config.followers, config.matches - 1, 1)


def transcript_of(config: PointerConfig, history: Sequence[int], position: int) -> Transcript:
    """Feeds `history`, whose last token is pending at `position`, without that token."""
    first = max(position + 1 - len(history), position + 1 - WINDOW)
    fed = list(history)[-(position + 1 - first) :][:-1]
    made = Transcript(
        np.zeros(WINDOW, dtype=np.int32),
        np.full(WINDOW, UNKNOWN, dtype=np.int32),
        np.full((BARS_KEPT, BAR_FIELDS), -1, dtype=np.int32),
        np.zeros(STATE, dtype=np.int32),
    )
    start, opening, place, part, count = first, -1, UNKNOWN, 0, 0
    bar_tokens = frozenset(config.bar_tokens if config.has_bars else ())
    for t, token in enumerate(fed, first):
        if token in bar_tokens:
            if opening >= 0 and (place == UNKNOWN or place > 0):
                made.bars[count % BARS_KEPT] = opening, t, part
                count += 1
            part += token in config.part_tokens
            opening, place = t, 0
        elif token == config.start_token:
            start, opening, place, part, count = t, t, 0, 0, 0
        elif opening < 0 or t - opening >= BAR_TOKENS:
            place = UNKNOWN
        elif place != UNKNOWN:
            place += config.advances[token] if config.advances else 0
        made.tokens[t % WINDOW], made.places[t % WINDOW] = token, place
    made.state[:] = start, opening, place, part, count
    return made
