"""`gruve bench overload`: how a server treats its tenants when requests exceed its capacity.

Three questions, each against a server of its own, with clients in other processes:

- *neighbour*: the time to the first token of a tenant that asks for one stream at a time, alone and beside a tenant
  with many streams, measured in turn; and its share of the tokens when it asks for many streams itself.
- *open*: the goodput of arrivals at fixed times, from half the capacity to several times of it. Goodput counts the
  tokens of the requests that were finished before their deadline; the rest was refused, or served in vain.
- *refusals*: the server's memory before and after many requests that were refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gruve.bench.figures import Figures, Record, S, median
from gruve.bench.load.generator import Clients, ClosedLoop, OpenLoop, Workload, poisson, soon_ns
from gruve.bench.load.processes import Server
from gruve.bench.load.transport import connect
from gruve.bench.load.window import Window, closed_loop
from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.synthetic import MODEL, SMALL, VOCABULARY_SIZE, Size, make_model
from gruve.decode.choose import DecodeConfig
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from gruve.serve.callers.identity import Limits
from gruve.serve.server import ServeConfig

NEIGHBOUR = ("what", "streams", "beside", "requests", "ttft_ms_p50", "ttft_ms_p99", "ttft_ratio_p99", "token_share")
OPEN = ("what", "load", "rate_per_s", "goodput_tokens_per_s", "goodput_share", "refused", "overdue", "ttft_ms_p99")
REFUSALS = ("what", "requests", "refused", "rss_mb_before", "rss_mb_after", "refusals_per_s")
REFUSED, OVERDUE = "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"


@dataclasses.dataclass(frozen=True, slots=True)
class OverloadBenchConfig:
    """The model and the loads."""

    size: Size = SMALL
    greedy_streams: int = 500
    """The streams of the tenant that asks for much."""
    short_tokens: int = 16
    """The tokens of a request of the tenant with one stream."""
    asking_streams: int = 64
    """The streams of the other one when it asks for its share of the tokens."""
    rounds: int = 3
    warm_s: float = 1.0
    seconds: float = 4.0
    """How long a load is measured in each round."""
    loads: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 5.0)
    """The rates of the open loop, as fractions of the capacity."""
    slots: int = 32
    """The slots of the server of the open loop, whose capacity is measured with as many streams."""
    deadline_holds: float = 4.0
    """The deadline of the open loop's requests, as a multiple of the time that a stream takes in the closed loop."""
    open_s: float = 8.0
    refused: int = 10_000
    refusals_per_s: float = 500.0
    client_processes: int = 1
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)

    @classmethod
    def quick(cls) -> OverloadBenchConfig:
        """Fewer rounds, loads and refusals, in less than 50 seconds."""
        return cls(rounds=1, seconds=2.0, loads=(1.0, 5.0), open_s=4.0, refused=1_000)


def run_overload(config: OverloadBenchConfig, report: Report) -> Result:
    """Answers the three questions."""
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as name:
        folder = Path(name)
        make_model(folder / "models" / MODEL, config.size)
        neighbour = _neighbour(config, folder, report)
        open_loop = _open(config, folder, report)
        refusals = _refusals(config, folder, report)
    rows = [*neighbour, *open_loop, refusals]
    for chosen, columns in ((neighbour, NEIGHBOUR), (open_loop, OPEN), ([refusals], REFUSALS)):
        for line in table(chosen, columns):
            report(line)
    return Result("overload", describe_machine(), describe_versions(), rows)


def _workload(least: int = 128, most: int = 384) -> Workload:
    return Workload(MODEL, VOCABULARY_SIZE, min_length=least, max_length=most, turns=1)


def _server_config(config: OverloadBenchConfig, folder: Path, keys: Path | None = None) -> ServeConfig:
    return ServeConfig(models=folder / "models", decode=config.decode, access=AccessConfig(keys=keys), drain_s=0.0)


def _neighbour(config: OverloadBenchConfig, folder: Path, report: Report) -> list[Row]:
    """The tenant with one stream alone and beside the greedy one, in turn; then both with many streams."""
    keys = folder / "neighbour.json"
    greedy_key, modest_key = (add_key(keys, name, name) for name in ("greedy", "modest"))
    short = _workload(config.short_tokens, config.short_tokens)
    alone: list[Figures] = []
    beside: list[Figures] = []
    shares: list[float] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(_server_config(config, folder, keys)))
        greedy, modest = (
            stack.enter_context(Clients(connect(server.target, key), config.client_processes))
            for key in (greedy_key, modest_key)
        )
        for i in range(config.rounds):
            alone.append(_together(config, modest, 1, short)[0])
            beside.append(_together(config, modest, 1, short, greedy)[0])
            ours, theirs = _together(config, modest, config.asking_streams, _workload(), greedy)
            shares.append(ours.tokens_per_s / max(1.0, ours.tokens_per_s + theirs.tokens_per_s))
            report(
                f"round {i + 1}: first token p99 {alone[-1].ttft_ms_p99:.1f} ms alone, "
                f"{beside[-1].ttft_ms_p99:.1f} ms beside {config.greedy_streams} streams; "
                f"{config.asking_streams} streams get {shares[-1]:.0%} of the tokens"
            )
    ratio = median(b.ttft_ms_p99 / a.ttft_ms_p99 for a, b in zip(alone, beside, strict=True))
    return [
        _neighbour_row(1, 0, alone, math.nan, math.nan),
        _neighbour_row(1, config.greedy_streams, beside, ratio, math.nan),
        _neighbour_row(config.asking_streams, config.greedy_streams, [], math.nan, median(shares)),
    ]


