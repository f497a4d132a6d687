"""The ABC reader: what it reads, what it leaves out by rule, what it refuses and where."""

from __future__ import annotations

import contextlib
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruve.errors import TuneError
from gruve.tune.bars import sounding
from gruve.tune.parse import parse_tune
from gruve.tune.read import MAX_TUNE_CHARACTERS
from gruve.tune.score import LETTERS, Bar, Key, Meter, Note, Tune, whole_notes
from tunes import abc


def said(tune: Tune) -> list[str]:
    """Notes and lines in words: `F#4 1/8`, `rest 1/4`, `|`."""
    words: list[str] = []
    for event, ticks in sounding(tune.events):
        if isinstance(event, Bar):
            words.append(event.kind)
        elif isinstance(event, Note) and event.pitch:
            name = LETTERS[event.pitch.letter] + {0: "", 1: "#", -1: "b", 2: "##", -2: "bb"}[event.pitch.alter]
            words.append(f"{name}{4 + event.pitch.staff // 7}{'~' * event.tied} {whole_notes(ticks)}")
        elif isinstance(event, Note):
            words.append(f"rest {whole_notes(ticks)}")
    return words


def heard(music: str, **headers: str) -> list[str]:
    return said(parse_tune(abc(music, **headers)))[:-1]


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        ("C,c'", ["C3 1/8", "C6 1/8"]),
        ("A2A/2A/A//A3/2", ["A4 1/4", "A4 1/16", "A4 1/16", "A4 1/32", "A4 3/16"]),
        ("^F_B=C^^G__A", ["F#4 1/8", "Bb4 1/8", "C4 1/8", "G##4 1/8", "Abb4 1/8"]),
        ("^FFf|F", ["F#4 1/8", "F#4 1/8", "F#5 1/8", "|", "F4 1/8"]),
        ("A>B A<B A>>B", ["A4 3/16", "B4 1/16", "A4 1/16", "B4 3/16", "A4 7/32", "B4 1/32"]),
        ("(3ABc d", ["A4 1/12", "B4 1/12", "C5 1/12", "D5 1/8"]),
        ("(3:2:4ABcd e", ["A4 1/12", "B4 1/12", "C5 1/12", "D5 1/12", "E5 1/8"]),
        ("(2AB", ["A4 3/16", "B4 3/16"]),
        ("z2x", ["rest 1/4", "rest 1/8"]),
        ("A-A B-c", ["A4~ 1/8", "A4 1/8", "B4 1/8", "C5 1/8"]),
        ("^c-|c c", ["C#5~ 1/8", "|", "C#5 1/8", "C5 1/8"]),
        ("[CEG]2 [A2F2]/", ["G4 1/4", "A4 1/8"]),
        ("+CE+2", ["E4 1/4"]),
        ('{ga}A{/b}B "Am"c !trill!d .e ~f vg (ab) Tc\'', ["A4 1/8", "B4 1/8", "C5 1/8", "D5 1/8", "E5 1/8", "F5 1/8",
            "G5 1/8", "A5 1/8", "B5 1/8", "C6 1/8"]),
        ("A`B y c\\\nd % the rest is silence", ["A4 1/8", "B4 1/8", "C5 1/8", "D5 1/8"]),
        ("A[K:D]F[L:1/4]F\nK:C\nF", ["A4 1/8", "F#4 1/8", "F#4 1/4", "F4 1/4"]),
        ("[V:1]AB[V:2]cd\n[V:1]e\nV:2\nf", ["A4 1/8", "B4 1/8", "E5 1/8"]),
    ],
)  # fmt: skip
def test_music_is_read_as_the_standard_says(music: str, expected: list[str]) -> None:
    assert heard(music) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("D", "F#4"), ("Bm", "F#4"), ("EMin", "F#4"), ("ADor", "F#4"), ("A mixolydian", "F#4"), ("Dphr", "F4"),
        ("C exp ^f", "F#4"), ("Dmix=f", "F4"), ("HP", "F#4"), ("Gb", "F4"), ("C#", "F#4"), ("F clef=bass", "F4"),
    ],
)  # fmt: skip
def test_a_key_signature_is_in_force(key: str, expected: str) -> None:
    assert heard("F", key=key) == [f"{expected} 1/8"]


@pytest.mark.parametrize(
    ("meter", "expected"),
    [("C", Meter(4, 4)), ("C|", Meter(2, 2)), ("6/8", Meter(6, 8)), ("2+3/8", Meter(5, 8)), ("(3+2+3)/8", Meter(8, 8))],
)
def test_a_meter_is_read(meter: str, expected: Meter) -> None:
    assert parse_tune(abc("A", meter=meter)).meter == expected


