"""The figures of form, on tunes whose form is obvious."""

from __future__ import annotations

import pytest

from gruve.training.form import bars_of, ends_on_tonic, form_of, is_moved, opening, opening_returns, parts_of
from gruve.training.form_report import ROWS, TuneParts, corpus_form, form_table, model_form
from gruve.training.quality import Sample
from gruve.tune.tokens import split
from nets import CELLS, config_of, model_of

HEAD = "L:1/8\nM:2/4\nK:Cmaj\n"
A, B, C, D = "CDEF", "GABc", "cBAG", "FEDC"


def tune(music: str) -> list[str]:
    return split(HEAD + music)


def test_bars_stand_between_lines_without_headers_and_pickup() -> None:
    assert bars_of(tune(f"GF| {A}| {B}:| K:Cdor\n {C}|]")) == [tuple(A), tuple(B), tuple(C)]
    assert bars_of(tune(f"GFE| {A}|]")) == [tuple("GFE"), tuple(A)]
    assert bars_of(tune("")) == []


def test_a_bar_moves_an_earlier_one_if_all_its_notes_move_by_the_same_steps() -> None:
    assert is_moved(tuple("CDEF"), tuple("DEFG"))
    assert is_moved(("C", "2", "D", "E"), ("A,", "2", "B,", "C"))
    assert not is_moved(tuple("CDEF"), tuple("CDEF"))
    assert not is_moved(tuple("CDEF"), tuple("DEFA"))
    assert not is_moved(("C", "2", "D", "E"), ("D", "3", "E", "F"))
    assert not is_moved(("^C", "D", "E", "F"), ("^D", "E", "F", "G"))
    assert is_moved(("^C", "D", "E", "F"), ("^C", "E", "F", "G"))
    assert not is_moved(tuple("CD"), tuple("DE"))
    form = form_of([tune("CDEF| DEFG| EFGA| CDEF|]"), tune("CDEF| CCEG| GFED| EDEC|]")])
    assert (form.bars_moved, form.tunes_with_move) == (3 / 8, 1 / 2)


def test_a_bar_that_equals_an_earlier_one_is_repeated() -> None:
    form = form_of([tune(f"{A}| {B}| {A}| {A}|]"), tune(f"{A}| {B}| {C}| {D}|]")])
    assert form.bars_repeated == 2 / 8
    assert form.tunes_with_repeat == 1 / 2


def test_bar_5_and_the_cadences_are_asked_of_tunes_that_have_them() -> None:
    eight = f"{A}| {B}| {C}| {D}| {A}| {B}| {C}| c4"
    form = form_of([tune(f"{eight}|]"), tune(f"{eight}:| {A}| {B}| {C}| {D}| {A}| {B}| {C}| c4|]"), tune(f"{A}|]")])
    assert (form.bar_5_is_bar_1, form.half_cadences_equal) == (1.0, 1.0)
    other = form_of([tune(f"{A}| {B}| {C}| {D}| {B}| {B}| {C}| c4|]")])
    assert (other.bar_5_is_bar_1, other.half_cadences_equal) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("music", "parts"),
    [
        (f"|: {A}| {B}:| {C}|]", [2, 1]),
        (f"G|{A}| {B}2||\nG|{C}|]", [2, 1]),
        (f"|: {A}|1 {B}:|2 {C}|]", [2]),
        (f"|: {A}|1 {B}:|2 {C}||\n{D}|]", [2, 1]),
        (f"{A}| {B}", [2]),
        ("", []),
    ],
)
def test_a_part_ends_at_its_line_and_counts_its_first_ending(music: str, parts: list[int]) -> None:
    assert parts_of(tune(music)) == parts


def test_parts_of_eight_bars_are_all_parts() -> None:
    eight = "| ".join([A] * 8)
    form = form_of([tune(f"|: {eight}:| {eight}|]"), tune(f"|: {eight}:| {A}|]"), tune("")])
    assert form.parts_of_8_bars == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("music", "holds"), [("GEc2|]", True), ("GE=C,4|]", True), ("GE^c|]", False), ("CG|]", False), ("Cz|]", True)]
)
def test_the_last_note_is_the_tonic(music: str, holds: bool) -> None:
    assert ends_on_tonic(tune(music)) is holds


def test_an_opening_is_four_bars_with_pickup_and_headers() -> None:
    music = f"|: GF| {A}| {B}| {C}| {D}| {A}|]"
    start = opening(tune(music))
    assert start is not None
    assert "".join(start) == HEAD + f"|: GF| {A}| {B}| {C}| {D}| "
    assert opening_returns(tune(music))
    assert not opening_returns(tune(music.replace(f"{D}| {A}", f"{D}| {B}{A}")))
    assert opening(tune(f"|: GF| {A}| {B}| {C}| {D}|]")) is None


def test_nothing_counted_is_zero() -> None:
    assert form_of([]).bars_repeated == 0.0


def test_a_model_stands_beside_its_corpus() -> None:
    model = model_of(config_of(CELLS[0], V=13))
    letters = model.tokenizer.vocabulary
    ids = tuple(range(2, 9))
    parts = TuneParts(letters, [ids], [ids], [ids])
    samples = [Sample(ids, model.tokenizer.decode(ids), ended=True)] * 2
    figures = model_form(model, samples, parts, 0.8)
    assert (figures["tunes"], figures["distinct"], figures["ended"], figures["openings"]) == (2, 0.5, 1.0, 0)
    rows = form_table(corpus_form(parts), [figures])
    assert [row[0] for row in rows] == list(ROWS.values())
    assert rows[list(ROWS).index("distinct")] == ("distinct", "", "50.0%")
