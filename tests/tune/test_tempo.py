"""Tempos: what `Q:` says, and what suits a dance."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gruve.tune.parse import parse_tune
from gruve.tune.score import Tempo
from gruve.tune.tempo import parse_tempo, suited_rhythm, suited_tempo
from tunes import abc


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/4=120", Tempo(Fraction(1, 4), 120)),
        ("3/8 = 116", Tempo(Fraction(3, 8), 116)),
        ('"Slow" 1/2=60', Tempo(Fraction(1, 2), 60)),
        ("1/4 1/8=90", Tempo(Fraction(3, 8), 90)),
        ("100", Tempo(Fraction(1, 4), 100)),
        ('"Allegro"', None),
        ("1/0=60", None),
        ("0/4=60", None),
        ("1/4=0", None),
        ("", None),
    ],
)
def test_a_tempo_field_is_read(text: str, expected: Tempo | None) -> None:
    assert parse_tempo(text) == expected


@pytest.mark.parametrize(
    ("meter", "music", "rhythm", "tempo"),
    [
        ("6/8", "ABc ABc", "jig", Tempo(Fraction(3, 8), 116)),
        ("9/8", "ABc ABc ABc", "slip jig", Tempo(Fraction(3, 8), 112)),
        ("C|", "ABcd efga", "reel", Tempo(Fraction(1, 2), 90)),
        ("4/4", "A>Bc>d e>fg>a", "hornpipe", Tempo(Fraction(1, 2), 72)),
        ("3/4", "A2B2c2", "waltz", Tempo(Fraction(1, 4), 140)),
        ("5/4", "A2B2c2d2e2", "", Tempo(Fraction(1, 4), 110)),
        ("15/8", "A6B6c3", "", Tempo(Fraction(3, 8), 108)),
    ],
)
def test_a_tune_without_a_tempo_gets_its_dances(meter: str, music: str, rhythm: str, tempo: Tempo) -> None:
    tune = parse_tune(abc(music, meter=meter))
    assert (suited_rhythm(tune), suited_tempo(tune)) == (rhythm, tempo)


def test_what_a_tune_says_of_itself_counts_more_than_its_meter() -> None:
    tune = parse_tune("X:1\nR:Strathspey\nM:4/4\nK:C\nA8")
    assert (suited_rhythm(tune), suited_tempo(tune)) == ("Strathspey", Tempo(Fraction(1, 4), 120))
    assert suited_tempo(parse_tune("X:1\nR:reel\nQ:1/4=99\nM:4/4\nK:C\nA8")) == Tempo(Fraction(1, 4), 99)


def test_a_rhythm_that_contradicts_the_meter_does_not_count_its_beats() -> None:
    assert suited_tempo(parse_tune("X:1\nR:march\nM:6/8\nK:C\nA6")) == Tempo(Fraction(3, 8), 108)