@pytest.mark.parametrize(
    ("meter", "unit"), [("2/4", Fraction(1, 16)), ("3/4", Fraction(1, 8)), ("6/8", Fraction(1, 8))]
)
def test_without_a_unit_length_the_meter_gives_it(meter: str, unit: Fraction) -> None:
    assert said(parse_tune(f"X:1\nM:{meter}\nK:C\nA"))[0] == f"A4 {unit}"


def test_a_rare_mode_keeps_its_notes_and_takes_the_common_mode_of_its_third() -> None:
    tune = parse_tune(abc("CF", key="Clyd"))
    assert tune.key == Key(0, 0, "maj")
    assert said(tune)[1] == "F#4 1/8"


@pytest.mark.parametrize(
    ("music", "lines"),
    [
        ("A|B|]", "| |]"),
        ("A|B", "| |]"),
        ("A|B:|", "|: | :|"),
        ("A::B:|", "|: :| |: :|"),
        ("A:||:B:|", "|: :| |: :|"),
        ("A||B:|c||", "|: :| |]"),
        ("|:A|1B:|2c|]", "|: |1 :|2 |]"),
        ("A|[1B:|[2c||d:|", "|: |1 :|2 |: :|"),
        ("|:A [1 B:| [2 c|:d:|", "|: |1 :|2 |: :|"),
        ("|:A|1B|2c:|", "|: |1 :|2 |]"),
        ("|:A|B|]", "| |]"),
        ("A|:B|:c:|", "|| |: :|"),
        ("[|A|||B|]", "|| |]"),
        ("A|\n:B:|", "|: :|"),
    ],
)
def test_bar_lines_come_into_their_canonical_form(music: str, lines: str) -> None:
    tune = parse_tune(abc(music))
    assert " ".join(event.kind for event in tune.events if isinstance(event, Bar)) == lines


@pytest.mark.parametrize(
    ("text", "why", "line", "column"),
    [
        (abc("AB\nc?d"), "cannot read '?d'", 6, 2),
        (abc("A|(3AB|c"), "a bar line inside a tuplet", 5, 7),
        (abc("A>|B"), "broken rhythm without its second note", 5, 3),
        (abc(">A"), "'>' does not stand between two notes", 5, 1),
        (abc("A0"), "length '0' is zero or divides by zero", 5, 1),
        (abc("A/3"), "a note of 1/3 units of 1/8 is no multiple of 1/1024", 5, 1),
        (abc("A9999"), "a note of 1249 whole notes; at most 64 are read", 5, 1),
        (abc("[CE"), "a chord is not closed", 5, 1),
        (abc("AB Z2"), "a rest of whole bars", 5, 4),
        (abc("A\nM:3/4\nB"), "the meter changes to '3/4'", 6, 1),
        (abc("A", meter="none"), "meter 'none' is not a fraction of up to 32 beats", 2, 1),
        (abc("A", key="Q"), "key 'Q' is not a root and a mode", 4, 1),
        ("X:1\nK:C\nA", "no meter: bars cannot be counted", 2, 1),
        (abc("|:A|1B:|"), "a first ending without a second", 5, 7),
        (abc("|:A|1,3B:|2c|]"), "ending '1,3'; endings 1 and 2 are read", 5, 4),
        ("X:1\nM:4/4\nA", "no K: field, so no music", 0, 0),
        (abc("|"), "no notes", 0, 0),
        ("A" * (MAX_TUNE_CHARACTERS + 1), "the tune has 65537 characters; at most 65536 are read", 0, 0),
    ],
)
def test_a_refusal_says_what_and_where(text: str, why: str, line: int, column: int) -> None:
    with pytest.raises(TuneError) as caught:
        parse_tune(text)
    assert (caught.value.why, caught.value.line, caught.value.column) == (why, line, column)


@given(st.text(alphabet="ABcdz^_=,'0123456789/()[]{}<>|:-~.\"!+\\%& \n\tKLMVTwxyZ", max_size=300))
def test_any_text_is_read_or_refused(music: str) -> None:
    try:
        tune = parse_tune(abc(music))
    except TuneError:
        return
    assert any(isinstance(event, Note) for event in tune.events)


@given(st.text(max_size=200))
def test_any_text_at_all_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(TuneError):
        parse_tune(text)


@pytest.mark.parametrize("part", ['"', "{", "[A", "![", "[V:1]A[V:2]B", "|:A|1B:|2c|", "(3", "A>", "[K:D]", "::A", "1"])
def test_the_longest_hostile_tune_takes_seconds_not_minutes(part: str) -> None:
    text = abc(part * ((MAX_TUNE_CHARACTERS - 100) // len(part)))
    start = time.process_time()
    with contextlib.suppress(TuneError):
        parse_tune(text)
    assert time.process_time() - start < 20  # measured: under 2
