"""`gruve bench front`: the throughput of the server and gRPC over a backend that computes nothing.

It finds the server's own ceiling: a GPU generates more tokens than one process can write one by one. Engine, sessions
and services are the real ones. A step of the null backend takes as long as the step of a GPU is expected to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from pathlib import Path

from gruve.bench.figures import median
from gruve.bench.load.generator import Workload
from gruve.bench.load.window import Loaded, ServerAndClients
from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.null_backend import choose_null
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.synthetic import MEDIUM, MODEL, VOCABULARY_SIZE, Size, make_model
from gruve.serve.server import ServeConfig

COLUMNS = (
    "sessions",
    "tokens_per_s",
    "made_tokens_per_s",
    "tokens_per_message",
    "gap_ms_p99",
    "cpu_s_per_million_tokens",
)


@dataclasses.dataclass(frozen=True, slots=True)
class FrontBenchConfig:
    """The loads to measure."""

    size: Size = MEDIUM
    sessions: tuple[int, ...] = (1, 8, 64, 256, 1_024)
    step_us: float = 25.0
    rounds: int = 5
    warm_s: float = 2.5
    seconds: float = 4.0
    min_length: int = 8_000
    max_length: int = 16_000
    client_processes: int = 2

    @classmethod
    def quick(cls) -> FrontBenchConfig:
        """Fewer loads, in less than 50 seconds."""
        return cls(sessions=(1, 64, 256), rounds=1, warm_s=1.5, seconds=2.0)


def run_front(config: FrontBenchConfig, report: Report) -> Result:
    """Measures every number of sessions, round after round."""
    rounds: dict[int, list[Loaded]] = {sessions: [] for sessions in config.sessions}
    workload = Workload(MODEL, VOCABULARY_SIZE, min_length=config.min_length, max_length=config.max_length, turns=1)
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as folder:
        make_model(Path(folder) / MODEL, config.size)
        server_config = ServeConfig(models=Path(folder), store="memory", drain_s=0.0)
        choose = functools.partial(choose_null, config.step_us / 1e6)
        with contextlib.ExitStack() as stack:
            side = ServerAndClients(stack, server_config, config.client_processes, choose)
            for i in range(config.rounds):
                for sessions, measured in rounds.items():
                    measured.append(side.closed_loop(workload, sessions, config.warm_s, config.seconds))
                    told = measured[-1].figures
                    report(
                        f"round {i + 1}, {sessions} sessions: {told.tokens_per_s:.0f} tokens/s, "
                        f"{told.tokens_per_message:.0f} a message"
                    )
    rows = [_row(config, sessions, measured) for sessions, measured in rounds.items()]
    for line in table(rows, COLUMNS):
        report(line)
    return Result("front", describe_machine(), describe_versions(), rows)


def _row(config: FrontBenchConfig, sessions: int, measured: list[Loaded]) -> Row:
    found = [loaded.figures for loaded in measured]
    return {
        "sessions": sessions,
        "step_us": config.step_us,
        "made_tokens_per_s": sessions / config.step_us * 1e6,
        "tokens_per_s": median(f.tokens_per_s for f in found),
        "messages_per_s": median(f.messages_per_s for f in found),
        "tokens_per_message": median(f.tokens_per_message for f in found),
        "ttft_ms_p99": median(f.ttft_ms_p99 for f in found),
        "gap_ms_p99": median(f.gap_ms_p99 for f in found),
        "cpu_s_per_million_tokens": median(loaded.cpu_s_per_million_tokens for loaded in measured),
        "failed": sum(f.failed for f in found),
    }
