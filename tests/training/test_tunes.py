"""Training on tunes: auxiliary targets, unlikely tokens, a corpus of books, and a run over it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gruve.errors import CorpusError
from gruve.model.tokenizer import END, START, build
from gruve.training.auxiliary import CLASSES, auxiliary_targets
from gruve.training.batches import IGNORED
from gruve.training.config import Architecture, Batches, Objective, Schedule, TrainingConfig
from gruve.training.corpus import TuneCorpus, books_sha256, read_tunes
from gruve.training.loss_curve import read_curve
from gruve.training.trainer import train
from gruve.training.unlikelihood import FREQUENT, UnlikelyTokens, kind, unlikelihood_loss
from gruve.tune.tokens import join, split
from tunes import write_books

HEAD = "L:1/8\nM:3/4\nK:Cmaj\n"
TUNE = split(HEAD + "|: C | DEF2GA | (3BAGF4 |1 E4D2 | C4C :|2 E2D2C2 | C4C |]")
VOCABULARY = sorted({*TUNE, *split("M:6/8\n/2><-z||")})


@pytest.fixture(name="folder", scope="module")
def a_folder_of_books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_books(tmp_path_factory.mktemp("books"))


@pytest.fixture(name="corpus", scope="module")
def a_corpus(folder: Path) -> TuneCorpus:
    return read_tunes(folder)


def behind(fragment: str) -> tuple[int, ...]:
    """The auxiliary targets after the first place at which the tune's text ends in `fragment`."""
    for at in range(len(TUNE)):
        if join(TUNE[: at + 1]).rstrip().endswith(fragment):
            return auxiliary_targets(TUNE)[at]
    raise AssertionError(fragment)


@pytest.mark.parametrize(
    ("fragment", "position", "pickups", "form", "bars", "notes_left"),
    [
        ("|:", 0, (0, 0), 3, 0, 0),
        ("|: C", 12, (0, 0), 3, 0, 0),
        ("|: C|", 0, (2, 2), 3, 1, 0),
        ("DEF2", 48, (2, 2), 3, 1, 0),
        ("(3", 0, (2, 2), 3, 2, 3),
        ("(3BA", 16, (2, 2), 3, 2, 1),
        ("|1 E4", 48, (2, 2), 4, 3, 0),
        ("C4C:|2", 0, (2, 2), 2, 5, 0),
        ("|]", 60, (2, 2), 0, 7, 0),
    ],
)
def test_auxiliary_targets_say_where_a_reader_is(
    fragment: str, position: int, pickups: tuple[int, int], form: int, bars: int, notes_left: int
) -> None:
    assert behind(fragment) == (position, *pickups, form, bars, notes_left)


@given(st.lists(st.sampled_from(VOCABULARY), max_size=40))
def test_any_row_of_tokens_has_targets_within_the_classes(tokens: list[str]) -> None:
    for answers in auxiliary_targets(tokens):
        assert all(0 <= answer < classes for answer, classes in zip(answers, CLASSES, strict=True))


@given(st.lists(st.sampled_from(VOCABULARY), max_size=30), st.integers(0, 30))
def test_auxiliary_targets_depend_on_nothing_behind_them(tokens: list[str], cut: int) -> None:
    assert auxiliary_targets(tokens)[:cut] == auxiliary_targets(tokens[:cut])


def test_what_never_followed_a_frequent_context_is_unlikely() -> None:
    tokenizer = build("abc", [TUNE], has_end=True)
    unlikely = UnlikelyTokens(tokenizer, [TUNE] * FREQUENT)
    rows = unlikely.rows(TUNE)
    forbidden = unlikely.table()[rows[TUNE.index("2") + 1]]  # behind a length
    names = {name for name, unlikely in zip(tokenizer.vocabulary, forbidden.tolist(), strict=True) if unlikely}
    assert {"2", "4", END} <= names
    assert not {"G", "C", START} & names


def test_a_rare_context_makes_nothing_unlikely() -> None:
    unlikely = UnlikelyTokens(build("abc", [TUNE], has_end=True), [TUNE])
    assert not unlikely.table()[torch.tensor(unlikely.rows(TUNE))].any()


