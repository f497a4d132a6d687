"""Teachers: their distributions are those of their own steps, and a run learns from them and can be repeated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from gruve.errors import InvalidField, ModelBroken
from gruve.model.repository import Model, save
from gruve.model.tokenizer import build
from gruve.training import teachers as module
from gruve.training.batches import IGNORED, START_ID, Piece, TextBatches, TuneBatches
from gruve.training.config import Architecture, Batches, Pointers, Schedule, Teachers, TrainingConfig
from gruve.training.corpus import read_corpus, read_tunes
from gruve.training.evaluate import carried_loss
from gruve.training.pointing import pointed_rows
from gruve.training.teachers import ROWS, load_teachers, taught_loss, taught_text, taught_tunes
from gruve.training.trainer import train
from tunes import write_books

CONFIG = TrainingConfig(
    name="run",
    kind="characters",
    architecture=Architecture("gru", embedding_size=8, hidden_size=24, num_layers=1, reset="after"),
    schedule=Schedule(steps=12, learning_rate=1e-2, final_learning_rate=1e-4, warmup_steps=2, checkpoint_every_steps=5),
    batches=Batches(rows=4, steps=16, cold_share=0.2, joined_share=0.5),
)
TEXT = "the cat sat on the mat, and the dog sat on the cat.\n" * 60


@pytest.fixture(name="corpus")
def a_corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(name="tunes", scope="module")
def a_folder_of_books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_books(tmp_path_factory.mktemp("books"))


def two_teachers(out: Path, corpus: Path, kind: str) -> list[Model]:
    """One without pointers, one of another size with them."""
    one = dataclasses.replace(CONFIG, kind=kind)
    architecture = dataclasses.replace(CONFIG.architecture, hidden_size=16, num_layers=2)
    other = dataclasses.replace(one, architecture=architecture, pointers=Pointers([], [2, 3], 4))
    return [train(one, corpus, out / "one"), train(other, corpus, out / "other")]


def stepwise(models: list[Model], ids: list[int]) -> torch.Tensor:
    """(N, V): the mean of the models' distributions for each token of `ids`, by their plain steps from the start."""
    rows = torch.zeros(len(ids), models[0].config.vocabulary_size)
    for model in models:
        network, inputs = model.network(), [START_ID, *ids[:-1]]
        state, pointed = network.zero_state(1), pointed_rows(model.config, inputs)
        for t, token in enumerate(inputs):
            seen = None if pointed is None else pointed[t : t + 1]
            logits, state = network.step(torch.tensor([token]), state, seen)
            rows[t] += logits[0].softmax(dim=0).detach() / len(models)
    return rows


def test_tunes_get_the_mean_distribution_of_their_teachers(tmp_path: Path, tunes: Path) -> None:
    models = two_teachers(tmp_path, tunes, "abc")
    pieces = read_tunes(tunes).train[:40]
    for before, after in zip(pieces, taught_tunes(models, pieces), strict=True):
        assert after == before
        assert after.taught is not None
        assert after.taught[:-1].float() == pytest.approx(stepwise(models, list(before.ids[1:])), abs=1e-3)
        assert not after.taught[-1].any()  # nothing follows the end token


