"""`gruve bench peers`: the same model in gruve and in its alternatives, in one run.

Every round starts each system in turn, measures it with the same clients and ends it, so that nothing else runs
meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gruve.bench.chaos.replicas import free_port
from gruve.bench.decode.steppers import torch_rnn
from gruve.bench.figures import median
from gruve.bench.load.generator import Clients, Workload
from gruve.bench.load.processes import Server
from gruve.bench.load.transport import Refused, Request, connect
from gruve.bench.load.window import Loaded, closed_loop
from gruve.bench.machine import descendants, describe_machine, describe_versions
from gruve.bench.peers.environments import NotInstalled, environment
from gruve.bench.peers.systems import SYSTEMS, Connect, System
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.rounds import in_turn
from gruve.bench.synthetic import MEDIUM, SMALL, VOCABULARY_SIZE, Size, make_model
from gruve.decode.choose import DecodeConfig
from gruve.model.repository import Model
from gruve.serve.server import ServeConfig

OURS = "gruve"
COLUMNS = ("system", "model", "streams", "tokens_per_s", "ttft_ms_p50", "ttft_ms_p99", "gap_ms_p99", "rss_mb")
FIGURES = ("tokens_per_s", "ttft_ms_p50", "ttft_ms_p99", "gap_ms_p50", "gap_ms_p99", "tokens_per_message")
START_S = 180.0
END_S = 20.0


@dataclasses.dataclass(frozen=True, slots=True)
class PeersBenchConfig:
    """The systems and loads that are compared."""

    sizes: tuple[Size, ...] = (SMALL, MEDIUM)
    streams: tuple[int, ...] = (8, 64, 256)
    systems: tuple[str, ...] = (OURS, *(system.name for system in SYSTEMS))
    rounds: int = 3
    warm_s: float = 2.0
    seconds: float = 5.0
    tokens: int = 64
    """The length of every answer. It is the same for all, which favours systems with static batching."""
    client_processes: int = 2
    cache: Path = Path(".bench")
    """Where the peers' environments are kept."""
    budget_s: float | None = None
    """After this time no system is started, and none is installed at all; None for no bound."""

    @classmethod
    def quick(cls) -> PeersBenchConfig:
        """64 streams of 2 x 256, once, of the systems that are installed and started within 50 seconds."""
        return cls(sizes=(SMALL,), streams=(64,), rounds=1, warm_s=1.5, seconds=2.0, budget_s=47.0)

    @property
    def workload(self) -> Workload:
        """The requests of the streams. No session is kept, because the peers keep none."""
        return Workload(OURS, VOCABULARY_SIZE, min_length=self.tokens, max_length=self.tokens, turns=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """A started system."""

    connect: Connect
    pid: int


class NotRunning(Exception):
    """A system did not answer. The message gives the reason."""


def run_peers(config: PeersBenchConfig, report: Report) -> Result:
    """Measures every system with every model and number of streams, and reports each."""
    run = _Run(config, report)
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as folder:
        run.prepare()
        for size in config.sizes:
            place = Path(folder) / str(size)
            model = make_model(place / "models" / OURS, size)
            torch.save(torch_weights(model), place / "weights.pt")
            for i in range(config.rounds):
                for name in in_turn(run.ready, i):
                    run.measure(name, size, place)
    rows = run.rows()
    for line in table(rows, COLUMNS):
        report(line)
    pins = {system.name: ", ".join(system.requirements[1:]) for system in SYSTEMS}
    return Result("peers", describe_machine(), {**describe_versions(), **pins}, rows, run.skipped)


def torch_weights(model: Model) -> dict[str, torch.Tensor]:
    """A GRU's weights with the names and in the convention of the peers' `CharRnn`."""
    ends = {name: model.weights[name] for name in ("embedding.weight", "head.weight", "head.bias")}
    return ends | {f"rnn.{name}": weight for name, weight in torch_rnn(model).state_dict().items()}


class _Run:
    """One run: the installed systems, the rows, and what was skipped."""

    def __init__(self, config: PeersBenchConfig, report: Report) -> None:
        self._config = config
        self._report = report
        self._began_s = time.monotonic()
        self._longest_s = 0.0
        self._found: dict[tuple[str, str, int], list[Loaded]] = {}
        self.ready: dict[str, tuple[System, Path] | None] = {}
        self.skipped: list[Row] = []

    def prepare(self) -> None:
        """Installs the systems to compare."""
        for system in (s for s in SYSTEMS if s.name in self._config.systems):
            try:
                folder = environment(
                    self._config.cache,
                    system.folder,
                    system.requirements,
                    install=self._config.budget_s is None,
                )
                self.ready[system.name] = (system, folder)
            except NotInstalled as error:
                self._skip(system.name, str(error))
        if OURS in self._config.systems:
            self.ready = {OURS: None, **self.ready}

    def measure(self, name: str, size: Size, place: Path) -> None:
        """Starts a system, measures it with every number of streams, and ends it."""
        config = self._config
        began_s = time.monotonic()
        if config.budget_s is not None and began_s - self._began_s + self._longest_s > config.budget_s:
            self._skip(name, f"no time was left of {config.budget_s:.0f} s", model=str(size))
            return
        try:
            with self._start(name, place) as running, Clients(running.connect, config.client_processes) as clients:
                for streams in config.streams:
                    loaded = closed_loop(running.pid, clients, config.workload, streams, config.warm_s, config.seconds)
                    self._found.setdefault((name, str(size), streams), []).append(loaded)
                    told = loaded.figures
                    self._report(
                        f"{name}, {size}, {streams} streams: {told.tokens_per_s:.0f} tokens/s, "
                        f"TTFT p99 {told.ttft_ms_p99:.1f} ms, {told.failed} failed"
                    )
        except NotRunning as error:
            self._skip(name, str(error), model=str(size))
        self._longest_s = max(self._longest_s, time.monotonic() - began_s)

    def rows(self) -> list[Row]:
        """The medians of the rounds."""
        return [
            {
                "system": name,
                "model": model,
                "streams": streams,
                **{key: median(getattr(loaded.figures, key) for loaded in found) for key in FIGURES},
                "failed": sum(loaded.figures.failed for loaded in found),
                "cpu_s_per_million_tokens": median(loaded.cpu_s_per_million_tokens for loaded in found),
                "rss_mb": median(loaded.rss_mb for loaded in found),
            }
            for (name, model, streams), found in self._found.items()
        ]

    @contextlib.contextmanager
    def _start(self, name: str, place: Path) -> Iterator[Running]:
        peer = self.ready[name]
        if peer is None:
            with Server(ServeConfig(models=place / "models", decode=DecodeConfig("cpu"), drain_s=0.0)) as server:
                yield Running(connect(server.target), server.pid)
            return
        system, folder = peer
        log = place / f"{folder.name}.log"
        port = free_port()
        with log.open("wb") as out:
            command = system.command(folder, place, port)
            process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)  # noqa: S603 - ours
        try:
            _wait_until_it_answers(system.connect(port), process, log)
            yield Running(system.connect(port), process.pid)
        finally:
            _end(process)

    def _skip(self, name: str, why: str, **where: str) -> None:
        self._report(f"{name} is left out: {why}")
        self.skipped.append({"system": name, "why": why, **where})


def _wait_until_it_answers(make_transport: Connect, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when one request was answered; raises `NotRunning` with the end of the system's log."""
    deadline_s = time.monotonic() + START_S
    while not asyncio.run(_answers(make_transport)):
        if process.poll() is not None or time.monotonic() > deadline_s:
            ended = f"it ended with {process.returncode}" if process.returncode is not None else "it never answered"
            lines = log.read_text(errors="replace").strip().splitlines()
            raise NotRunning(f"{ended}: {next((x for x in reversed(lines) if 'rror' in x), lines[-1:] or '')}")
        time.sleep(0.2)


async def _answers(make_transport: Connect) -> bool:
    transport = make_transport()
    try:
        async with asyncio.timeout(5.0):
            await transport.open()
            async for _ in transport.stream(Request(OURS, (1, 2, 3), 2, 0)):
                pass
    except (Refused, TimeoutError):
        return False
    finally:
        await transport.close()
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a system and everything it started."""
    family = descendants(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
