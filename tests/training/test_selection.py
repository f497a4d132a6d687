"""Tunes that the shipped model composed are selected by their form, and learned beside the corpus."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from gruve.errors import InvalidField
from gruve.model.repository import Model, load
from gruve.training import selection
from gruve.training.config import Architecture, Batches, Schedule, TrainingConfig
from gruve.training.corpus import TuneCorpus, piece_of, with_selected
from gruve.training.form_report import is_right
from gruve.training.quality import Sample, draw_samples
from gruve.training.selection import LONGEST_RUN, form_cell, select_tunes
from gruve.training.trainer import train
from gruve.training.unlikelihood import UnlikelyTokens
from gruve.tune.tokens import join, split
from tunes import write_books

MODELS = Path(__file__).parents[2] / "models"
HEAD = "L:1/8\nM:2/4\nK:Cmaj\n"
A, B, C = "CDEF", "GABc", "cBAG"
COMPOSED = 120


@pytest.fixture(name="folk", scope="module")
def the_shipped_model() -> Model:
    return load(MODELS / "folk")


@pytest.fixture(name="train", scope="module")
def some_tunes(folk: Model) -> list[list[str]]:
    """What the model composes with other seeds, as a corpus, and the first tune that the selection must leave out."""
    drawn = [sample for sample in draw_samples(folk, 60, seed=1_000) if sample.ended]
    drawn += [sample for sample in draw_samples(folk, 5) if sample.ended][:1]
    return [[folk.tokenizer.vocabulary[i] for i in sample.ids] for sample in drawn]


def tune(music: str) -> list[str]:
    return split(HEAD + music)


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        (f"{A}| {B}| {C}| c4|]", (0, None, None, False, True)),
        (f"{A}| {B}| {A}| G4|]", (3, None, None, False, False)),
        (f"{A}| {A}| {A}| {A}|]", (5, None, None, False, False)),
        (f"{A}| {B}| {C}| G4| {A}| FEDC| DEFG| c4|]", (2, True, None, True, True)),
        (f"{A}| {B}| {C}| G4| D4| FEDC| DEFG| c4:| {B}| {C}| G4| D4| E4| F4| DEFG| C4|]", (3, False, True, True, True)),
    ],
)  # fmt: skip
def test_a_form_is_what_the_report_of_form_counts(music: str, expected: tuple[object, ...]) -> None:
    assert form_cell(tune(music)) == ("M:2/4\n", *expected)


def test_of_each_form_the_first_are_selected_as_many_as_the_corpus_has(folk: Model, train: list[list[str]]) -> None:
    selected = select_tunes(folk, train, COMPOSED)
    wanted, drawn = Counter(map(form_cell, train)), draw_samples(folk, COMPOSED)
    fit = [
        tokens
        for sample in drawn
        if sample.ended and is_right(sample.text) and (tokens := split(sample.text)) not in train
        if not any(bars_in_succession(tokens, LONGEST_RUN + 1))
    ]
    expected: list[list[str]] = []
    for tokens in fit:
        if sum(form_cell(other) == form_cell(tokens) for other in expected) < wanted[form_cell(tokens)]:
            expected.append(tokens)
    assert selected == expected
    assert 5 < len(selected) < len(fit)
    assert train[-1] not in selected  # the model composed it with one of these seeds


def bars_in_succession(tokens: list[str], length: int) -> list[bool]:
    """For each bar line, whether the last `length` bars before it are the same."""
    bars = [bar.split("\n")[-1].strip() for bar in join(tokens).replace(":", "").split("|")]
    return [bool(bars[n]) and len(set(bars[n : n + length])) == 1 for n in range(len(bars) - length + 1)]


def test_nothing_composed_selects_nothing(folk: Model, train: list[list[str]]) -> None:
    assert select_tunes(folk, train, 0) == []


def test_a_tune_with_another_start_or_without_an_end_is_left_out(
    folk: Model, train: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Sample(tuple(folk.tokenizer.encode(join(tune(f"{A}| {B}| {C}| c4|]")))), join(tune(f"{A}|]")), ended=True)
    odd = (*good.ids, folk.tokenizer.start_id)
    bad = [dataclasses.replace(good, ended=False), dataclasses.replace(good, ids=odd)]
    monkeypatch.setattr(selection, "draw_samples", lambda *_: [*bad, good])
    names = [[folk.tokenizer.vocabulary[i] for i in ids] for ids in (odd, good.ids)]
    others = [tokens for tokens in train if form_cell(tokens) != form_cell(names[1])]
    assert select_tunes(folk, others, 3) == []
    like = [split(HEAD + f"{B}| {A}| {C}| c4|]")] * 3
    assert select_tunes(folk, [*others, *like], 3) == [names[1]]


def test_selected_tunes_are_learned_behind_those_of_the_corpus(folk: Model, train: list[list[str]]) -> None:
    unlikely = UnlikelyTokens(folk.tokenizer, train)
    pieces = tuple(piece_of(folk.tokenizer, tokens, unlikely) for tokens in train)
    corpus = TuneCorpus(folk.tokenizer, pieces, pieces[:1], pieces[:1], unlikely, "")
    more = with_selected(corpus, folk, COMPOSED)
    assert more.train[: len(pieces)] == pieces
    ids = [list(piece.ids[1:-1]) for piece in more.train[len(pieces) :]]
    assert ids == [folk.tokenizer.encode(join(tokens)) for tokens in select_tunes(folk, train, COMPOSED)]
    rows = max(max(piece.unlikely) for piece in more.train)
    assert rows < len(unlikely.table())
    assert (more.validation, more.test) == (corpus.validation, corpus.test)


def test_a_run_with_composed_tunes_resumes_with_its_initial_model_only(tmp_path: Path) -> None:
    books = write_books(tmp_path)
    config = TrainingConfig(
        "run",
        "abc",
        Architecture("gru", 8, 24, 1, reset="after"),
        Schedule(6, 1e-2, 1e-4, 2, validate_every_steps=3, checkpoint_every_steps=2),
        Batches(rows=4),
    )
    first = train(config, books, tmp_path / "first")
    more = dataclasses.replace(config, initial_digest=first.digest, composed=20)
    whole = train(more, books, tmp_path / "whole", initial=tmp_path / "first")

    def stop(now: object) -> None:
        if getattr(now, "step", 0) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(more, books, tmp_path / "cut", initial=tmp_path / "first", progress=stop)
    with pytest.raises(InvalidField, match="the folder of that model must be given"):
        train(more, books, tmp_path / "cut", resume=True)
    assert train(more, books, tmp_path / "cut", initial=tmp_path / "first", resume=True).digest == whole.digest
