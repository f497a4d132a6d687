"""A run learns, can be repeated to the bit, and ends the same after an interruption."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from gruve.errors import CorpusError, ModelBroken
from gruve.model.config import ModelConfig
from gruve.model.repository import Model, load
from gruve.training.checkpoint import FILE, Checkpoint, load_checkpoint, save_checkpoint
from gruve.training.config import Architecture, Batches, Regularisation, Schedule, TrainingConfig
from gruve.training.loss_curve import Curve, read_curve
from gruve.training.trainer import Progress, train

CONFIG = TrainingConfig(
    name="run",
    kind="characters",
    architecture=Architecture("gru", embedding_size=8, hidden_size=24, num_layers=2, reset="after"),
    schedule=Schedule(
        steps=12,
        learning_rate=1e-2,
        final_learning_rate=1e-4,
        warmup_steps=2,
        validate_every_steps=4,
        checkpoint_every_steps=5,
    ),
    batches=Batches(rows=4, steps=16, cold_share=0.2),
    regularisation=Regularisation(0.1, 0.1, 0.1, 0.1, weight_decay=0.01),
)


class Stopped(Exception):
    """Raised to interrupt a run."""


@pytest.fixture(name="corpus")
def a_corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("the cat sat on the mat, and the dog sat on the cat.\n" * 60, encoding="utf-8")
    return path


def stop_at(step: int) -> object:
    def progress(now: Progress) -> None:
        if now.step == step:
            raise Stopped

    return progress


def same_weights(one: Model, other: Model) -> bool:
    return all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_the_same_seed_makes_the_same_bits(tmp_path: Path, corpus: Path, arithmetic: str) -> None:
    config = dataclasses.replace(CONFIG, arithmetic=arithmetic)
    one, other = train(config, corpus, tmp_path / "one"), train(config, corpus, tmp_path / "other")
    assert one.digest == other.digest


def test_another_seed_makes_another_model(tmp_path: Path, corpus: Path) -> None:
    other = train(dataclasses.replace(CONFIG, seed=2), corpus, tmp_path / "other")
    assert not same_weights(train(CONFIG, corpus, tmp_path / "one"), other)


def test_an_interrupted_run_ends_with_the_same_bits_and_the_same_curve(tmp_path: Path, corpus: Path) -> None:
    whole = train(CONFIG, corpus, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(CONFIG, corpus, tmp_path / "cut", progress=stop_at(9))  # type: ignore[arg-type]
    resumed = train(CONFIG, corpus, tmp_path / "cut", resume=True)
    assert resumed.digest == whole.digest
    assert (tmp_path / "cut" / "losses.csv").read_text() == (tmp_path / "whole" / "losses.csv").read_text()


def test_an_interrupted_run_keeps_a_checkpoint_however_early(tmp_path: Path, corpus: Path) -> None:
    whole = train(CONFIG, corpus, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, corpus, tmp_path / "cut", deferring=nullcontext(lambda: True))
    assert load_checkpoint(tmp_path / "cut").step == 1
    assert train(CONFIG, corpus, tmp_path / "cut", resume=True).digest == whole.digest


def test_a_run_is_not_begun_over_another(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    with pytest.raises(ModelBroken, match="is there already"):
        train(CONFIG, tmp_path / "not_read.txt", tmp_path)


def test_only_a_run_with_a_checkpoint_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ModelBroken, match=f"there is no checkpoint in {tmp_path}/run: no file {FILE}"):
        train(CONFIG, tmp_path / "not_read.txt", tmp_path / "run", resume=True)


def test_a_folder_that_cannot_be_written_in_is_refused_before_the_first_update(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / ".losses.csv.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        train(CONFIG, corpus, tmp_path, progress=stop_at(1))  # type: ignore[arg-type]


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path, corpus: Path) -> None:
    train(CONFIG, corpus, tmp_path / "run")
    with pytest.raises(ModelBroken, match=f"{FILE} was made with another training config"):
        train(dataclasses.replace(CONFIG, seed=2), corpus, tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_corpus_is_refused(tmp_path: Path, corpus: Path) -> None:
    train(CONFIG, corpus, tmp_path / "run")
    corpus.write_text(corpus.read_text() + "more.\n")
    with pytest.raises(ModelBroken, match=r"another corpus: the corpus has sha256 \w+; the run began with \w+"):
        train(CONFIG, corpus, tmp_path / "run", resume=True)


def test_a_folder_that_cannot_be_made_is_refused_before_the_first_update(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(FileExistsError):
        train(CONFIG, corpus, corpus, progress=stop_at(1))  # type: ignore[arg-type]


def test_a_full_disk_leaves_the_last_checkpoint_and_is_an_error_of_the_system(tmp_path: Path) -> None:
    checkpoint = Checkpoint("config", "corpus", 1, 2, 3.0, {"x": torch.ones(9)})
    save_checkpoint(tmp_path, checkpoint)
    (tmp_path / f".{FILE}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left.*{FILE}"):
        save_checkpoint(tmp_path, dataclasses.replace(checkpoint, step=2))
    assert load_checkpoint(tmp_path).step == 1


def test_a_curve_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    curve = Curve(tmp_path)
    curve.add(1, 2, 0.1, 3.0, 4.0)
    (tmp_path / ".losses.csv.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        curve.add(2, 4, 0.1, 3.0, 4.0)
    assert read_curve(tmp_path / "losses.csv") == [(1, 2, 0.1, 3.0, 4.0)]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, corpus, tmp_path, deferring=nullcontext(lambda: True))
    broken = load_checkpoint(tmp_path)
    broken.tensors["weights/head.bias"].fill_(float("nan"))
    save_checkpoint(tmp_path, broken)
    with pytest.raises(ModelBroken, match="the loss of update 2 is nan; take a lower learning_rate"):
        train(CONFIG, corpus, tmp_path, resume=True)


def test_a_torn_checkpoint_is_refused(tmp_path: Path, corpus: Path) -> None:
    train(CONFIG, corpus, tmp_path / "run")
    path = tmp_path / "run" / FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelBroken, match=f"{FILE} cannot be read"):
        train(CONFIG, corpus, tmp_path / "run", resume=True)


def test_the_corpus_is_verified_before_the_first_step(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(CorpusError, match="the config expects"):
        train(dataclasses.replace(CONFIG, corpus_sha256="0" * 64), corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
def test_every_cell_learns(tmp_path: Path, corpus: Path, cell: str) -> None:
    architecture = dataclasses.replace(CONFIG.architecture, cell=cell, reset="before" if cell == "gru" else None)
    schedule = dataclasses.replace(CONFIG.schedule, steps=80, validate_every_steps=40, average_decay=0.9)
    train(dataclasses.replace(CONFIG, architecture=architecture, schedule=schedule), corpus, tmp_path / "run")
    losses = [row[4] for row in read_curve(tmp_path / "run" / "losses.csv")]
    assert losses[-1] < losses[0] < 3.2  # 20 equally likely characters cost 3.0 nats
    assert losses[-1] < 2.5


def test_a_run_leaves_an_entry_of_the_repository_with_its_curve(tmp_path: Path, corpus: Path) -> None:
    model = train(CONFIG, corpus, tmp_path / "run")
    assert load(tmp_path / "run").digest == model.digest
    assert isinstance(model.config, ModelConfig)
    assert [row[0] for row in read_curve(tmp_path / "run" / "losses.csv")] == [4, 8, 12]
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert load_checkpoint(tmp_path / "run").step == 12


def test_training_leaves_torch_as_it_found_it(tmp_path: Path, corpus: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(CONFIG, corpus, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
