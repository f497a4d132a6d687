"""`gruve bench cells`: Elman network, LSTM and GRU with equally many parameters, trained alike on one corpus.

The comparison of Chung et al. 2014 (arXiv:1412.3555): one layer each, and hidden sizes that make the numbers of
parameters equal. Every cell is trained with each learning rate; the best one by validation is then used with more
seeds. The cells take turns, so that a machine that becomes slower slows all of them.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gruve.bench.figures import median
from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.plots import plot_cells
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.sequences import begin_sequences
from gruve.bench.synthetic import CELLS, kind_of
from gruve.decode.choose import DecodeConfig, choose_backend
from gruve.model.config import HIDDEN_SIZES
from gruve.model.repository import Model
from gruve.training.config import Architecture, Batches, Regularisation, Schedule, TrainingConfig
from gruve.training.corpus import Corpus, TextCorpus, read_corpus
from gruve.training.evaluate import carried_loss, tunes_loss
from gruve.training.loss_curve import CSV_FILE, read_curve
from gruve.training.trainer import VALIDATION_ROWS, Progress, train

COLUMNS = (
    "cell",
    "hidden",
    "parameters",
    "learning_rate",
    "seed",
    "validation_nats",
    "test_nats",
    "update_ms",
    "step_us",
)
EMBEDDING_SIZE = 32
STEP_ROWS, STEPS, ROUNDS = 16, 64, 5


@dataclasses.dataclass(frozen=True, slots=True)
class CellsBenchConfig:
    """The corpus and the runs."""

    corpus: Path = Path()
    """A text file, or a folder of ABC books."""
    cells: tuple[str, ...] = CELLS
    parameters: int = 100_000
    """No cell has more of them, and each as many as its hidden size allows."""
    updates: int = 1_000
    validations: int = 10
    learning_rates: tuple[float, ...] = (6e-3, 1.8e-2, 5.4e-2)
    seeds: int = 2
    """The runs with the best learning rate."""
    plot: Path | None = None
    """Where the losses are drawn. They are not in the rows, so they are drawn here."""

    @classmethod
    def quick(cls) -> CellsBenchConfig:
        """Small networks and few updates: it shows that all works, and compares nothing."""
        return cls(parameters=20_000, updates=60, validations=3, learning_rates=(6e-3,), seeds=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    row: Row
    curve: Sequence[tuple[float, float]]
    """(updates, nats per token on the validation part)."""


def run_cells(config: CellsBenchConfig, report: Report) -> Result:
    """Trains every cell and plots their losses. Raises `CorpusError` for an unusable corpus."""
    torch.set_num_threads(1)  # as in training: the cells must not differ in how well threads suit them
    corpus = read_corpus(training_config(config, config.cells[0], 64, 1.0, 1), config.corpus)
    runs: list[Run] = []
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as folder:
        for rate in config.learning_rates:
            runs += [_run(config, corpus, Path(folder), cell, rate, 1, report) for cell in config.cells]
        for cell in config.cells:
            tried = [run.row for run in runs if run.row["cell"] == cell]
            best[cell] = float(min(tried, key=lambda row: float(row["validation_nats"] or 0))["learning_rate"] or 0)
        for seed in range(2, config.seeds + 1):
            runs += [_run(config, corpus, Path(folder), cell, best[cell], seed, report) for cell in config.cells]
    for run in runs:
        run.row["chosen"] = run.row["learning_rate"] == best[str(run.row["cell"])]
    chosen = [run for run in runs if run.row["chosen"]]
    for line in table([_mean([r.row for r in chosen if r.row["cell"] == cell]) for cell in config.cells], COLUMNS):
        report(line)
    if config.plot is not None:
        plot_cells([(run.row, run.curve) for run in chosen], config.plot)
    return Result("cells", describe_machine(), describe_versions(), [run.row for run in runs])


def training_config(config: CellsBenchConfig, cell: str, hidden: int, rate: float, seed: int) -> TrainingConfig:
    """The run of one cell; all cells have the same but for the network."""
    tunes = config.corpus.is_dir()
    kind, reset = kind_of(cell)
    every = max(1, config.updates // config.validations)
    return TrainingConfig(
        name="cells",
        kind="abc" if tunes else "characters",
        architecture=Architecture(kind, EMBEDDING_SIZE, hidden, 1, reset),
        schedule=Schedule(
            config.updates,
            rate,
            rate / 100,
            warmup_steps=min(100, config.updates),
            average_decay=0.995,
            validate_every_steps=every,
            checkpoint_every_steps=config.updates,
        ),
        batches=Batches(rows=16 if tunes else 32, steps=64),
        regularisation=Regularisation(dropout_head=0.2 if tunes else 0.0, weight_decay=0.01),
        seed=seed,
    )


def hidden_size(config: CellsBenchConfig, cell: str, vocabulary_size: int) -> int:
    """The greatest H with which the network has at most `config.parameters`."""
    kind, reset = kind_of(cell)

    def parameters(hidden: int) -> int:
        return Architecture(kind, EMBEDDING_SIZE, hidden, 1, reset).model_config(vocabulary_size).parameter_count()

    fitting = bisect_right(HIDDEN_SIZES, config.parameters, key=parameters)
    return HIDDEN_SIZES[max(0, fitting - 1)]


def _run(
    config: CellsBenchConfig, corpus: Corpus, folder: Path, cell: str, rate: float, seed: int, report: Report
) -> Run:
    hidden = hidden_size(config, cell, corpus.tokenizer.size)
    out, times = folder / f"{cell.replace('_', '-')}-{rate:g}-{seed}", [time.perf_counter()]

    def follow(progress: Progress) -> None:
        if progress.validation_loss is None:
            times.append(time.perf_counter())
        else:  # the time of a validation is not an update's
            times[-1] = time.perf_counter()

    model = train(training_config(config, cell, hidden, rate, seed), config.corpus, out, progress=follow)
    network = model.network()
    if isinstance(corpus, TextCorpus):
        validation, test = carried_loss(network, corpus.tokenizer.encode(corpus.validation), VALIDATION_ROWS), None
    else:
        validation = tunes_loss(network, corpus.validation).nats_per_token
        test = tunes_loss(network, corpus.test).nats_per_token
    row: Row = {
        "cell": cell,
        "hidden": hidden,
        "parameters": model.config.parameter_count(),
        "learning_rate": rate,
        "seed": seed,
        "validation_nats": validation,
        "test_nats": test,
        "update_ms": 1e3 * median(np.diff(times).tolist()),
        "step_us": step_us(model),
    }
    report(f"{cell} of {hidden} units, learning rate {rate:g}, seed {seed}: {validation:.4f} nats per token")
    return Run(row, [(point[0], point[4]) for point in read_curve(out / CSV_FILE)])


def step_us(model: Model) -> float:
    """How long the default backend takes on one thread for a step of `STEP_ROWS` rows, sampling included."""
    backend = choose_backend(model, DecodeConfig("cpu", threads=1, slots=STEP_ROWS))
    slots, seconds = range(STEP_ROWS), []
    try:
        for _ in range(ROUNDS + 1):  # the first one warms up
            begin_sequences(backend, slots, STEPS + 1)
            began = time.perf_counter()
            backend.decode(slots, [STEPS] * STEP_ROWS, STEPS)
            seconds.append(time.perf_counter() - began)
    finally:
        backend.close()
    return 1e6 * median(seconds[1:]) / STEPS


def _mean(rows: Sequence[Row]) -> Row:
    """The rows of one cell as one: means of the losses, medians of the times, the number of seeds."""

    def values(name: str) -> list[float]:
        return [float(value) for row in rows if (value := row[name]) is not None]

    test = values("test_nats")
    return rows[0] | {
        "seed": f"{len(rows)} seeds",
        "validation_nats": statistics.mean(values("validation_nats")),
        "test_nats": statistics.mean(test) if test else None,
        "update_ms": median(values("update_ms")),
        "step_us": median(values("step_us")),
    }
