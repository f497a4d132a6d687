"""Writing: pretty ABC that says the same, from sound tokens and from nonsense."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import assume, given

from gruve.errors import TuneError
from gruve.tune.draw import engraving_warnings
from gruve.tune.parse import parse_tune
from gruve.tune.recover import recovered
from gruve.tune.score import Key, Note, Tune
from gruve.tune.tokens import detokenize, join, split
from gruve.tune.transpose import to_key
from gruve.tune.write import complete, write_tune
from tunes import abc, kept, token_lists, tunes


def written(music: str, meter: str = "4/4") -> list[str]:
    return write_tune(parse_tune(abc(music, meter))).splitlines()[5:]


@given(tunes())
def test_what_is_written_reads_as_the_same_tune(tune: Tune) -> None:
    assert replace(parse_tune(write_tune(tune)), title="") == tune


@pytest.mark.parametrize("title", ["漢字 %d", "100%", "%", "50 %% off"])
def test_a_title_keeps_its_percent_signs(title: str) -> None:
    assert parse_tune(write_tune(parse_tune(abc("A8|]")), title=title)).title == title


def test_the_headers_are_what_musicians_write() -> None:
    tune = to_key(parse_tune(abc("A8|]", meter="C|", key="Cdor")), Key(5, 0, "maj"))
    assert write_tune(tune, title="A\nReel %1", number=7).splitlines()[:5] == [
        "X:7",
        r"T:A Reel \%1",
        "M:C|",
        "L:1/8",
        "K:Ador",
    ]


def test_a_complete_tune_has_a_rhythm_a_tempo_and_notes_and_the_key_last() -> None:
    tune = complete(parse_tune(abc("ABc dBA|]", meter="6/8", key="G")))
    assert write_tune(tune, title="Jig", fields=[("N", "by gruve,\nseed 7")]).splitlines()[:8] == [
        "X:1", "T:Jig", "R:jig", "N:by gruve, seed 7", "M:6/8", "L:1/8", "Q:3/8=116", "K:G",
    ]  # fmt: skip


@given(tunes())
def test_a_complete_tune_reads_as_it_was_written(tune: Tune) -> None:
    assert replace(parse_tune(write_tune(complete(tune))), title="") == complete(tune)


def test_a_complete_tune_is_engraved_without_a_warning() -> None:
    some = [write_tune(complete(detokenize(one.tokens)), fields=[("N", "a note")]) for one in kept()[:40]]
    assert not [log for log in engraving_warnings(some) if log]


@pytest.mark.parametrize(
    ("music", "meter", "lines"),
    [
        ("ABcdefga|A2B2c2d2|]", "4/4", ["ABcd efga | A2B2 c2d2 |]"]),
        ("d|ABcdef|A2Bc2d|A3-A2|]", "6/8", ["d | ABc def | A2B c2d | A3- A2 |]"]),
        ("Bc|(3ABcd2e2|]", "3/4", ["Bc | (3ABc d2 e2 |]"]),
        ("|:A8|B8|A8|B8|A8:|:d8|1e8:|2f8|]", "4/4", ["|: A8 | B8 | A8 | B8 |", "A8 :|", "|: d8 |1 e8 :|2 f8 |]"]),
        ("A8|B8|:A8:|", "4/4", ["A8 | B8 ||", "|: A8 :|"]),
    ],
)
def test_beams_follow_the_beat_and_lines_the_parts(music: str, meter: str, lines: list[str]) -> None:
    assert written(music, meter) == lines


def test_sound_tokens_are_recovered_as_the_tune_they_spell() -> None:
    for one in kept():
        assert recovered(one.tokens) == detokenize(one.tokens)


@given(token_lists)
def test_any_tokens_can_be_written_and_read_again(tokens: list[str]) -> None:
    tune = recovered(tokens)
    text = write_tune(tune)
    if tune.events:
        assert replace(parse_tune(text), title="") == tune


@given(token_lists)
def test_recovery_keeps_every_note_in_its_order(tokens: list[str]) -> None:
    letters = [token.strip("^_=,'").upper() for token in tokens if token.strip("^_=,'").upper() in {*"ABCDEFGZ"}]
    played = [event.pitch.letter if event.pitch else 7 for event in recovered(tokens).events if isinstance(event, Note)]
    assert played == ["CDEFGABZ".index(letter) for letter in letters]


@given(token_lists)
def test_recovery_changes_nothing_that_reads(tokens: list[str]) -> None:
    tokens = ["L:1/8\n", "M:6/8\n", "K:Cmaj\n", *(token for token in tokens if ":1" not in token and token[1:2] != ":")]
    assume(split(join(tokens)) == tokens and not re.search("[<>]{2}", join(tokens)))  # what runs together in a text
    try:
        tune = detokenize(tokens)
    except TuneError:
        return
    assert recovered(tokens) == tune


@pytest.mark.parametrize(
    ("music", "notes"),
    [("2A", "A"), ("A>|B", "A|B"), ("(3AB|c", "AB|c"), ("-A--", "A"), ("|1A:|2", "A"), ("(3(3ABc", "(3ABc")],
)
def test_what_makes_no_sense_is_passed_over(music: str, notes: str) -> None:
    head = ["L:1/8\n", "M:4/4\n", "K:Cmaj\n"]
    said, wanted = recovered([*head, *split(music)]), parse_tune(abc(notes))
    assert [e for e in said.events if isinstance(e, Note)] == [e for e in wanted.events if isinstance(e, Note)]


def test_of_two_lengths_the_first_counts() -> None:
    assert recovered(["L:1/8\n", "M:4/4\n", "K:Cmaj\n", "A", "2", "3"]) == parse_tune(abc("A2"))


def test_without_a_note_the_headers_are_written() -> None:
    assert write_tune(recovered([])).splitlines() == ["X:1", "T:Untitled", "M:4/4", "L:1/8", "K:C"]
