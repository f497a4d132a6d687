"""The tolerant reader: anybody's ABC, read on over what the strict one refuses, and every departure said."""

from __future__ import annotations

import contextlib
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruve.errors import TuneError
from gruve.tune.bars import sounding
from gruve.tune.check import check_book
from gruve.tune.parse import parse_any_tune, parse_tune
from gruve.tune.play import midi_file, played
from gruve.tune.raw import Findings
from gruve.tune.read import MAX_TUNE_CHARACTERS
from gruve.tune.score import Note, Tune, whole_notes
from gruve.tune.write import write_tune
from gruve.tune.written_out import expanded_order
from tunes import abc


def read(text: str) -> tuple[Tune, list[str]]:
    """The tune, and what was found but for notes."""
    findings = Findings()
    tune = parse_any_tune(text, findings).tune
    return tune, [finding.message for finding in findings.all() if finding.level != "note"]


def numbers(tune: Tune) -> list[int]:
    """The MIDI numbers as they are played."""
    return [sound.midi for sound in played(tune)]


def lengths(tune: Tune) -> list[Fraction]:
    return [whole_notes(ticks) for event, ticks in sounding(tune.events) if isinstance(event, Note)]


@pytest.mark.parametrize(
    ("chords", "notes"),
    [
        ("[C4-c4-] | [Cc]4", 1),  # a tie inside the chord ties its own note
        ("[C4c4]- | [Cc]4", 1),
        ("[C4-c4] | [Cc]4", 2),  # of a lower note, which is left out
        ("[C4-c4-] | [CB]4", 2),  # to another top note
    ],
)
def test_a_tie_inside_a_chord_is_that_of_its_top_note(chords, notes):
    tune, _ = read(abc(f"{chords} z8 |"))
    assert len(numbers(tune)) == notes


@pytest.mark.parametrize(
    ("key", "music", "expected"),
    [
        ("D exp _b ^f", "cBfF", [72, 70, 78, 66]),  # these signs alone: C is natural
        ("D ^g", "cgf", [73, 80, 78]),  # the key's signs, and one more
        ("none", "cf", [72, 77]),
        ("", "cf", [72, 77]),
        ("clef=bass", "cf", [72, 77]),
        ("C octave=-1", "cf", [60, 65]),
        ("C treble-8", "cf", [60, 65]),
        ("C clef=treble+8", "cf", [84, 89]),
        ("C transpose=-2", "cf", [70, 75]),
        ("C transpose=14", "c", [86]),
    ],
)
def test_a_key_field_says_how_notes_sound(key: str, music: str, expected: list[int]) -> None:
    tune, found = read(abc(music, key=key))
    assert (numbers(tune), found) == (expected, [])


def test_a_voice_says_how_its_notes_sound() -> None:
    assert numbers(read("X:1\nM:4/4\nV:1 octave=1\nV:2\nK:C\nV:1\ncd\nV:2\nef\nV:1\ng")[0]) == [84, 86, 91]