def test_no_training_tune_holds_an_unlikely_token(corpus: TuneCorpus) -> None:
    for piece in corpus.train:
        unlikely = corpus.unlikely[torch.tensor(piece.unlikely[:-1])]
        assert not unlikely[torch.arange(len(piece.ids) - 1), torch.tensor(piece.ids[1:])].any()


def test_the_unlikelihood_loss_is_the_plain_formula_over_scored_steps() -> None:
    torch.manual_seed(1)
    logits, unlikely, scored = torch.randn(5, 7), torch.rand(5, 7) < 0.3, torch.tensor([1, 1, 0, 1, 0]).bool()
    mass = (torch.softmax(logits, dim=1) * unlikely).sum(dim=1)
    torch.testing.assert_close(unlikelihood_loss(logits, unlikely, scored), -torch.log1p(-mass)[scored].mean())


def test_pitches_and_headers_are_one_kind_each() -> None:
    assert {kind(token) for token in ("C", "^f'", "_B,")} == {"note"}
    assert [kind(token) for token in ("K:Cmin\n", "z", "3/2", "| ", ">", END)] == ["K:", "z", "3/2", "| ", ">", END]


def test_books_are_split_in_three_and_cut_between_start_and_end(corpus: TuneCorpus) -> None:
    assert min(len(corpus.train), len(corpus.validation), len(corpus.test)) >= 1
    assert len(corpus.train) > 40
    for piece in corpus.train:
        assert (piece.ids[0], piece.ids[-1]) == (0, 1)
        assert len(piece.ids) == len(piece.auxiliary) == len(piece.unlikely)


def test_the_hash_of_books_sees_contents_and_names(folder: Path, tmp_path: Path) -> None:
    before = books_sha256(folder)
    (tmp_path / "two.abc").write_bytes((folder / "two.abc").read_bytes())
    assert books_sha256(tmp_path) != before
    with pytest.raises(CorpusError, match="the config expects"):
        read_tunes(folder, books_sha256(tmp_path))


def test_a_folder_without_tunes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError):
        read_tunes(tmp_path)


def test_a_corpus_too_small_for_three_parts_says_what_became_of_its_tunes(tmp_path: Path) -> None:
    (tmp_path / "book.abc").write_text(
        "X:1\nT:A\nM:2/4\nL:1/8\nK:C\nC2E2|G4|]\n\nX:2\nT:B\nM:2/4\nL:1/8\nK:C\nC4|C4|C3|C4|C4|]\n"
    )
    why = (
        "no tune for the train part: 0 of 2 tunes are kept; left out: "
        "1 with wrong bars, 1 with a token that occurs fewer than 5 times"
    )
    with pytest.raises(CorpusError, match=why):
        read_tunes(tmp_path)


def test_a_run_over_tunes_learns_and_repeats_to_the_bit(folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig(
        name="run",
        kind="abc",
        architecture=Architecture("gru", embedding_size=8, hidden_size=16, num_layers=1, reset="after"),
        schedule=Schedule(30, 2e-2, 1e-3, warmup_steps=3, validate_every_steps=15, average_decay=0.9),
        batches=Batches(rows=4, joined_share=0.3),
        objective=Objective(auxiliary_weight=0.2, unlikelihood_weight=1.0),
    )
    said: list[str] = []
    one = train(config, folder, tmp_path / "one", note=said.append)
    other = train(config, folder, tmp_path / "other")
    assert said == [read_tunes(folder).summary]
    assert one.digest == other.digest
    first, last = (row[4] for row in read_curve(tmp_path / "one" / "losses.csv"))
    assert last < first
    plain = train(dataclasses.replace(config, objective=Objective()), folder, tmp_path / "plain")
    assert not torch.equal(plain.weights["head.weight"], one.weights["head.weight"])


def test_the_end_of_a_tune_has_no_auxiliary_targets(corpus: TuneCorpus) -> None:
    assert set(corpus.train[0].auxiliary[-1]) == {IGNORED}
