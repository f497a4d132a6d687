"""The figures of melodies, and the quarters of a corpus that they fall into."""

from __future__ import annotations

import pytest

from gruve.training.form import form_of
from gruve.training.melody import Melody, MelodyClasses, melody_of, notes_of
from gruve.tune.tokens import split

HEAD = "L:1/8\nM:2/4\nK:Cmaj\n"


def tune(music: str) -> list[str]:
    return split(HEAD + music)


def test_notes_are_scale_steps_without_accidentals_lengths_rests_and_headers() -> None:
    assert notes_of(tune("C2^D=E,|c'_bz B,,|]")) == [0, 1, -5, 14, 13, -8]


def test_a_melody_has_a_height_repeated_notes_and_steps() -> None:
    assert melody_of(tune("CCE|]")) == Melody(2 / 3, 1 / 2, 1.0)
    assert melody_of(tune("C|]")) is None


def test_a_note_is_repeated_across_a_bar_line() -> None:
    assert form_of([tune("CD|DE|]"), tune("GG|]"), tune("C|]")]).notes_repeated == pytest.approx(2 / 4)


def test_a_class_is_the_quarter_of_the_corpus_for_each_figure() -> None:
    corpus = [tune(f"{low}{high}|]") for low, high in ("CD", "DF", "EA", "Fd")]
    classes = MelodyClasses(corpus)
    assert [classes.class_of(tokens) for tokens in corpus] == [(0, 3, 0), (1, 3, 1), (2, 3, 2), (3, 3, 3)]
    assert classes.class_of(tune("c'c'|]")) == (3, 3, 0)
    assert classes.class_of(tune("C|]")) is None
    assert classes.wanted.total() == 4


@pytest.mark.parametrize("corpus", [[], ["C|]"], ["CD|]"]])
def test_a_corpus_too_small_for_quarters_has_one_class(corpus: list[str]) -> None:
    assert MelodyClasses(map(tune, corpus)).class_of(tune("GA|]")) == (0, 0, 0)
