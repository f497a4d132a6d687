"""`gruve bench serve`: the server under load from client processes, beside the bare engine in the same run.

A row is one load: a number of sessions in the closed loop, or a rate of arrivals in the open one. Each round runs all
of them in turn, and the bare engine with the same sessions. A row holds the medians of its rounds.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from gruve.bench.figures import Figures, S, median, percentile, slope_per_minute
from gruve.bench.load.generator import Clients, ClosedLoop, OpenLoop, Workload, poisson, sample, soon_ns
from gruve.bench.load.processes import BareEngine, NullServer, Server
from gruve.bench.load.transport import connect
from gruve.bench.load.window import Loaded, Window, closed_loop, measure
from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.synthetic import MEDIUM, MODEL, VOCABULARY_SIZE, Size, make_model
from gruve.decode.choose import DecodeConfig
from gruve.serve.server import ServeConfig

COLUMNS = (
    "loop",
    "sessions",
    "rate_per_s",
    "tokens_per_s",
    "bare_tokens_per_s",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "gap_ms_p50",
    "gap_ms_p99",
    "lateness_ms_p99",
    "tokens_per_message",
    "slo_attainment",
    "cpu_s_per_million_tokens",
    "rss_mb",
    "mismatched_tokens",
)


@dataclasses.dataclass(frozen=True, slots=True)
class ServeBenchConfig:
    """The model and the loads."""

    size: Size = MEDIUM
    sessions: tuple[int, ...] = (1, 8, 64, 256, 1_000)
    """The numbers of sessions in the closed loop."""
    open_loads: tuple[float, ...] = (0.3, 0.5, 0.7, 0.8, 0.9)
    """Rates of the open loop, as fractions of the closed loop's throughput at `open_capacity_sessions`."""
    open_capacity_sessions: int = 64
    rounds: int = 5
    warm_s: float = 2.0
    seconds: float = 5.0
    """How long each load is measured in each round."""
    bursts: int = 20
    """How often 64 sessions arrive at once, for the bound on TTFT."""
    client_processes: int = 2
    checked_tokens: int = 20_000
    """The tokens of each load, prompts included, that are computed again in a batch of one."""
    soak_minutes: float = 0.0
    """How long 64 sessions are watched for growing memory; 0 skips it."""
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)

    @classmethod
    def quick(cls) -> ServeBenchConfig:
        """64 sessions in the closed loop, in less than 50 seconds."""
        return cls(sessions=(64,), open_loads=(), rounds=3, warm_s=1.0, seconds=2.5, bursts=3, checked_tokens=4_000)

    @property
    def workload(self) -> Workload:
        """The requests of the sessions."""
        return Workload(MODEL, VOCABULARY_SIZE)


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """One load in one round."""

    loaded: Loaded
    bare_tokens_per_s: float = math.nan
    mismatched_tokens: int = 0
    checked_tokens: int = 0


def run_serve(config: ServeBenchConfig, report: Report) -> Result:
    """Measures every load and reports each."""
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as folder:
        model = make_model(Path(folder) / MODEL, config.size)
        server_config = ServeConfig(models=Path(folder), decode=config.decode, drain_s=0.0)
        with (
            Server(server_config) as server,
            BareEngine(Path(folder) / model.name, server_config) as bare,
            Clients(connect(server.target), config.client_processes) as clients,
        ):
            bench = _Bench(config, server, bare, clients, report)
            report(f"{config.size} on {bare.backend}, {config.client_processes} client processes on the same machine")
            rows = [*bench.closed(), *bench.open(), *bench.soak()]
    for line in table(rows, COLUMNS):
        report(line)
    return Result("serve", describe_machine(), describe_versions(), rows)


