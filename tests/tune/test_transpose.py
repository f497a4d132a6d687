"""Keys and transposition: every semitone right, sensible spelling, and back again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruve.tune.keys import fifths, interval, key_above, key_name, moved, parse_key, signature
from gruve.tune.parse import parse_tune
from gruve.tune.score import Key, Note, Pitch, Tune
from gruve.tune.tokens import tokenize
from gruve.tune.transpose import LOWEST_MEAN, STAFF_MEAN, to_key, to_root_c, transposed
from tunes import abc, keys, pitches, tunes

C = Key(0, 0, "maj")


def midi(tune: Tune) -> list[int]:
    return [event.pitch.midi for event in tune.events if isinstance(event, Note) and event.pitch]


def mean(tune: Tune) -> float:
    notes = [event for event in tune.events if isinstance(event, Note) and event.pitch]
    return sum(n.pitch.midi * n.ticks for n in notes if n.pitch) / sum(n.ticks for n in notes)


@pytest.mark.parametrize(
    ("name", "sharps"),
    [
        ("C", 0),
        ("G", 1),
        ("F", -1),
        ("Am", 0),
        ("Edor", 2),
        ("Amix", 2),
        ("Bb", -2),
        ("Cm", -3),
        ("F#", 6),
        ("Gphr", -3),
    ],
)
def test_a_key_has_its_sharps_and_flats(name: str, sharps: int) -> None:
    parsed = parse_key(name)
    assert parsed is not None
    assert fifths(parsed[0]) == sharps
    assert sum(signature(parsed[0])) == sharps
    assert parse_key(key_name(parsed[0])) == parsed
    assert parse_key(key_name(parsed[0], short=True)) == parsed


@given(tunes(), st.integers(-24, 24))
def test_every_note_moves_by_the_semitones_asked_for(tune: Tune, semitones: int) -> None:
    assert midi(transposed(tune, semitones)) == [number + semitones for number in midi(tune)]


@given(pitches, st.integers(-14, 14), st.integers(-24, 24))
def test_a_moved_pitch_sounds_right_and_can_be_written(pitch: Pitch, steps: int, semitones: int) -> None:
    there = moved(pitch, steps, semitones)
    assert there.midi == pitch.midi + semitones
    assert abs(there.alter) <= 2


@given(keys, st.integers(-12, 12))
def test_a_key_above_has_few_sharps_or_flats(key: Key, semitones: int) -> None:
    there = key_above(key, semitones)
    assert abs(fifths(there)) <= 6
    assert (interval(key, there)[1] - semitones) % 12 == 0


@given(tunes())
def test_a_tune_on_c_keeps_its_intervals_and_stands_in_one_octave(tune: Tune) -> None:
    there = to_root_c(tune)
    assert there.key == Key(0, 0, tune.key.mode)
    assert len({after - before for before, after in zip(midi(tune), midi(there), strict=True)}) <= 1
    assert not midi(there) or LOWEST_MEAN <= mean(there) < LOWEST_MEAN + 12
    assert to_root_c(there) == there


@given(tunes(), keys)
def test_a_tune_written_for_people_stands_near_the_middle_of_the_staff(tune: Tune, key: Key) -> None:
    there = to_key(tune, key)
    assert there.key == Key(key.letter, key.alter, tune.key.mode)
    assert not midi(there) or abs(mean(there) - STAFF_MEAN) < 8


def test_a_scale_in_another_key_needs_no_accidental() -> None:
    scale = parse_tune(abc("CDEFGABc"))
    for name in ("G", "D", "A", "F", "Bb", "Eb"):
        parsed = parse_key(name)
        assert parsed is not None
        assert not any(token[0] in "^_=" for token in tokenize(to_key(scale, parsed[0])))
