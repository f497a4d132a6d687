"""`gruve bench decode`: the time of one decode step, sampling included, beside other runtimes and the CPU's roofline.

All runtimes have the same weights. For every batch size the steppers run in turn for several rounds; a row holds the
median of the rounds.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gruve.bench.decode.roofline import Roofline, probe_roofline
from gruve.bench.decode.steppers import BACKENDS, Absent, Peer, Stepper, make_stepper, require_same_model
from gruve.bench.figures import median
from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.rounds import in_turn
from gruve.bench.synthetic import CELLS, LARGE, MEDIUM, Size, flop_per_token, make_model, streamed_bytes
from gruve.model.repository import Model

COLUMNS = (
    "backend",
    "cell",
    "layers",
    "hidden",
    "batch",
    "threads",
    "step_ms",
    "tokens_per_s",
    "gflops",
    "fma_peak_gflops",
    "of_peak",
    "weight_stream_ms",
)


@dataclasses.dataclass(frozen=True, slots=True)
class DecodeBenchConfig:
    """The models, batches, threads and backends to measure."""

    sizes: tuple[Size, ...] = (MEDIUM, LARGE)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 256)
    threads: tuple[int, ...] = (1, 2)
    backends: tuple[str, ...] = BACKENDS
    other_cells: tuple[str, ...] = CELLS[1:]
    """Cells measured in addition to the GRU, in the first size with the first number of threads."""
    other_batches: tuple[int, ...] = (1, 16, 64)
    rounds: int = 7
    warm_s: float = 0.05
    """The warm-up before each timing. Threads of torch and ONNX Runtime look for work for a while before they sleep."""
    seconds: float = 0.06
    """The minimum time of one timing."""

    @classmethod
    def quick(cls) -> DecodeBenchConfig:
        """3 x 512 on one thread, in less than 50 seconds."""
        return cls(sizes=(MEDIUM,), batches=(1, 4, 8, 16, 64), threads=(1,), other_cells=(), rounds=5)


@dataclasses.dataclass(frozen=True, slots=True)
class _Task:
    """Measures one model on a number of threads, with these batch sizes."""

    model: Model
    cell: str
    threads: int
    batches: tuple[int, ...]


def run_decode(config: DecodeBenchConfig, report: Report) -> Result:
    """Measures every model, number of threads and batch size, and reports each."""
    rows: list[Row] = []
    skipped: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as folder:
        for task in _tasks(config, Path(folder)):
            names = []
            for name in config.backends:
                try:
                    _check(name, task)
                    names.append(name)
                except Absent as absent:
                    report(f"{name} is left out for {task.cell} on {task.threads} threads: {absent}")
                    skipped.append({"backend": name, "cell": task.cell, "threads": task.threads, "why": str(absent)})
            for batch in task.batches if names else ():
                found = _measure(config, task, batch, names)
                rows += found
                for line in table(found, COLUMNS):
                    report(line)
    versions = describe_versions("onnx", "onnxruntime", "openvino", "nncf")
    return Result("decode", describe_machine(), versions, rows, skipped)


def _tasks(config: DecodeBenchConfig, folder: Path) -> Iterator[_Task]:
    for size in config.sizes:
        model = make_model(folder / f"gru-{size}", size)
        for threads in config.threads:
            yield _Task(model, "gru", threads, config.batches)
    for cell in config.other_cells:
        model = make_model(folder / cell.replace("_", "-"), config.sizes[0], cell)
        yield _Task(model, cell, config.threads[0], config.other_batches)


def _measure(config: DecodeBenchConfig, task: _Task, batch: int, names: Sequence[str]) -> list[Row]:
    """Measures all backends at one batch size in turn, between two probes of the roofline."""
    steppers = {name: make_stepper(name, task.model, batch, task.threads) for name in names}
    bytes_read = streamed_bytes(task.model.config)
    before = probe_roofline(bytes_read, task.threads)
    times = _take_turns(config, task, steppers)
    after = probe_roofline(bytes_read, task.threads)
    roofline = dataclasses.replace(
        before,
        fma_gflops=max(before.fma_gflops, after.fma_gflops),
        read_gb_s=max(before.read_gb_s, after.read_gb_s),
        clock_ghz=max(before.clock_ghz, after.clock_ghz),
    )
    return [_row(task, batch, name, steppers[name], step_s, roofline) for name, step_s in times.items()]


def _take_turns(config: DecodeBenchConfig, task: _Task, steppers: dict[str, Stepper]) -> dict[str, float]:
    """The median step time of each stepper in seconds. The order changes from round to round."""
    rounds: dict[str, list[float]] = {name: [] for name in steppers}
    for i in range(config.rounds):
        for name in in_turn(steppers, i):
            torch.set_num_threads(task.threads)
            rounds[name].append(_step_s(steppers[name], config.warm_s, config.seconds))
    return {name: median(found) for name, found in rounds.items()}


def _step_s(stepper: Stepper, warm_s: float, seconds: float) -> float:
    """The time of a step, over as many calls as fill the time."""
    calls, began, now = 0, time.perf_counter(), 0.0
    while now < warm_s:
        stepper.run(1)
        calls += 1
        now = time.perf_counter() - began
    calls = max(1, round(seconds / (now / calls)))
    began = time.perf_counter()
    stepper.run(calls)
    return (time.perf_counter() - began) / (calls * stepper.steps_per_call)


def _row(task: _Task, batch: int, name: str, stepper: Stepper, step_s: float, roofline: Roofline) -> Row:
    config, int8 = task.model.config, name.endswith("_int8")
    gflops = flop_per_token(config) * batch / step_s / 1e9
    weight_bytes = streamed_bytes(config, bytes_per_weight=1 if int8 else 2)
    return {
        "backend": name,
        "cell": task.cell,
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "batch": batch,
        "threads": task.threads,
        "step_ms": 1e3 * step_s,
        "tokens_per_s": batch / step_s,
        "gflops": gflops,
        "fma_peak_gflops": roofline.fma_gflops,
        "of_peak": math.nan if int8 else gflops / roofline.fma_gflops,  # the peak is that of float32
        "fma_flop_per_cycle": roofline.fma_flop_per_cycle,
        "read_gb_s": roofline.read_gb_s,
        "weight_stream_ms": 1e3 * weight_bytes / (roofline.read_gb_s * 1e9),
        "steps_per_call": stepper.steps_per_call,
        "isa": roofline.isa,
    }


def _check(name: str, task: _Task) -> None:
    """Raises `Absent` if a peer cannot run here, or computes another model than the oracle."""
    stepper = make_stepper(name, task.model, 2, task.threads)
    if isinstance(stepper, Peer):  # gruve's own backends are compared by their tests, with a much smaller bound
        require_same_model(stepper.logits, task.model, stepper.logit_bound)
