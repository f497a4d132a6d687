"""What the training room knows of tunes: landmarks, taboos, a corpus of books, and a run over it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gruve.errors import CorpusError
from gruve.model.tokenizer import END, START, build
from gruve.training.batches import IGNORED
from gruve.training.config import Architecture, Batches, Objective, Schedule, TrainingConfig
from gruve.training.corpus import TuneCorpus, books_sha256, read_tunes
from gruve.training.curve import read_curve
from gruve.training.landmarks import CLASSES, landmarks
from gruve.training.taboos import FREQUENT, Taboos, kind, taboo_loss
from gruve.training.trainer import train
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
    """The landmarks behind the first place where the tune's text so far ends in `fragment`."""
    for at in range(len(TUNE)):
        if join(TUNE[: at + 1]).rstrip().endswith(fragment):
            return landmarks(TUNE)[at]
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
def test_landmarks_say_where_a_reader_is(
    fragment: str, position: int, pickups: tuple[int, int], form: int, bars: int, notes_left: int
) -> None:
    assert behind(fragment) == (position, *pickups, form, bars, notes_left)


@given(st.lists(st.sampled_from(VOCABULARY), max_size=40))
def test_any_row_of_tokens_has_landmarks_within_the_classes(tokens: list[str]) -> None:
    for answers in landmarks(tokens):
        assert all(0 <= answer < classes for answer, classes in zip(answers, CLASSES, strict=True))


@given(st.lists(st.sampled_from(VOCABULARY), max_size=30), st.integers(0, 30))
def test_landmarks_depend_on_nothing_behind_them(tokens: list[str], cut: int) -> None:
    assert landmarks(tokens)[:cut] == landmarks(tokens[:cut])


def test_what_never_followed_a_frequent_context_is_a_taboo() -> None:
    tokenizer = build("abc", [TUNE], has_end=True)
    taboos = Taboos(tokenizer, [TUNE] * FREQUENT)
    rows = taboos.rows(TUNE)
    forbidden = taboos.table()[rows[TUNE.index("2") + 1]]  # behind a length
    names = {name for name, taboo in zip(tokenizer.vocabulary, forbidden.tolist(), strict=True) if taboo}
    assert {"2", "4", END} <= names
    assert not {"G", "C", START} & names


def test_a_rare_context_has_no_taboos() -> None:
    taboos = Taboos(build("abc", [TUNE], has_end=True), [TUNE])
    assert not taboos.table()[torch.tensor(taboos.rows(TUNE))].any()


def test_no_training_tune_holds_a_taboo(corpus: TuneCorpus) -> None:
    for piece in corpus.train:
        taboo = corpus.taboos[torch.tensor(piece.taboos[:-1])]
        assert not taboo[torch.arange(len(piece.ids) - 1), torch.tensor(piece.ids[1:])].any()


def test_the_taboo_loss_is_the_plain_formula_over_scored_steps() -> None:
    torch.manual_seed(1)
    logits, taboos, scored = torch.randn(5, 7), torch.rand(5, 7) < 0.3, torch.tensor([1, 1, 0, 1, 0]).bool()
    mass = (torch.softmax(logits, dim=1) * taboos).sum(dim=1)
    torch.testing.assert_close(taboo_loss(logits, taboos, scored), -torch.log1p(-mass)[scored].mean())


def test_pitches_and_headers_are_one_kind_each() -> None:
    assert {kind(token) for token in ("C", "^f'", "_B,")} == {"note"}
    assert [kind(token) for token in ("K:Cmin\n", "z", "3/2", "| ", ">", END)] == ["K:", "z", "3/2", "| ", ">", END]


def test_books_are_split_in_three_and_cut_between_start_and_end(corpus: TuneCorpus) -> None:
    assert min(len(corpus.train), len(corpus.validation), len(corpus.test)) >= 1
    assert len(corpus.train) > 40
    for piece in corpus.train:
        assert (piece.ids[0], piece.ids[-1]) == (0, 1)
        assert len(piece.ids) == len(piece.landmarks) == len(piece.taboos)


def test_the_hash_of_books_sees_contents_and_names(folder: Path, tmp_path: Path) -> None:
    before = books_sha256(folder)
    (tmp_path / "two.abc").write_bytes((folder / "two.abc").read_bytes())
    assert books_sha256(tmp_path) != before
    with pytest.raises(CorpusError, match="the config expects"):
        read_tunes(folder, books_sha256(tmp_path))


def test_a_folder_without_tunes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError):
        read_tunes(tmp_path)


def test_a_run_over_tunes_learns_and_repeats_to_the_bit(folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig(
        name="run",
        kind="abc",
        architecture=Architecture("gru", embedding_size=8, hidden_size=16, num_layers=1, reset="after"),
        schedule=Schedule(30, 2e-2, 1e-3, warmup_steps=3, validate_every_steps=15, average_decay=0.9),
        batches=Batches(rows=4, joined_share=0.3),
        objective=Objective(landmark_weight=0.2, taboo_weight=1.0),
    )
    one, other = train(config, folder, tmp_path / "one"), train(config, folder, tmp_path / "other")
    assert one.digest == other.digest
    first, last = (row[4] for row in read_curve(tmp_path / "one" / "losses.csv"))
    assert last < first
    plain = train(dataclasses.replace(config, objective=Objective()), folder, tmp_path / "plain")
    assert not torch.equal(plain.weights["head.weight"], one.weights["head.weight"])


def test_the_end_of_a_tune_has_no_landmarks(corpus: TuneCorpus) -> None:
    assert set(corpus.train[0].landmarks[-1]) == {IGNORED}
