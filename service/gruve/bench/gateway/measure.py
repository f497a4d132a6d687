"""`gruve bench gateway`: HTTP through a gateway beside direct gRPC, on one machine.

Three questions:

- *speed*: one server with the same streams direct and through a gateway, in turn, round after round. Every token is
  compared with a direct answer to the same request.
- *limit*: the same over a backend that computes nothing, where the gateway and not the server is the bottleneck.
- *stopped*: the memory of a gateway whose clients stop reading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from gruve.bench.figures import Record, S, median
from gruve.bench.gateway.forms import connect_form, events_form, openai_form
from gruve.bench.gateway.process import run_gateway_process
from gruve.bench.load.generator import Clients, ClosedLoop, OpenLoop, Workload, soon_ns
from gruve.bench.load.processes import Child, Server
from gruve.bench.load.transport import Transport, connect
from gruve.bench.load.window import Loaded, closed_loop
from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.null_backend import choose_null
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.rounds import in_turn
from gruve.bench.synthetic import MODEL, SMALL, VOCABULARY_SIZE, Size, make_model, tokenizer
from gruve.decode.choose import DecodeConfig
from gruve.gateway.config import GatewayConfig
from gruve.serve.server import ServeConfig

DIRECT, CONNECT, OPENAI, EVENTS = "gRPC, direct", "Connect", "OpenAI", "events"
IDS = {text: number for number, text in enumerate(tokenizer().texts)}
LONGEST = 65_536
"""The most tokens that a request may ask for."""
START_BIAS = -100.0
"""The start token has no text, so an answer in OpenAI's form could not be compared if it had some."""
SPEED = (
    *("what", "way", "streams", "tokens_per_s", "tokens_ratio", "ttft_ms_p50", "ttft_ms_p99", "ttft_more_ms_p50"),
    *("gateway_cpu_us_per_token", "compared_tokens", "differing_tokens", "failed"),
)
LIMIT = (
    *("what", "way", "streams", "tokens_per_s", "messages_per_s", "tokens_per_message", "gateway_cores"),
    *("gateway_cpu_us_per_message", "failed"),
)
STOPPED = ("what", "way", "streams", "rss_mb_before", "rss_mb_after", "mb_per_stream")


@dataclasses.dataclass(frozen=True, slots=True)
class GatewayBenchConfig:
    """The model and the loads."""

    size: Size = SMALL
    streams: tuple[int, ...] = (1, 64)
    limit_streams: tuple[int, ...] = (64, 256)
    stopped_streams: int = 64
    step_us: float = 25.0
    """A step of the backend that computes nothing."""
    rounds: int = 5
    warm_s: float = 0.5
    seconds: float = 2.0
    """How long each load is measured in each round."""
    stopped_s: float = 20.0
    """How long clients have not been reading when memory is read."""
    client_processes: int = 1
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)

    @classmethod
    def quick(cls) -> GatewayBenchConfig:
        """Fewer rounds: about a minute of measuring."""
        return cls(limit_streams=(64,), rounds=2, seconds=1.5, stopped_s=5.0)

    @property
    def workload(self) -> Workload:
        """The requests of the streams. A request and its answer follow from its seed."""
        return Workload(MODEL, VOCABULARY_SIZE, turns=1)


class Gateway(Child):
    """A gateway of one server, on a free port."""

    def __init__(self, target: str) -> None:
        super().__init__(run_gateway_process, GatewayConfig(servers=(target,), port=0, drain_s=1.0))
        self.port = int(self.ready)


class Ways:
    """A server and a gateway, with client processes for each way to reach the server."""

    def __init__(self, stack: contextlib.ExitStack, config: GatewayBenchConfig, server: Server) -> None:
        self._config = config
        self._server = server
        self.gateway = stack.enter_context(Gateway(server.target))
        forms: Mapping[str, Callable[[], Transport]] = {
            DIRECT: connect(server.target),
            CONNECT: connect_form(self.gateway.port),
            OPENAI: openai_form(self.gateway.port, IDS),
            EVENTS: events_form(self.gateway.port),
        }
        self.clients = {way: stack.enter_context(Clients(form, config.client_processes)) for way, form in forms.items()}

    def rounds(
        self, workload: Workload, loads: Sequence[int], ways: Sequence[str], report: Report
    ) -> dict[tuple[str, int], list[Loaded]]:
        """Runs each load each way, round after round."""
        config = self._config
        found: dict[tuple[str, int], list[Loaded]] = {(way, streams): [] for streams in loads for way in ways}
        for i in range(config.rounds):
            for way, streams in in_turn(found, i):
                rounds = found[way, streams]
                measured = self._server if way == DIRECT else self.gateway
                rounds.append(
                    closed_loop(measured.pid, self.clients[way], workload, streams, config.warm_s, config.seconds)
                )
                told = rounds[-1].figures
                report(
                    f"round {i + 1}, {streams} streams, {way}: {told.tokens_per_s:.0f} tokens/s, "
                    f"first token after {told.ttft_ms_p50:.1f} ms"
                )
        return found


def run_gateway(config: GatewayBenchConfig, report: Report) -> Result:
    """Answers the three questions."""
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as name:
        make_model(Path(name) / MODEL, config.size, start_bias=START_BIAS)
        serving = ServeConfig(models=Path(name), decode=config.decode, store="memory", drain_s=0.0)
        with Server(serving) as server:
            speed = _speed(config, server, report)
            stopped = _stopped(config, server, report)
        limit = _limit(config, serving, report)
    for rows, columns in ((speed, SPEED), (limit, LIMIT), ([stopped], STOPPED)):
        for line in table(rows, columns):
            report(line)
    versions = describe_versions("uvicorn", "starlette", "connectrpc")
    return Result("gateway", describe_machine(), versions, [*speed, *limit, stopped])


