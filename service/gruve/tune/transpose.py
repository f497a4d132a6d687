"""Transposes tunes. Independent of text."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gruve.tune.keys import interval, moved
from gruve.tune.score import Key, Note, Tune

LOWEST_MEAN: Final = 60
"""A tune on C is in the octave in which its mean MIDI pitch is at least this and less than 12 above it."""

STAFF_MEAN: Final = 72
"""The mean MIDI pitch that a tune written for people is put near: the C in the middle of the treble staff."""
FIDDLE: Final = (55, 83)
"""Lowest and highest MIDI pitch of a fiddle's first position: the G below middle C to the B above the staff."""
WHISTLE: Final = (62, 83)
"""Of a whistle in D, as it is written; it sounds an octave higher."""


def to_root_c(tune: Tune) -> Tune:
    """The tune transposed to the root C in the same mode, in the octave that its mean pitch determines."""
    return moved_by(tune, Key(0, 0, tune.key.mode), *root_c_interval(tune))


def root_c_interval(tune: Tune) -> tuple[int, int]:
    """The interval by which `to_root_c` transposes a tune: staff steps and semitones."""
    steps, semitones = interval(tune.key, Key(0, 0, tune.key.mode))
    octaves = (_mean_pitch(tune) + semitones - LOWEST_MEAN) // 12
    return steps - 7 * octaves, semitones - 12 * octaves


def moved_by(tune: Tune, key: Key, steps: int, semitones: int) -> Tune:
    """The tune in `key`, with its notes moved by an interval."""
    if steps == 0 and semitones == 0:
        return replace(tune, key=key)
    events = (
        replace(event, pitch=moved(event.pitch, steps, semitones)) if isinstance(event, Note) and event.pitch else event
        for event in tune.events
    )
    return replace(tune, key=key, events=tuple(events))


def to_key(tune: Tune, key: Key) -> Tune:
    """The tune on the root of `key`, in the octave that is easiest to play. The tune keeps its mode.

    The octave is the one with the least music outside a fiddle's first position; among equals the one with the least
    outside a whistle's range, then the one nearest to the middle of the treble staff.
    """
    target = replace(key, mode=tune.key.mode)
    steps, semitones = interval(tune.key, target)
    nearest = (STAFF_MEAN + 6 - _mean_pitch(tune) - semitones) // 12
    octaves = min(
        (nearest, nearest - 1, nearest + 1, nearest - 2, nearest + 2),
        key=lambda octave: (
            _outside(tune, FIDDLE, semitones + 12 * octave),
            _outside(tune, WHISTLE, semitones + 12 * octave),
            abs(octave - nearest),
        ),
    )
    return moved_by(tune, target, steps + 7 * octaves, semitones + 12 * octaves)


def _outside(tune: Tune, bounds: tuple[int, int], semitones: int) -> int:
    """The sum over notes outside a range, after moving the tune, of semitones outside times ticks."""
    lowest, highest = bounds
    return sum(
        event.ticks * max(lowest - number, number - highest, 0)
        for event in tune.events
        if isinstance(event, Note) and event.pitch
        for number in (event.pitch.midi + semitones,)
    )


def _mean_pitch(tune: Tune) -> int:
    total = weight = 0
    for event in tune.events:
        if isinstance(event, Note) and event.pitch is not None:
            total += event.pitch.midi * event.ticks
            weight += event.ticks
    return total // weight if weight else LOWEST_MEAN