def test_a_transposed_key_is_the_one_that_sounds() -> None:
    tune, _ = read(abc("defg", key="D transpose=-2"))
    assert numbers(tune) == [72, 74, 76, 77]
    assert write_tune(tune).splitlines()[-2:] == ["K:C", "cdef |]"]


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("AABB", "AABB"),
        ("A2B2", "AABB"),
        ("A.B.A", "ABA"),
        ("(AB)2C", "ABABC"),
        ("((AB)2C)2", "ABABCABABC"),
        ("ABA da capo", "ABA"),
        ("A99", "A" * 64),
        (")A(B", "AB"),
        ("", ""),
    ],
)
def test_an_order_of_parts_is_expanded(order: str, names: str) -> None:
    assert "".join(expanded_order(order)) == names


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("AABB", [60, 60, 62, 62]),
        ("ABA", [60, 62, 60]),
        ("AB", [60, 62]),
        ("AAA", [60, 60, 60]),
        ("AC", [60]),
    ],
)
def test_parts_are_played_in_the_order_of_the_header(order: str, expected: list[int]) -> None:
    tune, found = read(f"X:1\nM:4/4\nL:1/1\nP:{order}\nK:C\nP:A\nC|\nP:B\nD|]\n")
    assert numbers(tune) == expected
    assert bool(found) == (order != "AB")
    assert numbers(parse_tune(write_tune(tune))) == expected


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        ("|:C8|1D8:|2E8:|3F8|]", [60, 62, 60, 64, 60, 65]),
        ("|:C8|1,3 D8:|2,4 E8:|", [60, 62, 60, 64] * 2),
        ("|:C8|[1-2 D8:|[3 E8|]", [60, 62, 60, 62, 60, 64]),
        ("A8|:C8|[1,2D8:|[3E8||F8|]", [69, 60, 62, 60, 62, 60, 64, 65]),
        ("|:C8|1D8:|2E8|]", [60, 62, 60, 64]),
        ("|:C8|1D8:|", [60, 62, 60, 62]),
        (":|C8|]", [60]),
    ],
)
def test_endings_are_played_as_they_are_numbered(music: str, expected: list[int]) -> None:
    tune, _ = read(abc(music))
    assert numbers(tune) == expected
    assert numbers(parse_tune(write_tune(tune))) == expected


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        ("C8|Z2|D8|]", ["1", "1", "1", "1"]),
        ("A>|B c2", ["3/16", "1/16", "1/4"]),
        ("A|>B c2", ["3/16", "1/16", "1/4"]),
        ("(3(3EFG A", ["1/12", "1/12", "1/12", "1/8"]),  # the same sign twice is one
        ("(3A(3BcdE", ["1/12", "1/18", "1/18", "1/18", "1/8"]),
        ("(3A(2BcE", ["1/12", "1/8", "1/8", "1/8"]),
        ("(3AB|cd", ["1/12", "1/12", "1/12", "1/8"]),
        ("(3AB", ["1/12", "1/12"]),
    ],
)
def test_lengths_are_read_where_the_strict_reader_refuses(music: str, expected: list[str]) -> None:
    tune, _ = read(abc(music))
    assert lengths(tune) == [Fraction(one) for one in expected]
    with pytest.raises(TuneError):
        parse_tune(abc(music))


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        ("A & c | B", [69, 71]),
        ("A & c2 d2 & e | B & f | G", [69, 71, 67]),
        ("(& A | B & c | d &) | G", [69, 71, 67]),
        ("^/c _/B ^3/2c _3/4B", [73, 70, 74, 70]),
        ("A ? B", [69, 71]),
        ("[CEG c", [60, 64, 67, 72]),
    ],
)
def test_pitches_are_read_where_the_strict_reader_refuses(music: str, expected: list[int]) -> None:
    assert numbers(read(abc(music))[0]) == expected
    with pytest.raises(TuneError):
        parse_tune(abc(music))


def test_old_line_ends_are_lines_for_both_readers() -> None:
    text = abc("A8|B8|]").replace("\n", "\r")
    assert parse_tune(text) == read(text)[0] == parse_tune(abc("A8|B8|]"))


@pytest.mark.parametrize("head", ["M:none\n", "M:\n", ""])
def test_free_meter_stays_free_and_has_no_wrong_bars(head: str) -> None:
    (checked,) = check_book(f"X:1\nT:t\n{head}L:1/8\nK:C\nABc|d|]")
    assert checked.is_right
    assert checked.fixed == "X:1\nT:t\nM:none\nL:1/8\nK:C\nABc | d |]\n"


def test_a_meter_that_changes_is_kept_and_judges_the_bars_behind_it() -> None:
    (checked,) = check_book("X:1\nT:t\nM:4/4\nL:1/4\nK:C\nABcd|\nM:3/4\nABc|ABcd|[M:2/4]AB|]\n")
    assert [(one.line, one.column, one.message) for one in checked.findings] == [
        (8, 5, "bar 3 has 1 of a whole note, not 3/4; it stays")
    ]
    assert checked.fixed is not None
    assert checked.fixed.splitlines()[5:] == ["A2B2 c2d2 | [M:3/4] A2 B2 c2 | A2 B2 c2 d2 | [M:2/4] A2 B2 |]"]
    assert midi_file(read(checked.fixed)[0]).count(b"\xff\x58\x04") == 3