def _speed(config: GatewayBenchConfig, server: Server, report: Report) -> list[Row]:
    """The same streams direct and through the gateway."""
    with contextlib.ExitStack() as stack:
        ways = Ways(stack, config, server)
        found = ways.rounds(config.workload, config.streams, tuple(ways.clients), report)
        records = [record for rounds in found.values() for loaded in rounds for record in loaded.records]
        direct = _answers(config, ways.clients[DIRECT], records)
    return [
        _speed_row(way, streams, rounds, found[DIRECT, streams], direct) for (way, streams), rounds in found.items()
    ]


def _answers(config: GatewayBenchConfig, clients: Clients, records: Iterable[Record]) -> dict[int, Record]:
    """A direct answer to every request of the records, by its seed. They arrive slowly enough to be taken at once."""
    count = 1 + max(record.seed for record in records)
    begin_ns = soon_ns()
    arrivals = OpenLoop(tuple(begin_ns + i * S // 100 for i in range(count)))
    return {record.seed: record for record in clients.play(config.workload, arrivals)}


def _differing(record: Record, answer: Record) -> int:
    """The number of tokens that differ, or that one of two answers to the same request does not have."""
    pairs = zip(record.tokens, answer.tokens, strict=False)
    return sum(a != b for a, b in pairs) + abs(len(record.tokens) - len(answer.tokens))


def _speed_row(
    way: str, streams: int, found: Sequence[Loaded], direct: Sequence[Loaded], answers: Mapping[int, Record]
) -> Row:
    pairs = [(one.figures, other.figures) for one, other in zip(found, direct, strict=True)]
    records = [record for loaded in found for record in loaded.records]
    return {
        "what": "speed",
        "way": way,
        "streams": streams,
        "tokens_per_s": median(one.tokens_per_s for one, _ in pairs),
        "tokens_ratio": median(one.tokens_per_s / other.tokens_per_s for one, other in pairs),
        "tokens_per_message": median(one.tokens_per_message for one, _ in pairs),
        "ttft_ms_p50": median(one.ttft_ms_p50 for one, _ in pairs),
        "ttft_ms_p99": median(one.ttft_ms_p99 for one, _ in pairs),
        "ttft_more_ms_p50": median(one.ttft_ms_p50 - other.ttft_ms_p50 for one, other in pairs),
        "ttft_more_ms_p99": median(one.ttft_ms_p99 - other.ttft_ms_p99 for one, other in pairs),
        "gateway_cpu_us_per_token": None if way == DIRECT else median(one.cpu_s_per_million_tokens for one in found),
        "compared_tokens": sum(len(record.tokens) for record in records),
        "differing_tokens": sum(_differing(record, answers[record.seed]) for record in records),
        "failed": sum(bool(record.failed) for record in records),
    }


def _limit(config: GatewayBenchConfig, serving: ServeConfig, report: Report) -> list[Row]:
    """What a gateway delivers of a server that is faster than it."""
    workload = dataclasses.replace(config.workload, min_length=2_000, max_length=4_000)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(serving, functools.partial(choose_null, config.step_us / 1e6)))
        ways = Ways(stack, config, server)
        found = ways.rounds(workload, config.limit_streams, tuple(ways.clients), report)
    return [_limit_row(way, streams, rounds) for (way, streams), rounds in found.items()]


def _limit_row(way: str, streams: int, found: Sequence[Loaded]) -> Row:
    cores = [1e-6 * loaded.cpu_s_per_million_tokens * loaded.figures.tokens_per_s for loaded in found]
    per_message = [1e6 * used / one.figures.messages_per_s for used, one in zip(cores, found, strict=True)]
    return {
        "what": "limit",
        "way": way,
        "streams": streams,
        "tokens_per_s": median(loaded.figures.tokens_per_s for loaded in found),
        "messages_per_s": median(loaded.figures.messages_per_s for loaded in found),
        "tokens_per_message": median(loaded.figures.tokens_per_message for loaded in found),
        "gateway_cores": None if way == DIRECT else median(cores),
        "gateway_cpu_us_per_message": None if way == DIRECT else median(per_message),
        "failed": sum(loaded.figures.failed for loaded in found),
    }


def _stopped(config: GatewayBenchConfig, server: Server, report: Report) -> Row:
    """The memory of a gateway before and after its clients stopped reading long answers with log-probabilities."""
    workload = dataclasses.replace(config.workload, min_length=LONGEST, max_length=LONGEST)
    with (
        Gateway(server.target) as gateway,
        Clients(openai_form(gateway.port, IDS, logprobs=20), config.client_processes) as clients,
    ):
        short = dataclasses.replace(workload, min_length=8, max_length=16)
        begin_ns = soon_ns()
        clients.play(short, ClosedLoop(config.stopped_streams, begin_ns, begin_ns + S))
        before_mb = gateway.rss_mb()
        begin_ns = soon_ns()
        clients.begin(workload, ClosedLoop(config.stopped_streams, begin_ns, begin_ns + S))
        time.sleep(1.0)
        clients.freeze()
        time.sleep(config.stopped_s)
        after_mb = gateway.rss_mb()
    report(f"{config.stopped_streams} clients that do not read: {before_mb:.1f} MB before, {after_mb:.1f} MB after")
    return {
        "what": "stopped",
        "way": OPENAI,
        "streams": config.stopped_streams,
        "rss_mb_before": before_mb,
        "rss_mb_after": after_mb,
        "mb_per_stream": (after_mb - before_mb) / config.stopped_streams,
    }
