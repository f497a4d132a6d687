"""`gruve bench growth`: the cost of more sessions. Active ones share the machine; idle ones should only use memory."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from pathlib import Path

from gruve.bench.figures import median
from gruve.bench.load.generator import OpenLoop, Workload, soon_ns
from gruve.bench.load.window import Loaded, ServerAndClients
from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.rounds import in_turn
from gruve.bench.synthetic import MEDIUM, MODEL, VOCABULARY_SIZE, Size, blueprint, make_model
from gruve.decode.choose import DecodeConfig
from gruve.serve.server import ServeConfig
from gruve.sessions.table import SessionsConfig

COLUMNS = (
    *("state", "sessions", "active", "tokens_per_s", "cpu_s_per_million_tokens", "cpu_ratio", "rss_mb"),
    "idle_session_bytes",
)
ACTIVE_BESIDE_IDLE = 64
AT_ONCE = 250
"""Idle sessions created at a time."""


@dataclasses.dataclass(frozen=True, slots=True)
class GrowthBenchConfig:
    """The numbers of sessions to measure."""

    size: Size = MEDIUM
    active: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000)
    idle: tuple[int, ...] = (0, 1, 10, 100, 1_000, 10_000)
    rounds: int = 3
    warm_s: float = 1.5
    seconds: float = 5.0
    idle_tokens: int = 32
    """The tokens that an idle session has generated, after a prompt of 16."""
    client_processes: int = 2
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)

    @classmethod
    def quick(cls) -> GrowthBenchConfig:
        """A few points, in less than 50 seconds."""
        return cls(active=(1, 64, 256), idle=(0, 100, 1_000), rounds=1, warm_s=1.0, seconds=2.0)


def run_growth(config: GrowthBenchConfig, report: Report) -> Result:
    """Measures active sessions, then idle ones beside 64 active ones."""
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as folder:
        make_model(Path(folder) / MODEL, config.size)
        sessions = SessionsConfig(budget_bytes=1 << 30)  # with the default, the last of 10,000 would expire
        server_config = ServeConfig(
            models=Path(folder),
            decode=config.decode,
            sessions=sessions,
            drain_s=0.0,
        )
        with contextlib.ExitStack() as stack:
            growth, other = (
                _Growth(config, ServerAndClients(stack, server_config, config.client_processes), report)
                for _ in range(2)
            )
            rows = [growth.active(count) for count in config.active]
            rows += [growth.idle(count, other) for count in config.idle]
    for line in table(rows, COLUMNS):
        report(line)
    return Result("growth", describe_machine(), describe_versions(), rows)


class _Growth:
    """One server with a growing number of sessions."""

    def __init__(self, config: GrowthBenchConfig, side: ServerAndClients, report: Report) -> None:
        self._config = config
        self._side = side
        self._report = report
        self._idle = 0
        self._rss_without_idle_mb = math.nan

    def active(self, sessions: int) -> Row:
        """Measures this many sessions in the closed loop."""
        found = [self._load(sessions) for _ in range(self._config.rounds)]
        return self._row("active", sessions, sessions, math.nan, found) | {"cpu_ratio": math.nan}

    def idle(self, sessions: int, other: _Growth) -> Row:
        """Measures 64 active sessions beside this many idle ones.

        Memory is read while nothing runs. `other` is a server without idle sessions, measured in turn. `cpu_ratio` is
        the CPU time per token here divided by that of `other`.
        """
        if math.isnan(self._rss_without_idle_mb):
            self._load(ACTIVE_BESIDE_IDLE)  # afterwards, memory that is allocated once for such a load exists
            self._rss_without_idle_mb = self._side.server.rss_mb()
        self._make_idle(sessions - self._idle)
        grown_mb = self._side.server.rss_mb() - self._rss_without_idle_mb
        each = 1e6 * grown_mb / sessions if sessions else math.nan
        found, ratios = [], []
        for i in range(self._config.rounds):
            loads = {side: side._load(ACTIVE_BESIDE_IDLE) for side in in_turn((other, self), i)}
            found.append(loads[self])
            ratios.append(loads[self].cpu_s_per_million_tokens / loads[other].cpu_s_per_million_tokens)
        return self._row("idle", sessions, ACTIVE_BESIDE_IDLE, each, found) | {"cpu_ratio": median(ratios)}

    def _make_idle(self, count: int) -> None:
        """Creates sessions of one generation each, and leaves them idle."""
        config = self._config
        for first in range(0, count, AT_ONCE):
            at = (soon_ns(),) * min(AT_ONCE, count - first)
            work = Workload(MODEL, VOCABULARY_SIZE, 16, config.idle_tokens, config.idle_tokens, turns=2)
            self._side.clients.play(work, OpenLoop(at))
        self._idle += max(0, count)

    def _row(
        self,
        state: str,
        sessions: int,
        active: int,
        idle_session_bytes: float,
        found: list[Loaded],
    ) -> Row:
        config = self._config
        state_bytes = blueprint(config.size).state_bytes
        row: Row = {
            "state": state,
            "sessions": sessions,
            "active": active,
            "tokens_per_s": median(loaded.figures.tokens_per_s for loaded in found),
            "cpu_s_per_million_tokens": median(loaded.cpu_s_per_million_tokens for loaded in found),
            "rss_mb": median(loaded.rss_mb for loaded in found),
            "idle_session_bytes": idle_session_bytes,
            "idle_session_bytes_bound": 1.5 * state_bytes + 2 * (17 + config.idle_tokens) + 1_024,
        }
        self._report(f"{sessions} {state}: {row['tokens_per_s']:.0f} tokens/s, {row['rss_mb']:.0f} MB")
        return row

    def _load(self, sessions: int) -> Loaded:
        config = self._config
        return self._side.closed_loop(Workload(MODEL, VOCABULARY_SIZE), sessions, config.warm_s, config.seconds)
