"""`gruve bench gpu`: proves that the GPU backends are correct on this GPU, then measures them.

Every decoding mode is compared with the oracle, with the sampling distribution, and with itself in other batches. A
mode that fails its proofs is still measured, and the command exits with a failure. The speed is reported beside that of
torch and the GPU's roofline. Parts that do not fit into the time limit are skipped and named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from gruve.bench.decode.steppers import require_same_model
from gruve.bench.gpu.proofs import BOUNDS, Extent, fresh_model, prove_draws, prove_mixes, prove_oracle
from gruve.bench.gpu.setup import DrySetup, GpuSetup, Setup
from gruve.bench.gpu.steps import COMPILED, PEERS, Ours, Peer, Timing, probe_bytes_per_s, probe_flop_per_s, step_s
from gruve.bench.load.generator import Clients, Workload
from gruve.bench.load.processes import Server
from gruve.bench.load.transport import connect
from gruve.bench.load.window import closed_loop
from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.result import Report, Result, Row
from gruve.bench.synthetic import (
    CELLS,
    LARGE,
    MEDIUM,
    MODEL,
    VOCABULARY_SIZE,
    Size,
    flop_per_token,
    make_model,
    streamed_bytes,
)
from gruve.decode.cuda.backend import CudaBackend
from gruve.decode.cuda.modes import MODES, CudaMode
from gruve.model.config import Precision
from gruve.model.repository import Model
from gruve.serve.server import ServeConfig

log = logging.getLogger(__name__)
T = TypeVar("T")

PRECISIONS: tuple[Precision, ...] = ("float16", "float32")
PROOF_SIZE, EXTENT, TIMING = Size(2, 192), Extent(), Timing()
NO_TIME = "no time was left"
PEER_BOUND = 5e-2
"""The bound on the deviation of an fp16 peer's logits from the oracle's. Beyond it, the peer computes something
else."""


@dataclasses.dataclass(frozen=True, slots=True)
class GpuBenchConfig:
    """The proofs and measurements of a run."""

    sizes: tuple[Size, ...] = (MEDIUM, LARGE)
    batches: tuple[int, ...] = (1, 8, 64, 256, 1_024, 4_096)
    modes: tuple[CudaMode, ...] = MODES
    eager_batches: tuple[int, ...] = (1, 64, 1_024)
    """The eager mode is slow, so a few points show its shape. Compiling torch's step takes long for each batch size."""
    cells: tuple[str, ...] = CELLS
    proof_size: Size = PROOF_SIZE
    """The size that is proved for every cell. The measured sizes are proved for the GRU only."""
    extent: Extent = EXTENT
    timing: Timing = TIMING
    matrix: int = 8_192
    copy_bytes: int = 1 << 31
    sessions: tuple[int, ...] = (64, 1_024, 4_096)
    """The numbers of sessions in the server's closed loop."""
    client_processes: int = 8
    server_s: float = 8.0
    time_limit_s: float = 420.0
    """After this time nothing new is begun."""

    @classmethod
    def quick(cls) -> GpuBenchConfig:
        """3 x 512 and no server, in about two minutes."""
        return cls(sizes=(MEDIUM,), extent=Extent(mixes=(1, 65, 1_024)), sessions=())

    @classmethod
    def dry(cls) -> GpuBenchConfig:
        """Everything at toy sizes, to try the command on a CPU."""
        return cls(
            sizes=(Size(2, 16),),
            batches=(1, 5),
            eager_batches=(1,),
            cells=("gru_before",),
            proof_size=Size(1, 16),
            extent=Extent(tokens=3, steps=3, probes=2, mixes=(2, 3)),
            timing=Timing(rounds=1, steps_per_call=1),
            matrix=16,
            copy_bytes=1 << 10,
            sessions=(2,),
            client_processes=1,
            server_s=0.5,
        )


def run_gpu(config: GpuBenchConfig, report: Report, *, dry: bool = False) -> Result:
    """Runs everything and reports each part. `ok` in the rows says whether a proof held."""
    setup: Setup = DrySetup() if dry else GpuSetup()
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as folder:
        bench = _Bench(config, setup, report, Path(folder))
        rows = [*bench.prove(), *bench.probe(), *bench.measure(), *bench.serve(), *bench.measure_peers()]
    name = "gpu-dry-run" if dry else "gpu"
    machine = describe_machine() | setup.describe()
    return Result(name, machine, describe_versions("triton"), rows, bench.skipped)


