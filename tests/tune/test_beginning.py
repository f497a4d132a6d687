"""Beginnings: any ABC, in any key and order of headers, as a model's tokens on C and back."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gruve.errors import TuneError
from gruve.tune.beginning import read_beginning
from gruve.tune.parse import parse_tune
from gruve.tune.score import Key, Note, Tempo, Tune
from gruve.tune.tokens import join, split
from gruve.tune.write import complete, write_tune
from tunes import abc, kept

JIG = "M:6/8\nL:1/8\n"


def numbers(tune: Tune) -> list[int]:
    return [event.pitch.midi for event in tune.events if isinstance(event, Note) and event.pitch]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L:1/8\nM:6/8\nK:Cmaj\n|: CDE", "L:1/8\nM:6/8\nK:Cmaj\n|: CDE"),  # the model's own text
        ("L:1/8\nM:6/8\n", "L:1/8\nM:6/8\n"),
        ("M:6/8", "L:1/8\nM:6/8\n"),  # meter first
        ("M:2/4", "L:1/16\nM:2/4\n"),
        ("M:6/8 \nL:1/16", "L:1/16\nM:6/8\n"),
        ("M:6/8\nL:1/8\nK:Cmaj\n", "L:1/8\nM:6/8\nK:Cmaj\n"),
        ("K:Am\nM:3/4\n", "L:1/8\nM:3/4\nK:Cmin\n"),
        ("R:slip jig\n", "L:1/8\nM:9/8\n"),
        ("X:1\nT:Only a title\n", ""),
        (f"X:7\nT:t\n{JIG}K:G\n|: GAB dBG |", "L:1/8\nM:6/8\nK:Cmaj\n|: CDEGEC| "),
        (f"{JIG}K:Dmix\n|: DEF G2A |1 B", "L:1/8\nM:6/8\nK:Cmix\n|: CDEF2G|1 A"),
        (f'{JIG}K:G\n"G"G2{{a}}B [Gd]2B', "L:1/8\nM:6/8\nK:Cmaj\nC2EG2E"),
        (f"{JIG}K:G\nGAB dBG|]", "L:1/8\nM:6/8\nK:Cmaj\nCDEGEC||\n"),  # a whole tune goes on with a part
        (f"{JIG}K:G\nGAB dBG:|", "L:1/8\nM:6/8\nK:Cmaj\n|: CDEGEC:|\n"),
        ("R:jig\nK:C\nCDE", "L:1/8\nM:6/8\nK:Cmaj\nCDE"),
        ("CDE", "L:1/8\nM:4/4\nK:Cmaj\nCDE"),
        (f"{JIG}K:G\nGAB d2-", "L:1/8\nM:6/8\nK:Cmaj\nCDEG2-"),  # the next note is to sound on
        (f"{JIG}K:G\nGAB dBG-|", "L:1/8\nM:6/8\nK:Cmaj\nCDEGEC-| "),
        (f"{JIG}K:G\nGAB d2z-", "L:1/8\nM:6/8\nK:Cmaj\nCDEG2z"),  # no note to tie
    ],
)
def test_a_beginning_becomes_the_models_tokens(text: str, expected: str) -> None:
    beginning = read_beginning(text)
    assert join(split(beginning.text)) == join(split(expected))


def test_every_way_to_write_a_tune_in_any_key_is_the_same_beginning_and_comes_back() -> None:
    for one in kept()[:60]:
        for key in ("G", "D", "Bb"):
            tune = parse_tune("X:1\n" + join(one.tokens))
            text = write_tune(complete(_in(tune, key)), title="A title")
            beginning = read_beginning(text)
            back = beginning.finish(parse_tune("X:1\n" + beginning.text))
            assert numbers(back) == numbers(parse_tune(text)), one.source
            assert (back.title, back.key) == ("A title", parse_tune(text).key)
            assert not [finding for finding in beginning.findings if finding.level != "note"]


def _in(tune: Tune, name: str) -> Tune:
    from gruve.tune.keys import parse_key, within_seven_signs
    from gruve.tune.transpose import to_key

    parsed = parse_key(name)
    assert parsed is not None
    return to_key(tune, within_seven_signs(Key(parsed[0].letter, parsed[0].alter, tune.key.mode)))


def test_what_a_tune_is_called_and_played_at_is_taken_over() -> None:
    beginning = read_beginning("X:1\nT:Mine\nR:air\nQ:1/4=66\nM:3/4\nL:1/8\nK:D\nD2 F2 A2|")
    tune = beginning.finish(parse_tune("X:1\n" + beginning.text))
    assert (tune.title, tune.rhythm) == ("Mine", "air")
    assert tune.tempo == Tempo(Fraction(1, 4), 66)


def test_headers_alone_leave_the_octave_to_the_range() -> None:
    beginning = read_beginning("M:6/8\nK:G\n")
    tune = beginning.finish(parse_tune("X:1\nL:1/8\nM:6/8\nK:Cmaj\nG,CE GEC|]"))
    assert tune.key == Key(4, 0, "maj")
    assert numbers(tune) == [62, 67, 71, 74, 71, 67]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f'{JIG}K:G\n"Am"G', "left out: chord symbols and annotations (1)"),
        (f"{JIG}K:G\nG\nw:la\n", "left out: lines of lyrics (1)"),
        ("K:C\nCDE", "no meter; it is taken for 4/4"),
        (f"X:1\n{JIG}K:G\nGAB|]\n\nX:2\nM:3/4\nK:D\nd3|]\n", "2 tunes; only the first is read"),
        ("M:4/4\nCDE", "no K: field before the music; it is read in C major"),
    ],
)
def test_what_was_left_out_or_assumed_is_said(text: str, told: str) -> None:
    assert told in [finding.message for finding in read_beginning(text).findings]


def test_a_byte_order_mark_is_passed_over() -> None:
    text = f"X:1\n{JIG}K:G\nGAB dBG |"
    assert read_beginning("\ufeff" + text) == read_beginning(text)


def test_a_meter_that_changes_is_refused() -> None:
    with pytest.raises(TuneError, match="the meter changes"):
        read_beginning(abc("ABcd efga|[M:3/4]ABc"))
