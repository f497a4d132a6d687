"""Playing: notes in the order and at the times they sound, and a MIDI file that says so."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given

import midi
from gruve.tune.parse import parse_tune
from gruve.tune.play import midi_file, played
from gruve.tune.score import Key, Meter, Tune, whole_notes
from requiring import need_program
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


def meta(tune: Tune, kind: int) -> bytes:
    """The content of the first meta event of a kind, at the very start of the track."""
    data = midi_file(tune)
    at = data.index(bytes([0, 0xFF, kind])) + 3
    assert at < 60
    return data[at + 1 : at + 1 + data[at]]


@pytest.mark.parametrize(
    ("meter", "expected"),
    [
        ("6/8", (6, 3, 36, 8)),
        ("9/8", (9, 3, 36, 8)),
        ("4/4", (4, 2, 24, 8)),
        ("C|", (2, 1, 48, 8)),
        ("3/8", (3, 3, 12, 8)),
    ],
)
def test_a_midi_file_has_the_time_signature(meter: str, expected: tuple[int, ...]) -> None:
    assert meta(parse_tune(abc("A8", meter=meter)), 0x58) == bytes(expected)


@pytest.mark.parametrize(
    ("key", "sharps", "minor"),
    [("C", 0, 0), ("D", 2, 0), ("Bb", -2, 0), ("Em", 1, 1), ("Cm", -3, 1), ("Ador", 1, 0), ("Amix", 2, 0)],
)
def test_a_midi_file_has_the_key_signature(key: str, sharps: int, minor: int) -> None:
    assert meta(parse_tune(abc("A8", key=key)), 0x59) == sharps.to_bytes(1, "big", signed=True) + bytes([minor])


def test_a_key_of_more_than_seven_flats_is_written_as_its_equivalent() -> None:
    assert meta(Tune(Meter(4, 4), Key(4, -1, "min"), parse_tune(abc("A8")).events), 0x59) == bytes([3, 1])


def test_a_midi_file_has_the_tempo_of_the_tune_or_of_its_dance() -> None:
    assert meta(parse_tune("X:1\nM:6/8\nQ:1/4=120\nK:C\nA6"), 0x51) == (500_000).to_bytes(3, "big")
    assert meta(parse_tune("X:1\nM:6/8\nK:C\nA6"), 0x51) == (344_827).to_bytes(3, "big")  # 116 dotted quarters


def test_abc2midi_writes_the_same_time_and_key_signature(tmp_path: Path) -> None:
    program = need_program("abc2midi", "apt-get install abcmidi")
    text = "X:1\nT:t\nM:6/8\nL:1/8\nQ:3/8=116\nK:Ador\nA6|]\n"
    (tmp_path / "a.abc").write_text(text)
    subprocess.run([program, "a.abc", "-o", "a.mid"], cwd=tmp_path, capture_output=True, check=True)
    theirs = (tmp_path / "a.mid").read_bytes()
    tune = parse_tune(text)
    for kind, size in ((0x51, 3), (0x58, 3), (0x59, 1)):
        at = theirs.index(bytes([0xFF, kind])) + 3
        assert theirs[at : at + size] == meta(tune, kind)[:size]
