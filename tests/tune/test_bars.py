"""The judge of bars, against tunes whose bars a musician would call right or wrong."""

from __future__ import annotations

import pytest
from hypothesis import given

from gruve.tune.bars import play_order, segments, wrong_bars
from gruve.tune.parse import parse_tune
from gruve.tune.score import WHOLE, Tune
from gruve.tune.tokens import detokenize
from tunes import abc, kept, tunes


def verdict(music: str, meter: str = "4/4") -> list[str]:
    return [str(wrong) for wrong in wrong_bars(parse_tune(abc(music, meter)))]


@pytest.mark.parametrize(
    "music",
    [
        "A8|B8|]",
        "A2|B8|c6|]",  # a pick-up, and a last bar that completes it
        "A2|B8|c8|]",  # a pick-up, and a last bar that does not need it
        "|:A2|B8|c6:|",  # the repeat goes back to the pick-up
        "A2|:B8|c8:|",  # the repeat goes back behind it
        "|:A2|B8|c6:|:A2|B8|c6:|",
        "|:A8:|:B8:|",
        "|:A2|B8|1c6:|2c6||d2|e6|]",  # each ending completes its own way on
        "|:A2|B8|1c6:|2c8|]",
        "A2|B8|c6||d2|e8|f6|]",  # a part ends in the middle of a bar that the next begins
        "|:A8|B4|1c4:|2d4|]",  # endings that split a bar
        "(3A4A4A4|A4>B4|z8|]",
        "A>B A>B A>B A>B|A8-|A8|]",
    ],
)
def test_right_bars_are_called_right(music: str) -> None:
    assert verdict(music) == []


@pytest.mark.parametrize(
    ("music", "wrong"),
    [
        ("A8|B7|c8|]", ["bar 2 has 7/8 of a whole note, not 1"]),
        ("A8|B9|c8|]", ["bar 2 has 9/8 of a whole note, not 1"]),
        ("A9|B8|]", ["bar 1 has 9/8 of a whole note, not 1"]),
        ("A8|B6|]", ["bar 2 has 3/4 of a whole note, not 1"]),
        ("A2|B8|c4|]", ["bar 3 has 1/2 of a whole note, not 1"]),
        ("|:A2|B8|c8:|", ["bar 1 has 1/4 of a whole note, not 1"]),
        (
            "|:A8|B6:|:c8:|",
            ["bar 2 with 1 has 7/4 of a whole note, not 1", "bar 2 with 4 has 7/4 of a whole note, not 1"],
        ),
        ("A8|B8||c2|d8|]", ["bar 3 has 1/4 of a whole note, not 1"]),
        ("|:A2|B8|1c5:|2c6|]", ["bar 3 with 1 has 7/8 of a whole note, not 1"]),
        ("A8|(3A4A4A3|]", ["bar 2 has 11/12 of a whole note, not 1"]),
    ],
)
def test_wrong_bars_are_named_with_their_lengths(music: str, wrong: list[str]) -> None:
    assert verdict(music) == wrong


def test_a_wrong_bar_that_is_played_twice_is_reported_once() -> None:
    assert len(verdict("|:A8|B7|c8:|")) == 1


def test_repeats_and_endings_are_played_in_turn() -> None:
    parts = segments(parse_tune(abc("|:A|B|1c:|2d||e|:f:|")).events)
    assert play_order(parts) == [0, 1, 2, 0, 1, 3, 4, 5, 5]


@given(tunes())
def test_every_segment_is_played_once_or_twice(tune: Tune) -> None:
    parts = segments(tune.events)
    order = play_order(parts)
    assert sorted(set(order)) == [n for n, part in enumerate(parts) if part.ticks]
    assert all(order.count(n) <= 2 for n in order)


def test_all_bars_of_every_kept_tune_are_right() -> None:
    assert not [tune.source for tune in kept() if wrong_bars(detokenize(tune.tokens))]


def test_a_bar_made_too_long_is_found_in_every_kept_tune() -> None:
    for tune in kept():
        tokens = list(tune.tokens)
        bars = [n for n, token in enumerate(tokens) if token == "| "]
        tokens[bars[2] : bars[2]] = ["z", "/4"]  # in the middle of the tune
        assert any(wrong.ticks % WHOLE for wrong in wrong_bars(detokenize(tokens))), tune.source