def test_what_is_left_out_is_said_once_for_each_kind_with_its_first_place() -> None:
    text = 'X:1\nT:t\nM:4/4\nL:1/8\nK:C\n"Am"A2 {g}A2 !trill!A2 [CE]2|"G"(AB) c6|]\nw:la la\n'
    (checked,) = check_book(text)
    assert [(one.level, one.line, one.column, one.message) for one in checked.findings] == [
        ("note", 6, 1, "left out: chord symbols and annotations (2)"),
        ("note", 6, 8, "left out: grace notes (1)"),
        ("note", 6, 14, "left out: decorations (1)"),
        ("note", 6, 24, "left out: chords but for their top notes (1)"),
        ("note", 6, 33, "left out: slurs (2)"),
        ("note", 7, 1, "left out: lines of lyrics (1)"),
    ]


@pytest.mark.parametrize("text", ["X:1\nT:t\nK:C\n", "X:1\nT:t\n", "X:1\nT:t\nK:C\n" + "? " * 500])
def test_what_is_about_a_whole_tune_stands_at_its_beginning(text: str) -> None:
    _, second = check_book(f"X:0\nT:t\nK:C\nC4|\n\n{text}")
    assert min((finding.line, finding.column) for finding in second.findings) >= (6, 1)
    assert any((finding.line, finding.column) == (6, 1) for finding in second.findings)
    assert all(finding.column >= 1 for finding in second.findings)


def test_a_book_is_checked_with_its_own_lines_and_headers_are_kept() -> None:
    book = "X:1\nT:One\nC:Trad\nM:4/4\nK:C\nA8|]\n\nX:7\nT:Two\nO:Cork\nM:4/4\nK:C\nA8|A7|]\n\nX:8\nK:C\n"
    one, two, three = check_book(book)
    assert one.is_right
    assert "C:Trad" in (one.fixed or "")
    assert [(finding.line, finding.column) for finding in two.findings] == [(13, 4)]
    assert (two.fixed or "").startswith("X:7\nT:Two\nO:Cork\n")
    assert three.fixed is None
    assert [finding.message for finding in three.findings if finding.level == "error"] == ["no notes"]


@pytest.mark.parametrize("number", ["", "²", "٣", "seven", "1234567890"])
def test_a_tune_without_a_usable_number_is_checked_as_number_1(number: str) -> None:
    (checked,) = check_book(f"X:{number}\nT:t\nM:4/4\nL:1/8\nK:C\nA8|]\n")
    assert [str(finding.message) for finding in checked.findings] == [
        "no X: field with a number of 1 to 9 digits; it is 1"
    ]
    assert (checked.fixed or "").startswith("X:1\n")


def test_what_is_fixed_has_nothing_left_to_fix() -> None:
    (first,) = check_book("X:1\nT:t\nM:4/4\nL:1/8\nP:AAB\nK:G\nP:A\n|:ABcd efga|1,3 (3AB|c g6:|2 A8:|\nP:B\nZ2|]\n")
    (second,) = check_book(first.fixed or "")
    assert second.fixed == first.fixed
    assert [one.message for one in second.findings if "bar" not in one.message] == []


@given(st.text(alphabet="ABcdz^_=,'0123456789/()[]{}<>|:-~.\"!+\\%& \n\tKLMPVTwxyZ", max_size=300))
def test_any_music_is_read_or_has_no_notes_and_is_stable_when_fixed(music: str) -> None:
    for tune in check_book(abc(music)):
        if tune.fixed:
            assert [again.fixed for again in check_book(tune.fixed)] == [tune.fixed]
        else:
            assert [one.message for one in tune.findings if one.level == "error"]


@given(st.text(max_size=200))
def test_any_text_at_all_is_checked(text: str) -> None:
    assert all(tune.fixed or tune.findings for tune in check_book(text))


@pytest.mark.parametrize(
    "part", ["|:A|1,16B:|", "|:A|1-9B:|", "P:A\nA|\n", "(3A(3B", "A&", "(&", "[V:1]A[V:2]B", "Z9", "?", "(9A|", "^/A"]
)
def test_the_longest_hostile_tune_is_read_in_seconds(part: str) -> None:
    text = abc(part * ((MAX_TUNE_CHARACTERS - 100) // len(part))).replace("K:", "P:(A99)99\nK:")
    start = time.process_time()
    with contextlib.suppress(TuneError):
        parse_any_tune(text, Findings())
    assert time.process_time() - start < 20
