"""Plays a tune: its notes with the times at which they sound, and a Standard MIDI File of them.

The playing order is the one that `bars` uses, so repeats and endings sound as they are counted. verovio can write MIDI,
too, but ignores endings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gruve.tune.bars import play_order, segments, sounding
from gruve.tune.keys import fifths
from gruve.tune.score import WHOLE, Bar, Event, Key, Meter, Note, Tune
from gruve.tune.tempo import suited_tempo

TICKS_PER_QUARTER: Final = 960
"""Of the MIDI file; a start is rounded to one, and no rounding adds up."""
VIOLIN: Final = 40
_VELOCITY: Final = 90


@dataclass(frozen=True, slots=True)
class Sound:
    """A sounding note from `start` to `end`, in score ticks; tied notes are one sound."""

    start: int
    end: int
    midi: int


def played(tune: Tune) -> list[Sound]:
    """The notes as they sound, with repeats and endings."""
    sounds: list[Sound] = []
    time = 0
    tied = False
    for event, ticks in _in_play_order(tune):
        if isinstance(event, Note) and event.pitch:
            start = sounds.pop().start if tied else time
            sounds.append(Sound(start, time + ticks, event.pitch.midi))
        tied = event.tied if isinstance(event, Note) else tied
        time += ticks
    return sounds


def _in_play_order(tune: Tune) -> Iterator[tuple[Event, int]]:
    for _, stretch in _stretches_in_play_order(tune):
        yield from stretch


def _stretches_in_play_order(tune: Tune) -> Iterator[tuple[Meter, list[tuple[Event, int]]]]:
    """The music between bar lines in playing order, each piece with its meter."""
    parts = segments(tune.events)
    stretches: list[list[tuple[Event, int]]] = [[]]
    for place, (event, ticks) in enumerate(sounding(tune.events)):
        if not isinstance(event, Bar):
            stretches[-1].append((event, ticks))
        elif place:
            stretches.append([])
    for number in play_order(parts):
        yield parts[number].meter or tune.meter, stretches[number]


def midi_file(tune: Tune) -> bytes:
    """The tune as a Standard MIDI File of one track: tempo, time and key signature, then its notes on a violin."""
    track = _tempo(tune) + b"\0" + _time_signature(tune.meter) + _key_signature(tune.key) + bytes([0, 0xC0, VIOLIN])
    now = 0
    for time, _, message in sorted([*_switches(tune), *_meter_changes(tune)]):
        track += _variable(time - now) + message
        now = time
    track += b"\0\xff\x2f\0"
    header = b"MThd" + (6).to_bytes(4, "big") + bytes([0, 0, 0, 1]) + TICKS_PER_QUARTER.to_bytes(2, "big")
    return header + b"MTrk" + len(track).to_bytes(4, "big") + track


def _tempo(tune: Tune) -> bytes:
    """Meta event 51: microseconds per quarter note, in three bytes."""
    microseconds = min(int(60_000_000 / suited_tempo(tune).quarters_per_minute), 0xFFFFFF)
    return b"\0\xff\x51\x03" + microseconds.to_bytes(3, "big")


def _time_signature(meter: Meter) -> bytes:
    """Meta event 58: beats, log2 of the beat unit, MIDI clocks per click, 32nd notes per quarter note."""
    clocks = 96 // meter.unit * (3 if meter.compound else 1)
    return b"\xff\x58\x04" + bytes([meter.beats, meter.unit.bit_length() - 1, clocks, 8])


def _key_signature(key: Key) -> bytes:
    """Meta event 59: the number of sharps (negative for flats), and 1 for minor.

    MIDI has major and minor only, so another mode is written as the major key of its signature. MIDI allows up to seven
    signs, so a signature with more is written as its enharmonic equivalent.
    """
    sharps = (fifths(key) + 7) % 12 - 7 if abs(fifths(key)) > 7 else fifths(key)
    return b"\0\xff\x59\x02" + sharps.to_bytes(1, "big", signed=True) + bytes([key.mode == "min"])


def _meter_changes(tune: Tune) -> Iterator[tuple[int, int, bytes]]:
    """Every change of meter in playing order, sorted after notes that end and before notes that start at that time."""
    time, now = 0, tune.meter
    for meter, stretch in _stretches_in_play_order(tune):
        if meter != now:
            yield _midi_time(time), 1, _time_signature(meter)
            now = meter
        time += sum(ticks for _, ticks in stretch)


def _switches(tune: Tune) -> Iterator[tuple[int, int, bytes]]:
    """Every note's start and end as (MIDI time, 0 for an end or 2 for a start, MIDI message); ends sort first."""
    for sound in played(tune):
        if 0 <= sound.midi <= 127:
            yield _midi_time(sound.start), 2, bytes([0x90, sound.midi, _VELOCITY])
            yield max(_midi_time(sound.end), _midi_time(sound.start) + 1), 0, bytes([0x80, sound.midi, 0])


def _midi_time(ticks: int) -> int:
    return round(ticks * 4 * TICKS_PER_QUARTER / WHOLE)


def _variable(number: int) -> bytes:
    """A MIDI variable-length quantity: a number in groups of seven bits."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F | 0x80)
    return bytes(reversed(groups))