class _Bench:
    """One run. The server, the bare engine and the clients exist throughout."""

    def __init__(
        self, config: ServeBenchConfig, server: Server, bare: BareEngine, clients: Clients, report: Report
    ) -> None:
        self._config = config
        self._server = server
        self._bare = bare
        self._clients = clients
        self._report = report
        self._capacity_tokens_per_s = 0.0
        self._steps_ms: list[float] = []
        """The bare engine's time for a step of 64 rows, of each round."""

    def closed(self) -> list[Row]:
        """Measures the closed loop in rounds, and the bounds for 64 simultaneous arrivals."""
        config = self._config
        rounds: dict[int, list[Measured]] = {sessions: [] for sessions in config.sessions}
        for i in range(config.rounds):
            for sessions, measured in rounds.items():
                bare = self._bare.rate(sessions, config.workload, config.warm_s / 2, config.seconds / 2)
                if sessions == 64:
                    self._steps_ms.append(bare.step_ms)
                measured.append(self._measured(self._closed_loop(sessions), bare.tokens_per_s, check=i == 0))
                self._say(f"closed, {sessions} sessions, round {i + 1}", measured[-1])
        rows = []
        for sessions, measured in rounds.items():
            row = {"loop": "closed", "sessions": sessions, "rate_per_s": None, **_row(measured)}
            if sessions == 64:
                row |= self._first_tokens() | self._ceiling(measured)
            if sessions == config.open_capacity_sessions:
                self._capacity_tokens_per_s = median(m.loaded.figures.tokens_per_s for m in measured)
            rows.append(row)
        return rows

    def open(self) -> list[Row]:
        """Measures the open loop at growing rates."""
        config, work = self._config, self._config.workload
        if not config.open_loads:
            return []
        if not self._capacity_tokens_per_s:
            self._capacity_tokens_per_s = self._closed_loop(config.open_capacity_sessions).figures.tokens_per_s
        capacity = self._capacity_tokens_per_s / ((work.min_length + work.max_length) / 2)
        rounds: dict[float, list[Measured]] = {share * capacity: [] for share in config.open_loads}
        for i in range(config.rounds):
            for rate, measured in rounds.items():
                measured.append(self._measured(self._open_loop(rate, seed=i + 1), check=i == 0))
                self._say(f"open, {rate:.0f} arrivals/s, round {i + 1}", measured[-1])
        rows: list[Row] = []
        for rate, measured in rounds.items():
            requests = round(median(m.loaded.figures.requests for m in measured))
            rows.append({"loop": "open", "sessions": requests, "rate_per_s": rate, **_row(measured)})
        return rows

    def soak(self) -> Iterator[Row]:
        """Watches the memory of 64 sessions for some minutes."""
        config = self._config
        if not config.soak_minutes:
            return
        window = Window.soon(config.warm_s, 60 * config.soak_minutes)
        self._clients.begin(config.workload, ClosedLoop(64, window.begin_ns, window.end_ns))
        times, sizes = [], []
        while (now := time.monotonic_ns()) < window.end_ns:
            if now >= window.measure_ns:
                times.append(now / S)
                sizes.append(self._server.rss_mb())
            time.sleep(1.0)
        records = self._clients.finish()
        measured = self._measured(Loaded(window.figures(records), math.nan, sizes[-1], records), check=True)
        slope = slope_per_minute(times, sizes)
        self._report(f"soak: {slope:.2f} MB a minute over {config.soak_minutes:g} minutes")
        yield {
            "loop": "closed",
            "sessions": 64,
            "rate_per_s": None,
            **_row([measured]),
            "soak_minutes": config.soak_minutes,
            "rss_mb_per_minute": slope,
        }

    def _closed_loop(self, sessions: int) -> Loaded:
        config = self._config
        return closed_loop(self._server.pid, self._clients, config.workload, sessions, config.warm_s, config.seconds)

    def _open_loop(self, rate_per_s: float, seed: int) -> Loaded:
        window = Window.soon(self._config.warm_s, self._config.seconds)
        arrivals = OpenLoop(poisson(rate_per_s, window.begin_ns, window.end_ns, seed))
        single = dataclasses.replace(self._config.workload, turns=1)
        return measure(self._server.pid, self._clients, single, arrivals, window)

    def _measured(self, loaded: Loaded, bare_tokens_per_s: float = math.nan, *, check: bool) -> Measured:
        """With `check`, compares a sample of the answers with solo runs."""
        checked = list(sample(loaded.records, self._config.checked_tokens)) if check else []
        return Measured(
            loaded, bare_tokens_per_s, self._bare.mismatches(checked), sum(len(record.tokens) for record in checked)
        )

    def _first_tokens(self) -> Row:
        """TTFT of 64 simultaneous arrivals and its bound.

        The bound is (P + 2) steps of 64 rows, one call, and the p99 of a server that does nothing.
        """
        config = self._config
        ours = percentile(self._burst_ttft_ms(self._clients), 99)
        with NullServer(8) as null, Clients(connect(null.target), config.client_processes) as clients:
            floor = percentile(self._burst_ttft_ms(clients), 99)
        call_ms = ServeConfig().engine.max_call_ms
        bound = (config.workload.prompt_tokens + 2) * median(self._steps_ms) + call_ms + floor
        self._report(f"64 at once: TTFT p99 {ours:.1f} ms; bound {bound:.1f} ms, of which a null server {floor:.1f} ms")
        return {"burst_ttft_ms_p99": ours, "burst_ttft_ms_bound": bound, "null_ttft_ms_p99": floor}

    def _burst_ttft_ms(self, clients: Clients) -> list[float]:
        short = dataclasses.replace(self._config.workload, min_length=8, max_length=8, turns=1)
        found: list[float] = []
        for i in range(self._config.bursts + 1):
            at = soon_ns()
            records = clients.play(short, OpenLoop((at,) * 64))
            if i:  # the first one opens connections
                found += [(r.ttft_ns or math.inf) / 1e6 for r in records]
        return found

    def _ceiling(self, measured: Sequence[Measured]) -> Row:
        """The capacity of the load generator: the same load on a server that does nothing."""
        config = self._config
        held = max(1, round(median(m.loaded.figures.tokens_per_message for m in measured)))
        with NullServer(held) as null, Clients(connect(null.target), config.client_processes) as clients:
            found = closed_loop(null.pid, clients, config.workload, 64, 0.5, config.seconds).figures
        self._report(
            f"generator's ceiling against a null server: {found.messages_per_s:.0f} messages/s, "
            f"{found.tokens_per_s:.0f} tokens/s at {held} tokens a message"
        )
        return {"ceiling_messages_per_s": found.messages_per_s, "ceiling_tokens_per_s": found.tokens_per_s}

    def _say(self, what: str, measured: Measured) -> None:
        f = measured.loaded.figures
        self._report(
            f"{what}: {f.tokens_per_s:.0f} tokens/s (bare {measured.bare_tokens_per_s:.0f}), "
            f"TTFT p99 {f.ttft_ms_p99:.1f} ms, lateness p99 {f.lateness_ms_p99:.1f} ms, "
            f"{f.tokens_per_message:.1f} tokens/message, {f.failed} failed, sent {f.client_lag_ms_p99:.1f} ms late"
        )


def _row(measured: Sequence[Measured]) -> Row:
    """The medians of the rounds. Errors are summed instead."""
    row: Row = {
        field.name: median(getattr(m.loaded.figures, field.name) for m in measured)
        for field in dataclasses.fields(Figures)
        if field.name not in ("requests", "failed")
    }
    row["bare_tokens_per_s"] = median(m.bare_tokens_per_s for m in measured)
    row["cpu_s_per_million_tokens"] = median(m.loaded.cpu_s_per_million_tokens for m in measured)
    row["rss_mb"] = median(m.loaded.rss_mb for m in measured)
    row["requests"] = sum(m.loaded.figures.requests for m in measured)
    row["failed"] = sum(m.loaded.figures.failed for m in measured)
    row["mismatched_tokens"] = sum(m.mismatched_tokens for m in measured)
    row["checked_tokens"] = sum(m.checked_tokens for m in measured)
    return row
