"""`gruve bench front`: what the server delivers when decoding costs nothing: its own ceiling, and gRPC's.

A GPU draws more tokens than one process can write one by one. Behind the same engine, sessions and services stands a
backend whose steps last as long as a GPU's are meant to and make tokens out of nothing.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

from gruve.bench.figures import OBJECTIVE, Figures, S, figures, median
from gruve.bench.load import Clients, Closed, Workload, soon_ns
from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.processes import Front
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.serve import connect
from gruve.bench.synthetic import MEDIUM, VOCABULARY_SIZE, Size, make_model
from gruve.serve.server import ServeConfig

MODEL = "bench"
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
    """How much of everything."""

    size: Size = MEDIUM
    sessions: tuple[int, ...] = (1, 8, 64, 256, 1_024)
    step_us: float = 25.0
    rounds: int = 5
    warm_s: float = 2.5
    seconds: float = 4.0
    prompt_tokens: int = 16
    least_tokens: int = 8_000
    most_tokens: int = 16_000
    client_processes: int = 2
    channels: int = 4

    @classmethod
    def quick(cls) -> FrontBenchConfig:
        """Less of everything, in less than 50 seconds."""
        return cls(sessions=(1, 64, 256), rounds=1, warm_s=1.5, seconds=2.0)


def run_front(config: FrontBenchConfig, report: Report) -> Result:
    """Measures every number of sessions, round after round."""
    rounds: dict[int, list[tuple[Figures, float]]] = {sessions: [] for sessions in config.sessions}
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as folder:
        make_model(Path(folder) / MODEL, config.size)
        server_config = ServeConfig(models=Path(folder), store="memory", drain_s=0.0)
        with (
            Front(server_config, config.step_us / 1e6) as server,
            Clients(connect(server.target, config.channels), config.client_processes) as clients,
        ):
            for i in range(config.rounds):
                for sessions, measured in rounds.items():
                    measured.append(_measure(config, server, clients, sessions))
                    told = measured[-1][0]
                    report(
                        f"round {i + 1}, {sessions} sessions: {told.tokens_per_s:.0f} tokens/s, "
                        f"{told.tokens_per_message:.0f} a message"
                    )
    rows = [_row(config, sessions, measured) for sessions, measured in rounds.items()]
    for line in table(rows, COLUMNS):
        report(line)
    return Result("front", describe_machine(), describe_versions(), rows)


def _measure(config: FrontBenchConfig, server: Front, clients: Clients, sessions: int) -> tuple[Figures, float]:
    """One closed loop: its figures, and the server's CPU seconds."""
    workload = Workload(MODEL, VOCABULARY_SIZE, config.prompt_tokens, config.least_tokens, config.most_tokens, turns=1)
    begin_ns = soon_ns()
    window_ns = begin_ns + int(config.warm_s * S)
    end_ns = window_ns + int(config.seconds * S)
    clients.begin(workload, Closed(sessions, begin_ns, end_ns))
    time.sleep(max(0.0, (window_ns - time.monotonic_ns()) / S))
    cpu_s = server.cpu_s()
    time.sleep(max(0.0, (end_ns - time.monotonic_ns()) / S))
    cpu_s = server.cpu_s() - cpu_s
    return figures(clients.finish(), window_ns, end_ns, OBJECTIVE), cpu_s


def _row(config: FrontBenchConfig, sessions: int, measured: list[tuple[Figures, float]]) -> Row:
    tokens_per_s = median(found.tokens_per_s for found, _ in measured)
    cpu_s = median(cpu_s / (found.tokens_per_s * config.seconds) for found, cpu_s in measured)
    return {
        "sessions": sessions,
        "step_us": config.step_us,
        "made_tokens_per_s": sessions / config.step_us * 1e6,
        "tokens_per_s": tokens_per_s,
        "messages_per_s": median(found.messages_per_s for found, _ in measured),
        "tokens_per_message": median(found.tokens_per_message for found, _ in measured),
        "ttft_ms_p99": median(found.ttft_ms_p99 for found, _ in measured),
        "gap_ms_p99": median(found.gap_ms_p99 for found, _ in measured),
        "cpu_s_per_million_tokens": 1e6 * cpu_s,
        "failed": sum(found.failed for found, _ in measured),
    }