def _neighbour_row(streams: int, beside: int, rounds: Sequence[Figures], ratio: float, share: float) -> Row:
    return {
        "what": "neighbour",
        "streams": streams,
        "beside": beside,
        "requests": sum(found.requests for found in rounds),
        "ttft_ms_p50": median(found.ttft_ms_p50 for found in rounds),
        "ttft_ms_p99": median(found.ttft_ms_p99 for found in rounds),
        "ttft_ratio_p99": ratio,
        "token_share": share,
    }


def _together(
    config: OverloadBenchConfig, modest: Clients, streams: int, workload: Workload, greedy: Clients | None = None
) -> tuple[Figures, Figures]:
    """The figures of each tenant: the modest one's, and the greedy one's if it is there."""
    window = Window.soon(config.warm_s, config.seconds)
    if greedy is not None:
        greedy.begin(_workload(), ClosedLoop(config.greedy_streams, window.begin_ns, window.end_ns))
    ours = modest.play(workload, ClosedLoop(streams, window.begin_ns, window.end_ns))
    theirs = [] if greedy is None else greedy.finish()
    return window.figures(ours), window.figures(theirs)


def _open(config: OverloadBenchConfig, folder: Path, report: Report) -> list[Row]:
    """The goodput at each load, on a server with few slots and the default queue."""
    few_slots = dataclasses.replace(config.decode, slots=config.slots)
    with Server(dataclasses.replace(_server_config(config, folder), decode=few_slots)) as server:
        with Clients(connect(server.target), config.client_processes) as clients:
            loaded = closed_loop(server.pid, clients, _workload(), config.slots, config.warm_s, config.seconds)
        capacity = loaded.figures.tokens_per_s
        mean = (_workload().min_length + _workload().max_length) / 2
        deadline_s = config.deadline_holds * mean * config.slots / capacity
        report(f"capacity {capacity:.0f} tokens/s with {config.slots} streams; deadline {deadline_s:.1f} s")
        transport = connect(server.target, timeout_s=deadline_s)
        with Clients(transport, config.client_processes) as clients:
            rows = [_open_once(config, clients, load, capacity / mean, deadline_s, report) for load in config.loads]
    best = max(float(row["goodput_tokens_per_s"] or 0.0) for row in rows)
    for row in rows:
        row["goodput_share"] = float(row["goodput_tokens_per_s"] or 0.0) / best if best else math.nan
    return rows


def _open_once(
    config: OverloadBenchConfig, clients: Clients, load: float, capacity_per_s: float, deadline_s: float, report: Report
) -> Row:
    """One rate of arrivals. The window begins when the queue has had the time of a deadline to fill."""
    window = Window.soon(deadline_s, config.open_s)
    arrivals = poisson(load * capacity_per_s, window.begin_ns, window.end_ns, seed=1)
    records = clients.play(_workload(), OpenLoop(arrivals))
    every, good = window.figures(records), window.figures([r for r in records if not r.failed])
    why = Counter(r.failed for r in records if r.failed and window.measure_ns <= r.scheduled_ns < window.end_ns)
    row: Row = {
        "what": "open",
        "load": load,
        "rate_per_s": load * capacity_per_s,
        "deadline_s": deadline_s,
        "goodput_tokens_per_s": good.tokens_per_s,
        "requests": every.requests,
        "refused": why[REFUSED],
        "overdue": why[OVERDUE],
        "failed_otherwise": sum(why.values()) - why[REFUSED] - why[OVERDUE],
        "ttft_ms_p99": good.ttft_ms_p99,
        "client_lag_ms_p99": every.client_lag_ms_p99,
    }
    report(
        f"{load:g} times the capacity: {row['goodput_tokens_per_s']:.0f} tokens/s in time; "
        f"of {every.requests} requests {why[REFUSED]} refused, {why[OVERDUE]} overdue"
    )
    time.sleep(deadline_s)  # what is left of this load must not be served in the next one
    return row


def _refusals(config: OverloadBenchConfig, folder: Path, report: Report) -> Row:
    """The memory before and after the refused requests. Each asks for more tokens than its tenant may use."""
    keys = folder / "refusals.json"
    key = add_key(keys, "refused", "refused", limits=Limits(tokens_per_minute=1))
    with (
        Server(_server_config(config, folder, keys)) as server,
        Clients(connect(server.target, key), config.client_processes) as clients,
    ):
        _refuse(config, clients, config.refused // 10)  # what the first calls allocate stays
        before_mb = server.rss_mb()
        records = _refuse(config, clients, config.refused)
        time.sleep(1.0)
        after_mb = server.rss_mb()
    refused = sum(r.failed == REFUSED for r in records)
    lasted_s = (max(r.sent_ns for r in records) - min(r.sent_ns for r in records)) / S
    report(f"{refused} refused requests: memory {before_mb:.1f} MB before, {after_mb:.1f} MB after")
    return {
        "what": "refusals",
        "requests": len(records),
        "refused": refused,
        "rss_mb_before": before_mb,
        "rss_mb_after": after_mb,
        "refusals_per_s": refused / lasted_s,
    }


def _refuse(config: OverloadBenchConfig, clients: Clients, count: int) -> list[Record]:
    begin_ns = soon_ns()
    gap_ns = S / config.refusals_per_s
    return clients.play(_workload(), OpenLoop(tuple(begin_ns + int(i * gap_ns) for i in range(count))))
