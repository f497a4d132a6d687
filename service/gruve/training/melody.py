"""What a tune's melody is like: how high it lies, how often a note is repeated, and how wide its steps are.

Notes are counted in scale steps, without accidentals and lengths.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import quantiles
from typing import NamedTuple

STEPS = {letter: step for step, letter in enumerate("CDEFGABcdefgab")}
OCTAVE = 7
PARTS = 4
"""Each figure is compared by the quarter of the corpus that it falls into."""


class Melody(NamedTuple):
    """The figures of one tune."""

    height: float
    """The mean of its notes, in scale steps above C."""
    repeated: float
    """The share of its notes that equal the note before, 0 to 1."""
    step: float
    """The mean distance of a note to the one before, in scale steps."""


MelodyClass = tuple[int, int, int]


def notes_of(tokens: Iterable[str]) -> list[int]:
    """The notes of a tune given as tokens, in scale steps above C."""
    found = ((token, STEPS.get(token.strip("_^=,'"))) for token in tokens)
    return [step + OCTAVE * (token.count("'") - token.count(",")) for token, step in found if step is not None]


def natural_step(token: str) -> int | None:
    """A note without an accidental in scale steps above C; None for another token."""
    return None if token[0] in "_^=" else next(iter(notes_of([token])), None)


def melody_of(tokens: Iterable[str]) -> Melody | None:
    """The figures of a tune given as tokens; None if it has fewer than two notes."""
    notes = notes_of(tokens)
    if len(notes) < 2:
        return None
    steps = [abs(after - before) for before, after in pairwise(notes)]
    return Melody(sum(notes) / len(notes), steps.count(0) / len(steps), sum(steps) / len(steps))


class MelodyClasses:
    """Which quarter of a corpus each figure of a melody falls into."""

    def __init__(self, corpus: Iterable[Sequence[str]]) -> None:
        """`corpus` are tunes given as tokens."""
        tunes = list(corpus)
        melodies = [melody for tune in tunes if (melody := melody_of(tune)) is not None]
        self._bounds: list[list[float]] = [[], [], []]
        if len(melodies) > 1:
            self._bounds = [quantiles(values, n=PARTS) for values in zip(*melodies, strict=True)]
        self.wanted = Counter(kind for tune in tunes if (kind := self.class_of(tune)) is not None)
        """How many tunes of the corpus each class has."""

    def class_of(self, tokens: Iterable[str]) -> MelodyClass | None:
        """The class of a tune given as tokens; None if it has fewer than two notes."""
        melody = melody_of(tokens)
        if melody is None:
            return None
        height, repeated, step = (bisect(bounds, value) for bounds, value in zip(self._bounds, melody, strict=True))
        return height, repeated, step