def sees_gpu() -> bool:
    """Whether there is a GPU to measure."""
    return torch.cuda.is_available()


def held(result: Result) -> bool:
    """Whether every proof held, none was left out, and the best mode works, in the server too."""
    failed = [row for row in result.rows if row.get("ok") is False]
    ours = [row for row in result.skipped if row.get("mode", MODES[0]) == MODES[0]]
    return not failed and all(row["what"] == "step" and row["why"] == NO_TIME for row in ours)


class _Bench:
    """One run, with the parts that it skipped."""

    def __init__(self, config: GpuBenchConfig, setup: Setup, report: Report, folder: Path) -> None:
        self._config = config
        self._setup = setup
        self._report = report
        self._folder = folder
        self._rng = np.random.default_rng()
        self._until = time.monotonic() + config.time_limit_s
        self._flop_per_s = self._bytes_per_s = math.nan
        self.skipped: list[Row] = []

    def prove(self) -> Iterator[Row]:
        """Proves every mode with every cell, then with the GRU in the measured sizes."""
        config = self._config
        tasks: list[tuple[Size, str, Precision]] = [
            (config.proof_size, cell, p) for cell in config.cells for p in PRECISIONS
        ]
        tasks += [(size, "gru", "float16") for size in config.sizes]
        for size, cell, precision in tasks:
            model = fresh_model(size, cell, self._rng, precision)
            for mode in config.modes:
                if mode != "triton" and precision == "float32":
                    continue  # torch operations are fp32 whatever the type of the weights
                named: Row = {"mode": mode, "cell": cell, "size": str(size), "precision": precision}
                found = self._attempt({"what": "proof", **named}, functools.partial(self._prove, model, mode))
                rows = [named | row for row in found or ()]
                for row in rows:
                    verdict = "held" if row["ok"] else "FAILED"
                    worst = f"{row['worst']:.3g} of at most {row['bound']:g} in {row['checked']}"
                    self._report(f"{mode}, {cell} {size} {precision}: {row['what']} {verdict}, {worst}")
                yield from rows

    def probe(self) -> Iterator[Row]:
        """Measures the device's own rates, for the lower bound of every step."""
        if self._attempt({"what": "roofline"}, self._probe) is None:
            return
        yield {"what": "roofline", "tflop_per_s": self._flop_per_s / 1e12, "tb_per_s": self._bytes_per_s / 1e12}

    def _probe(self) -> bool:
        self._flop_per_s = probe_flop_per_s(self._setup, self._config.matrix)
        self._bytes_per_s = probe_bytes_per_s(self._setup, self._config.copy_bytes)
        self._report(f"fp16 products {self._flop_per_s / 1e12:.0f} TFLOP/s, copies {self._bytes_per_s / 1e12:.2f} TB/s")
        return True

    def measure(self) -> Iterator[Row]:
        """Measures the step times of gruve's modes."""
        for size in self._config.sizes:
            model = make_model(self._folder / str(size), size)
            for mode in self._config.modes:
                batches = self._config.eager_batches if mode == "eager" else self._config.batches
                yield from self._steps(mode, model, batches, functools.partial(self._time_ours, model, mode))

    def measure_peers(self) -> Iterator[Row]:
        """Measures the step times of alternatives.

        This is last, because compiling them takes all the time that is left.
        """
        models = [make_model(self._folder / f"{size}-peers", size) for size in self._config.sizes]
        for name in PEERS:
            batches = self._config.eager_batches if name == COMPILED else self._config.batches
            for model in models:
                yield from self._steps(name, model, batches, functools.partial(self._time_peer, name, model))

    def serve(self) -> list[Row]:
        """Measures the server with as many sessions as it has slots, from client processes."""
        if not self._config.sessions:
            return []
        return self._attempt({"what": "server"}, self._serve) or []

    def _serve(self) -> list[Row]:
        config, setup, size = self._config, self._setup, str(self._config.sizes[0])
        make_model(self._folder / "models" / MODEL, config.sizes[0])
        decode = dataclasses.replace(setup.decode, cuda=config.modes[0])  # no other mode may replace it
        settings = ServeConfig(models=self._folder / "models", decode=decode, drain_s=0.0)
        began = time.monotonic()
        with Server(settings) as server:
            started_s = time.monotonic() - began if setup.measures else math.nan
            self._report(f"the server was ready after {started_s:.1f} s")
            rows: list[Row] = [{"what": "start", "size": size, "seconds": started_s}]
            with Clients(connect(server.target), config.client_processes) as clients:
                for sessions in config.sessions:
                    named: Row = {"what": "server", "size": size, "sessions": sessions}
                    found = self._attempt(named, functools.partial(self._load, server.pid, clients, sessions))
                    if found is not None:
                        self._report(f"{sessions} sessions: {found['tokens_per_s']} tokens/s")
                        rows.append(named | found)
        return rows

    def _prove(self, model: Model, mode: CudaMode) -> list[Row]:
        config, rng = self._config, self._rng
        slots = max(config.extent.mixes)
        backend = self._setup.backend(model, slots if mode != "eager" else min(slots, 256), mode)
        precision = model.config.precision if mode == "triton" else "float32"
        rows = [prove_oracle(backend, model, config.extent, rng, BOUNDS[precision])]
        if isinstance(backend, CudaBackend):
            rows.append(prove_draws(backend, model.config, config.extent, rng))
        few = dataclasses.replace(config.extent, mixes=config.extent.mixes[:5])
        return [*rows, prove_mixes(backend, model.config, few if mode == "eager" else config.extent, rng)]

    def _steps(
        self, mode: str, model: Model, batches: Sequence[int], time_batch: Callable[[int], float]
    ) -> Iterator[Row]:
        """One row per batch size. Its lower bound is the greater of two times: its products, and reading its weights.

        Products are taken at the rate of large ones, reading at the rate of a copy.
        """
        size = f"{model.config.num_layers}x{model.config.hidden_size}"
        for batch in batches:
            named: Row = {"what": "step", "mode": mode, "size": size, "batch": batch}
            seconds = self._attempt(named, functools.partial(time_batch, batch))
            if seconds is None:
                continue
            products_s = flop_per_token(model.config) * batch / self._flop_per_s
            floor_s = max(products_s, streamed_bytes(model.config) / self._bytes_per_s)
            times, each = {"step_us": 1e6 * seconds, "tokens_per_s": batch / seconds}, seconds / floor_s
            self._report(
                f"{mode}, {size}, batch {batch}: {1e6 * seconds:.1f} us a step, {batch / seconds:.0f} tokens/s, "
                f"{each:.2f} times the floor"
            )
            yield named | times | {"floor_us": 1e6 * floor_s, "times_floor": each}

    def _time_ours(self, model: Model, mode: CudaMode, batch: int) -> float:
        return step_s(
            Ours(self._setup.backend(model, batch, mode), batch, self._config.timing.steps_per_call),
            self._setup,
            self._config.timing,
        )

    def _time_peer(self, name: str, model: Model, batch: int) -> float:
        """Times a peer, if it computes the same model."""
        peer = Peer(name, model, batch, self._setup)
        require_same_model(peer.logits, model, PEER_BOUND)
        return step_s(peer, self._setup, self._config.timing)

    def _load(self, pid: int, clients: Clients, sessions: int) -> Row:
        """One run of the closed loop, with a quarter of the time to warm up. Without a GPU it returns no figures."""
        quarter_s = self._config.server_s / 4
        workload = Workload(MODEL, VOCABULARY_SIZE)
        found = closed_loop(pid, clients, workload, sessions, quarter_s, 3 * quarter_s).figures
        if found.failed:
            raise ValueError(f"{found.failed} requests failed")
        kept = ("tokens_per_s", "tokens_per_message", "ttft_ms_p50", "ttft_ms_p99", "gap_ms_p99")
        return {key: getattr(found, key) if self._setup.measures else math.nan for key in kept}

    def _attempt(self, named: Row, work: Callable[[], T]) -> T | None:
        """Returns the result of `work`, or None with an entry in `skipped` if it fails or no time is left."""
        why = None
        if time.monotonic() > self._until:
            why = NO_TIME
        else:
            try:
                return work()
            except Exception as error:
                log.exception("%s did not work", named)
                why = f"{type(error).__name__}: {error}"
            finally:
                gc.collect()
                if self._setup.measures:
                    with contextlib.suppress(RuntimeError):  # if the device is lost, everything that follows fails too
                        torch.cuda.empty_cache()
        self._report(f"skipped {named}: {why}")
        self.skipped.append(named | {"why": why})
        return None
