"""Repairs: each does what is certain, changes no note, and is kept only where every bar comes right."""

from __future__ import annotations

import pytest
from hypothesis import given

from gruve.tune.bar_repair import repaired
from gruve.tune.bars import wrong_bars
from gruve.tune.parse import parse_tune
from gruve.tune.score import Note, Tune
from gruve.tune.tokens import join, tokenize
from tunes import abc, tunes


def recovered(music: str) -> str:
    tune = repaired(parse_tune(abc(music)))
    assert not wrong_bars(tune)
    return "".join(join(tokenize(tune)[3:]).split())


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        ("A8|B8|]", "A8|B8|]"),
        ("|:A2|B8|c8:|", "A2|:B8|c8:|"),  # the pick-up is in the last bar already
        ("A2|B8|c8:|", "A2|:B8|c8:|"),
        ("A8|B4|c4|d8|]", "A8|B4c4|d8|]"),  # a line too many
        ("A8|B4B4c4c4|d8|]", "A8|B4B4|c4c4|d8|]"),  # a line too few
        ("A8|B8|c6|]", "A8|B8|c6z2|]"),  # a last bar without its rest
        ("|:A8|B6:|:c8|d6:|", "|:z2|A8|B6:||:z2|c8|d6:|"),  # no pick-up completes these
        ("|:A2|B8|c6:|:d8|e6:|", "|:A2|B8|c6:||:z2|d8|e6:|"),  # one pick-up is a rest
        ("|:A8|B6z2:|:c2|d8|e6:|", "|:z2|A8|B6:||:c2|d8|e6:|"),  # a rest gives way to a pick-up
        ("|:A8|B4|1c4:|2d4|]", "|:A8|1B4c4:|2B4d4|]"),  # endings begin with their bar
    ],
)
def test_what_is_certainly_meant_is_done(music: str, expected: str) -> None:
    assert recovered(music) == expected


@pytest.mark.parametrize("music", ["A8|B7|c8|]", "A8|B9|c8|]", "|:A2|B8|c8:|:d4|e8|f6:|", "A8|B8||c2|d8|]"])
def test_what_is_not_certain_stays_as_it_is(music: str) -> None:
    tune = parse_tune(abc(music))
    assert repaired(tune) == tune


@given(tunes())
def test_no_note_is_touched(tune: Tune) -> None:
    after = repaired(tune)
    if after != tune:
        assert not wrong_bars(after)
    pitches = [event for event in tune.events if isinstance(event, Note) and event.pitch]
    kept = [event for event in after.events if isinstance(event, Note) and event.pitch]
    assert set(pitches) == set(kept)
    assert len(kept) >= len(pitches)  # more only where an ending takes its bar's beginning along


@given(tunes())
def test_repairing_twice_is_repairing_once(tune: Tune) -> None:
    assert repaired(repaired(tune)) == repaired(tune)
