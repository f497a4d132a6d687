"""Tempos: the meaning of a `Q:` field, and a suitable tempo for a tune without one, by its dance and meter."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import Final

from gruve.tune.score import Bar, Meter, Note, Tempo, Tune

_HORNPIPE_SHARE: Final = 0.2
"""A tune in four with at least this share of dotted pairs among its notes is a hornpipe."""
_METER_DANCES: Final = {
    Meter(6, 8): "jig",
    Meter(9, 8): "slip jig",
    Meter(12, 8): "slide",
    Meter(4, 4): "reel",
    Meter(2, 2): "reel",
    Meter(2, 4): "polka",
    Meter(3, 4): "waltz",
    Meter(3, 2): "triple hornpipe",
}
_DANCE_TEMPOS: Final = {
    "slip jig": (Fraction(3, 8), 112),
    "hop jig": (Fraction(3, 8), 120),
    "jig": (Fraction(3, 8), 116),
    "slide": (Fraction(3, 8), 126),
    "triple hornpipe": (Fraction(1, 2), 96),
    "hornpipe": (Fraction(1, 2), 72),
    "strathspey": (Fraction(1, 4), 120),
    "reel": (Fraction(1, 2), 90),
    "polka": (Fraction(1, 4), 110),
    "polska": (Fraction(1, 4), 108),
    "mazurka": (Fraction(1, 4), 132),
    "waltz": (Fraction(1, 4), 140),
    "march": (Fraction(1, 4), 108),
    "air": (Fraction(1, 4), 80),
}
"""Dances, the longer names first, with the note that is counted and how many there are in a minute."""
_BEATS: Final = re.compile(r'(?:"[^"]*"\s*)?((?:\d{1,2}/\d{1,2}\s*){1,4})=\s*(\d{1,3})(?!\d)')
_PER_MINUTE: Final = re.compile(r'(?:"[^"]*"\s*)?(\d{1,3})(?!\d)')


def suited_rhythm(tune: Tune) -> str:
    """The dance that a tune's `R:` names, else the one that its meter and dotted pairs suggest; empty for none."""
    dance = tune.rhythm or ("" if tune.free_meter else _METER_DANCES.get(tune.meter, ""))
    return "hornpipe" if not tune.rhythm and tune.meter == Meter(4, 4) and _is_dotted(tune) else dance


def rhythm_meter(rhythm: str) -> Meter | None:
    """The meter of the dance that an `R:` field names, or None if the dance is unknown or has several meters."""
    named = sorted(((dance, meter) for meter, dance in _METER_DANCES.items()), key=lambda one: -len(one[0]))
    return next((meter for dance, meter in [*named, ("hornpipe", Meter(4, 4))] if dance in rhythm.lower()), None)


def suited_tempo(tune: Tune) -> Tempo:
    """The tune's own tempo, else that of its dance, counted in beats of the meter."""
    if tune.tempo:
        return tune.tempo
    rhythm = suited_rhythm(tune).lower()
    beat = Fraction(3, tune.meter.unit) if tune.meter.compound else Fraction(1, 4)
    for dance, (note, per_minute) in _DANCE_TEMPOS.items():
        if dance in rhythm and tune.meter.compound == (note == Fraction(3, 8)):
            return Tempo(note, per_minute)
    return Tempo(beat, 108 if tune.meter.compound else 110)


def parse_tempo(text: str) -> Tempo | None:
    """The tempo of a `Q:` field such as `3/8=116`, `1/4 1/8=90` or `"Slow" 1/4=60`; a bare number counts quarter notes.

    None if the field has only words, or if a length or the number is zero.
    """
    text = text.strip()
    if found := _BEATS.match(text):
        halves = [one.split("/") for one in found[1].split()]
        if any(int(under) == 0 for _, under in halves):
            return None
        note = sum((Fraction(int(over), int(under)) for over, under in halves), Fraction(0))
        per_minute = int(found[2])
    elif found := _PER_MINUTE.match(text):
        note, per_minute = Fraction(1, 4), int(found[1])
    else:
        return None
    return Tempo(note, per_minute) if note and per_minute else None


def _is_dotted(tune: Tune) -> bool:
    notes = [event for event in tune.events if not isinstance(event, Bar)]
    pairs = sum(
        isinstance(first, Note) and isinstance(second, Note) and first.ticks == 3 * second.ticks
        for first, second in pairwise(notes)
    )
    return pairs >= _HORNPIPE_SHARE * max(1, len(notes))
