"""Playing: notes in the order and at the times they sound, and a MIDI file that says so."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given

import midi
from gruve.tune.normal import parse_tune
from gruve.tune.play import midi_file, played
from gruve.tune.score import Tune, whole_notes
from tunes import abc, tunes


def heard(music: str) -> list[tuple[str, int]]:
    return [(str(whole_notes(sound.start)), sound.midi) for sound in played(parse_tune(abc(music)))]


def test_repeats_and_endings_are_played() -> None:
    assert [number for _, number in heard("|:C8|1D8:|2E8||F8|:G8:|")] == [60, 62, 60, 64, 65, 67, 67]


def test_notes_start_when_those_before_them_have_sounded() -> None:
    assert heard("C2 z D>E (3FGA B|]") == [
        ("0", 60), ("3/8", 62), ("9/16", 64), ("5/8", 65), ("17/24", 67), ("19/24", 69), ("7/8", 71),
    ]  # fmt: skip


def test_tied_notes_are_one_also_over_a_bar_line() -> None:
    (sound, other) = played(parse_tune(abc("^F4-|F4 F4|]")))
    assert (sound.start, sound.end, sound.midi) == (0, other.start, 66)


@given(tunes())
def test_a_midi_file_has_the_notes_that_are_played(tune: Tune) -> None:
    found = midi.notes(midi_file(tune))
    meant = [(whole_notes(sound.start), sound.midi) for sound in played(tune)]
    assert [number for _, number in found] == [number for _, number in meant]
    assert all(abs(a - b) < Fraction(1, 1_000) for (a, _), (b, _) in zip(found, meant, strict=True))
