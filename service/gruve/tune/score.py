"""The data types of a tune. Independent of ABC's notation and of tokens.

Lengths are integers in ticks and exact: every written length is a multiple of 1/1024 of a whole note, and a tuplet of
up to nine notes scales such a length to a whole number of ticks. A pitch is a line or space of the staff plus an
alteration, so that F sharp and G flat stay two pitches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, Literal

LETTERS: Final = "CDEFGAB"
SEMITONES: Final = (0, 2, 4, 5, 7, 9, 11)
"""Semitones of the natural letters above C."""
SHORTEST: Final = 2_520
"""Ticks of the shortest written length; the least number that 2 to 9 all divide."""
WHOLE: Final = 1_024 * SHORTEST
"""Ticks of a whole note."""


@dataclass(frozen=True, slots=True)
class Pitch:
    """A pitch on the staff: `staff` counts lines and spaces from middle C, `alter` is in semitones, -2 to 2."""

    staff: int
    alter: int

    @property
    def letter(self) -> int:
        """The letter as 0 to 6, C to B."""
        return self.staff % 7

    @property
    def midi(self) -> int:
        """The MIDI number; middle C is 60."""
        return 60 + 12 * (self.staff // 7) + SEMITONES[self.staff % 7] + self.alter


@dataclass(frozen=True, slots=True)
class Note:
    """A note, or a rest if `pitch` is None. `ticks` is the written length, before a tuplet scales it.

    `place` is its line and column in the text, for messages; (0, 0) if it was not read from a text.
    """

    pitch: Pitch | None
    ticks: int
    tied: bool = False
    place: tuple[int, int] = field(default=(0, 0), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Tuplet:
    """The next `notes` notes last `into` / `count` of their written length: `count` in the time of `into`."""

    count: int
    into: int
    notes: int


BarKind = Literal["|", "||", "|]", "|:", ":|", "|1", ":|2"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar line. Only `|` always ends a bar; the others may be inside a bar."""

    kind: BarKind


@dataclass(frozen=True, slots=True)
class Meter:
    """A time signature; `unit` is a power of two up to 32."""

    beats: int
    unit: int

    @property
    def ticks(self) -> int:
        """The length of a bar."""
        return WHOLE * self.beats // self.unit

    @property
    def compound(self) -> bool:
        """Whether the beats are in threes, as in 6/8, 9/8 and 12/8."""
        return self.unit >= 8 and self.beats % 3 == 0 and self.beats > 3


@dataclass(frozen=True, slots=True)
class MeterChange:
    """A change of meter. Tunes to train on have none, and no token stands for it."""

    meter: Meter


Event = Note | Tuplet | Bar | MeterChange


Mode = Literal["maj", "min", "dor", "mix", "phr", "lyd", "loc"]


@dataclass(frozen=True, slots=True)
class Key:
    """A root (letter 0 to 6 and alteration) and a mode."""

    letter: int
    alter: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class Tempo:
    """A tempo: a number of notes per minute, and their length as a fraction of a whole note."""

    note: Fraction
    per_minute: int

    @property
    def quarters_per_minute(self) -> Fraction:
        """The tempo in quarter notes."""
        return self.note * 4 * self.per_minute


@dataclass(frozen=True, slots=True)
class Tune:
    """One tune in normal form: one voice, one key, every repeat opened and closed. `meter` is the first.

    In free meter (`M:none`) any bar length is right; `meter` is then 4/4 and matters for tuplets only.
    """

    meter: Meter
    key: Key
    events: tuple[Event, ...]
    title: str = ""
    rhythm: str = ""
    tempo: Tempo | None = None
    free_meter: bool = False


def whole_notes(ticks: int) -> Fraction:
    """A length in words, as a fraction of a whole note."""
    return Fraction(ticks, WHOLE)


def default_into(count: int, meter: Meter | None) -> int:
    """The time of a tuplet, in notes, if its mark does not give it: ABC 2.1, section 4.13."""
    return {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}.get(count, 3 if meter and meter.compound else 2)