@pytest.mark.parametrize("length", [ROWS - 1, 10 * ROWS, 300 * ROWS + 7])
def test_a_text_gets_the_mean_distribution_of_its_teachers(tmp_path: Path, corpus: Path, length: int) -> None:
    models = two_teachers(tmp_path, corpus, "characters")
    ids = models[0].tokenizer.encode((TEXT * 4)[:length])
    taught = taught_text(models, ids).float()
    part = length // ROWS
    begins = [*range(0, part * ROWS, part or 1), part * ROWS]
    for begin in (begins[0], begins[len(begins) // 2], begins[-1]):  # each begins cold
        some = ids[begin : min(begin + max(part, ROWS), length)] if begin == begins[-1] else ids[begin : begin + part]
        if some:
            assert taught[begin : begin + len(some)] == pytest.approx(stepwise(models, some), abs=1e-3)


def test_batches_show_each_target_with_its_distribution(tunes: Path) -> None:
    ids = torch.randint(2, 9, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    taught = torch.eye(9)[torch.tensor(ids)]
    batch = TextBatches(ids, CONFIG.batches, seed=3, taught=taught).next()
    assert batch.taught is not None
    assert torch.equal(batch.taught.argmax(dim=-1), batch.targets)
    size = read_tunes(tunes).tokenizer.size
    pieces = [_with_certain_teacher(piece, size) for piece in read_tunes(tunes).train]
    joined = TuneBatches(pieces, dataclasses.replace(CONFIG.batches, rows=2, joined_share=1.0), seed=1).next()
    assert joined.taught is not None
    scored = joined.targets != IGNORED
    assert torch.equal(joined.taught.argmax(dim=-1)[scored], joined.targets[scored])
    assert (joined.inputs[:, 1:] == START_ID).any()  # a second tune in the row


def _with_certain_teacher(piece: Piece, size: int) -> Piece:
    return dataclasses.replace(piece, taught=torch.eye(size)[torch.tensor([*piece.ids[1:], 0])])


def test_a_certain_teacher_is_the_corpus() -> None:
    logits = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[1, 2, 3, IGNORED, 4], [5, IGNORED, 6, 7, 8]])
    certain = torch.eye(9)[targets.clamp(min=0)]
    wanted = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    assert float(taught_loss(logits, certain, targets)) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("kind", ["characters", "abc"])
def test_an_interrupted_run_with_teachers_ends_with_the_same_bits(
    tmp_path: Path, corpus: Path, tunes: Path, kind: str
) -> None:
    path = corpus if kind == "characters" else tunes
    digests = [model.digest for model in two_teachers(tmp_path, path, kind)]
    folders = [tmp_path / "one", tmp_path / "other"]
    config = dataclasses.replace(CONFIG, kind=kind, seed=2, teachers=Teachers(digests))

    def stop(now: object) -> None:
        if getattr(now, "step", 0) == 7:
            raise KeyboardInterrupt

    whole = train(config, path, tmp_path / "whole", teachers=folders)
    with pytest.raises(KeyboardInterrupt):
        train(config, path, tmp_path / "cut", teachers=folders, progress=stop)
    assert train(config, path, tmp_path / "cut", teachers=folders, resume=True).digest == whole.digest
    alone = train(dataclasses.replace(config, teachers=None), path, tmp_path / "alone")
    assert alone.digest != whole.digest


def test_a_run_learns_from_its_teacher_what_its_corpus_does_not_show(tmp_path: Path, corpus: Path) -> None:
    """The teacher knows another text of the same characters. A student that hears only the teacher learns it, too."""
    other = tmp_path / "other.txt"
    other.write_text("".join(reversed(TEXT)), encoding="utf-8")
    schedule = dataclasses.replace(CONFIG.schedule, steps=150)
    teacher = train(dataclasses.replace(CONFIG, schedule=schedule), other, tmp_path / "teacher")
    config = dataclasses.replace(CONFIG, schedule=schedule, seed=5)
    taught = dataclasses.replace(config, teachers=Teachers([teacher.digest], weight=1.0))
    student = train(taught, corpus, tmp_path / "student", teachers=[tmp_path / "teacher"])
    alone = train(config, corpus, tmp_path / "alone")
    ids = teacher.tokenizer.encode(read_corpus(config, other).validation)  # type: ignore[union-attr, arg-type]
    losses = [carried_loss(model.network(), ids) for model in (teacher, student, alone)]
    assert losses[0] < losses[1] < losses[2] - 0.5


def test_teachers_that_do_not_fit_are_refused(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = train(CONFIG, corpus, tmp_path / "teacher")
    folder, read = tmp_path / "teacher", read_corpus(CONFIG, corpus)
    with pytest.raises(InvalidField, match="has 1 models; 0 folders of teachers are given"):
        load_teachers(Teachers([teacher.digest]), [], read)
    with pytest.raises(InvalidField, match="has 0 models; 1 folders of teachers are given"):
        train(CONFIG, corpus, tmp_path / "none", teachers=[folder])
    with pytest.raises(InvalidField, match=f"has 'f00'; the model in .*teacher has '{teacher.digest}'"):
        load_teachers(Teachers(["f00"]), [folder], read)
    strange = build("characters", ["x" + "".join(teacher.tokenizer.vocabulary[2:])], has_end=False)
    other = save(tmp_path / "strange", teacher.config, strange, teacher.weights)
    with pytest.raises(
        ModelBroken, match=r"the teacher in .*strange has another vocabulary than the corpus: only the model has 'x'"
    ):
        load_teachers(Teachers([other.digest]), [tmp_path / "strange"], read)
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with pytest.raises(InvalidField, match=r"would need \d+ bytes of memory for the \d+ tokens of the corpus"):
        load_teachers(Teachers([teacher.digest]), [folder], read)
