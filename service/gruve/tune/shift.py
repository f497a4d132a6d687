"""Notes that sound higher or lower than written: `octave=`, `transpose=` and clefs with an 8, in `K:` and `V:`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from gruve.tune.keys import interval, key_above, moved
from gruve.tune.raw import RawEvent
from gruve.tune.score import Key, Note

_OCTAVE: Final = re.compile(r"\boctave=\s*([+-]?\d)(?!\d)")
_TRANSPOSE: Final = re.compile(r"\b(?:transpose|t)=\s*([+-]?\d{1,2})(?!\d)")
_CLEF: Final = re.compile(r"(?:clef=\s*|\b)(?:treble|bass|alto|tenor|[GCF])[1-5]?([+-])8\b")
MAX_OCTAVES: Final = 4


@dataclass(frozen=True, slots=True)
class Shift:
    """The interval by which notes sound higher than written."""

    octaves: int
    semitones: int


def parse_shift(text: str) -> Shift | None:
    """The shift that the value of a `K:` or `V:` field asks for, or None if it asks for none."""
    octave, transpose, clef = _OCTAVE.search(text), _TRANSPOSE.search(text), _CLEF.search(text)
    if not (octave or transpose or clef):
        return None
    octaves = (int(octave[1]) if octave else 0) + (int(clef[1] + "1") if clef else 0)
    return Shift(max(-MAX_OCTAVES, min(MAX_OCTAVES, octaves)), int(transpose[1]) if transpose else 0)


def shifted(key: Key, events: Sequence[RawEvent], shifts: Sequence[tuple[int, Shift]]) -> tuple[Key, list[RawEvent]]:
    """The key and the events as they sound; each shift applies from the event at its index to the next shift."""
    if not shifts:
        return key, list(events)
    out: list[RawEvent] = []
    todo = list(shifts)
    steps = semitones = 0
    sounding = key_above(key, todo[0][1].semitones) if todo[0][0] == 0 and todo[0][1].semitones else key
    for place, event in enumerate(events):
        while todo and todo[0][0] <= place:
            shift = todo.pop(0)[1]
            target = key_above(key, shift.semitones) if shift.semitones else key
            steps, up = interval(key, target)
            octaves = shift.octaves + (shift.semitones - up) // 12
            steps, semitones = steps + 7 * octaves, up + 12 * octaves
        if isinstance(event, Note) and event.pitch and (steps or semitones):
            event = replace(event, pitch=moved(event.pitch, steps, semitones))
        out.append(event)
    return sounding, out
