"""Keys and transposition: every semitone right, sensible spelling, and back again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruve.tune.keys import (
    fifths,
    interval,
    key_above,
    key_name,
    key_words,
    moved,
    parse_key,
    parse_key_request,
    signature,
    within_seven_signs,
)
from gruve.tune.parse import parse_tune
from gruve.tune.score import Key, Note, Pitch, Tune
from gruve.tune.tokens import detokenize
from gruve.tune.transpose import FIDDLE, LOWEST_MEAN, moved_by, to_key, to_root_c
from tunes import abc, kept, keys, pitches, tunes

C = Key(0, 0, "maj")


def midi(tune: Tune) -> list[int]:
    return [event.pitch.midi for event in tune.events if isinstance(event, Note) and event.pitch]


def mean(tune: Tune) -> float:
    notes = [event for event in tune.events if isinstance(event, Note) and event.pitch]
    return sum(n.pitch.midi * n.ticks for n in notes if n.pitch) / sum(n.ticks for n in notes)


def in_range(tune: Tune, bounds: tuple[int, int]) -> int:
    """Minus how far and for how long notes lie outside: semitones times ticks."""
    notes = [event for event in tune.events if isinstance(event, Note) and event.pitch]
    return -sum(n.ticks * max(bounds[0] - n.pitch.midi, n.pitch.midi - bounds[1], 0) for n in notes if n.pitch)


def octaves_up(tune: Tune, octaves: int) -> Tune:
    return moved_by(tune, tune.key, 7 * octaves, 12 * octaves)


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
    assert parse_key(key_words(parsed[0])) == parsed


@given(tunes(), st.integers(-14, 14), st.integers(-24, 24))
def test_every_note_moves_by_the_semitones_asked_for(tune: Tune, steps: int, semitones: int) -> None:
    assert midi(moved_by(tune, tune.key, steps, semitones)) == [number + semitones for number in midi(tune)]


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
def test_no_other_octave_has_more_of_a_tune_in_a_fiddles_first_position(tune: Tune, key: Key) -> None:
    there = to_key(tune, key)
    assert there.key == Key(key.letter, key.alter, tune.key.mode)
    for octaves in (-1, 1):
        assert in_range(there, FIDDLE) >= in_range(octaves_up(there, octaves), FIDDLE)


@pytest.mark.parametrize(
    ("music", "lowest"),
    [
        ("C8 c'8", "C4"),  # a tenth would be out of the fiddle's range an octave higher
        ("C8 c8", "C4"),
        ("D8 d8", "D4"),
        ("G,8 G8", "G4"),  # the whistle's range decides
        ("G,8 g8", "G3"),  # two octaves fit the fiddle alone
        ("c8 d8", "C5"),  # the middle of the staff decides
    ],
)
def test_the_octave_is_chosen_by_the_range(music: str, lowest: str) -> None:
    there = to_key(parse_tune(abc(music)), Key(0, 0, "maj"))
    number = min(midi(there))
    assert ("C", "C#", "D", "D#", "E", "F", "F#", "G")[number % 12] + str(number // 12 - 1) == lowest


def test_a_tune_that_fits_a_fiddles_first_position_in_any_octave_is_put_there() -> None:
    for name in ("G", "D", "A", "C", "F", "Bb", "Eb"):
        parsed = parse_key(name)
        assert parsed is not None
        for one in kept():
            there = to_key(detokenize(one.tokens), parsed[0])
            fits = [in_range(octaves_up(there, octaves), FIDDLE) == 0 for octaves in (0, -1, 1)]
            assert fits[0] or not any(fits), (name, one.source)


@pytest.mark.parametrize(
    ("text", "key", "mode"),
    [
        ("G", Key(4, 0, "maj"), None),
        ("Bb", Key(6, -1, "maj"), None),
        ("Am", Key(5, 0, "min"), "min"),
        ("F# minor", Key(3, 1, "min"), "min"),
        ("Gmaj", Key(4, 0, "maj"), "maj"),
        ("Ador", Key(5, 0, "dor"), "dor"),
        ("D mixolydian", Key(1, 0, "mix"), "mix"),
        ("G#", Key(4, 1, "maj"), None),
    ],
)
def test_a_key_that_is_asked_for_may_leave_the_mode_open(text: str, key: Key, mode: str | None) -> None:
    request = parse_key_request(text)
    assert request is not None
    assert (request.key, request.mode) == (key, mode)


@pytest.mark.parametrize("text", ["", "H", "g", "AM", "Gx", "G##", "G treble", "C exp ^f", "Amanly"])
def test_what_is_no_key_is_not_taken_for_one(text: str) -> None:
    assert parse_key_request(text) is None


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (Key(4, 1, "maj"), "Abmaj"),
        (Key(4, -1, "min"), "F#min"),
        (Key(4, 1, "min"), "G#min"),
        (Key(0, 1, "maj"), "C#maj"),
    ],
)
def test_a_key_of_more_than_seven_signs_has_an_equivalent(key: Key, expected: str) -> None:
    assert key_name(within_seven_signs(key)) == expected
