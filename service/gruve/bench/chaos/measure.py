"""`gruve bench chaos`: kills servers, stops them and breaks their store under load, and compares every token.

It runs real `gruve serve` processes, a real Redis and HAProxy, and `gruve.client`, which reconnects by itself. Every
stream is compared with its twin on an undisturbed server. A fault is injected only while at least `MIN_FLOWING` streams
are in the middle of a generation and have received a token since the previous fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from gruve.bench.chaos.fault_injection import FAULTS
from gruve.bench.chaos.replicas import Proxy, Redis, Replica, find_program
from gruve.bench.chaos.streams import STEERED_TOKENS, Plan, Stream, Streams, Twins
from gruve.bench.result import Report
from gruve.bench.synthetic import MODEL, Size, make_model
from gruve.sessions.store import LEASE_S, Store
from gruve.sessions.store.open import open_store

SIZE = Size(1, 64)
STREAMS, MIN_FLOWING = 64, 32
CONNECTIONS = 4
"""The connections of the streams, each of a client of its own."""
UNHARMED_TOKENS = 70
"""A stream that has received this many tokens since the failure is unharmed. It is more than a healthy store may be
behind."""
WAIT_S, FINISH_S = 120.0, 90.0
"""How long to wait until streams flow again, and until they end. A busy machine may take long."""
SHORT = Plan(MODEL, STEERED_TOKENS, 400)
LONG = Plan(MODEL, 6_000, 6_000, ends=False)
"""One turn, longer than any outage. With several, tokens of earlier turns that a failing store did not take would be
lost."""
SERVER_KILLS = ("sqlite-kill", "redis-haproxy-kill")
REDIS_TROUBLES = ("redis-sigstop", "redis-restart", "redis-drop", "redis-rolling")
SCENARIOS = (*SERVER_KILLS, *REDIS_TROUBLES, *FAULTS)
Row = dict[str, object]
Transcript = tuple[Stream, Sequence[int], int]


@dataclasses.dataclass(frozen=True, slots=True)
class ChaosBenchConfig:
    """The scenarios and how often each fault is injected."""

    scenarios: tuple[str, ...] = SCENARIOS
    kills: int = 20
    """Kills of the server on SQLite."""
    replica_kills: int = 8
    """Kills of each replica on Redis."""
    troubles: int = 4
    """How often each other fault is injected."""
    at_once: int = 1
    """Scenarios that run at the same time."""
    tokens_per_s: float = 50.0
    """The pace of each stream, in tokens per second."""
    longest_wait_s: float = 1.5
    """The maximum of the random time between two faults, once the streams flow."""

    @classmethod
    def quick(cls) -> ChaosBenchConfig:
        """One kill of everything that can be killed, in less than 60 seconds."""
        scenarios = ("sqlite-kill", "redis-haproxy-kill", "store-locked")
        return cls(scenarios=scenarios, kills=3, replica_kills=1, troubles=1, at_once=3, tokens_per_s=30.0)


class _Missing(Exception):
    """The scenario needs a program that is not installed. The message names it."""


async def run_chaos(config: ChaosBenchConfig, report_row: Callable[[Row], None], report: Report) -> bool:
    """Runs the scenarios and reports a row for each; returns whether every one passed."""
    with tempfile.TemporaryDirectory(prefix="gruve-chaos-") as name:
        folder = Path(name)
        make_model(folder / "models" / MODEL, SIZE)
        twins = Twins(Replica(folder, "undisturbed", folder / "models", "memory"))
        turns = asyncio.Semaphore(config.at_once)

        async def one(scenario: str) -> bool:
            async with turns:
                (folder / scenario).mkdir()
                row = await _Chaos(config, folder / scenario, folder / "models", twins, report).run(scenario)
            report_row(row)
            return passed(row)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(scenario)) for scenario in config.scenarios]
            return all(task.result() for task in tasks)
        finally:
            await twins.close()


def passed(row: Row) -> bool:
    """Whether no fault was found in the row of a scenario. A skipped one also passes."""
    wrong = ("differing_tokens", "lost_tokens", "repeated_tokens", "failed_streams")
    return "error" not in row and not any(row.get(name) for name in wrong)


class _Chaos:
    """One run of one scenario."""

    def __init__(self, config: ChaosBenchConfig, folder: Path, models: Path, twins: Twins, report: Report) -> None:
        self._config = config
        self._folder = folder
        self._models = models
        self._twins = twins
        self._report = report
        self._random = random.Random(1)  # noqa: S311 - times of faults, not secrets
        self._streams_at_kill: list[int] = []
        self._last_fault_s = 0.0
        """When the last fault was over, or the streams began."""
        self._store_figures: dict[str, int] = {}
        self._transcripts: list[Transcript] = []
        self._scenario = ""

    async def run(self, scenario: str) -> Row:
        """Runs the scenario and returns its row."""
        self._scenario = scenario
        began_s = time.monotonic()
        kinds: dict[str, Callable[[], Awaitable[Streams]]] = {
            "sqlite-kill": self._sqlite_kill,
            **dict.fromkeys(("redis-haproxy-kill", *REDIS_TROUBLES), self._on_redis),
            **dict.fromkeys(FAULTS, self._broken_store),
        }
        try:
            streams = await kinds[scenario]()
        except _Missing as missing:
            return {"benchmark": "chaos", "scenario": scenario, "skipped": str(missing)}
        except (ChildProcessError, TimeoutError) as error:
            why = str(error) or f"something took too long: {error!r}"
            at_kill = list(self._streams_at_kill)
            return {"benchmark": "chaos", "scenario": scenario, "streams_at_kill": at_kill, "error": why}
        found = await self._twins.compare(streams, self._transcripts)
        failures = [stream.failure for stream in streams.all if stream.failure]
        for failure in failures + found.places:
            self._report(f"{scenario}: {failure}")
        return {
            "benchmark": "chaos",
            "scenario": scenario,
            "streams": len(streams.all),
            "kills": len(self._streams_at_kill),
            "streams_at_kill": list(self._streams_at_kill),
            "tokens": found.tokens,
            "differing_tokens": found.differing,
            "lost_tokens": found.lost,
            "repeated_tokens": found.repeated,
            "failed_streams": len(failures),
            **self._store_figures,
            "seconds": round(time.monotonic() - began_s, 1),
        }

    @contextlib.asynccontextmanager
    async def _streams(self, plan: Plan, address: str) -> AsyncIterator[Streams]:
        async with Streams(plan, STREAMS, address, CONNECTIONS, self._config.tokens_per_s) as streams:
            self._last_fault_s = time.monotonic()
            yield streams

    async def _wait_for_flow(self, streams: Streams) -> None:
        """Waits for a random moment with enough streams in the middle of a generation, and records their number."""
        while True:
            await streams.until(
                f"{MIN_FLOWING} flow", lambda: streams.flowing(self._last_fault_s) >= MIN_FLOWING, WAIT_S
            )
            await asyncio.sleep(self._random.uniform(0.0, self._config.longest_wait_s))
            if (flowing := streams.flowing(self._last_fault_s)) >= MIN_FLOWING:
                self._streams_at_kill.append(flowing)
                return

    def _report_fault(self, what: str) -> None:
        self._last_fault_s = time.monotonic()
        self._report(f"{self._scenario}: {what}, {self._streams_at_kill[-1]} streams in the middle of a generation")

    async def _end(self, streams: Streams) -> None:
        """Lets the streams end, and reads their transcripts from the server."""
        await streams.finish(FINISH_S)
        for stream in streams.all:
            if not stream.failure:
                kept = (await streams.client().get_session(stream.session, timeout_s=WAIT_S)).token_ids
                ended = stream.plan.ends
                self._transcripts.append((stream, kept, stream.end if ended else 0))

    async def _sqlite_kill(self) -> Streams:
        store = f"sqlite:{self._folder / 'sessions.db'}"
        async with (
            Replica(self._folder, "server", self._models, store) as server,
            self._streams(SHORT, server.address) as streams,
        ):
            for _ in range(self._config.kills):
                await self._wait_for_flow(streams)
                await server.kill()
                await server.start()
                self._report_fault("server killed")
            await self._end(streams)
            return streams

    async def _on_redis(self) -> Streams:
        """Two replicas on one Redis, behind HAProxy."""
        redis = Redis(self._folder, _program("redis-server"))
        haproxy = _program("haproxy")
        replicas = [Replica(self._folder, name, self._models, redis.url) for name in ("one", "two")]
        proxy = Proxy(self._folder, haproxy, replicas)
        count = self._config.replica_kills if self._scenario == "redis-haproxy-kill" else self._config.troubles
        async with redis, replicas[0], replicas[1], proxy, self._streams(SHORT, proxy.address) as streams:
            for _ in range(count):
                await self._wait_for_flow(streams)
                await self._inject(redis, replicas, proxy, streams)
            await self._end(streams)
            return streams

    async def _inject(self, redis: Redis, replicas: list[Replica], proxy: Proxy, streams: Streams) -> None:
        replica = self._random.choice(replicas)
        match self._scenario:
            case "redis-haproxy-kill":
                await replica.kill()
                self._report_fault(f"replica {replica.name} killed")
                await replica.start()
            case "redis-sigstop":
                replica.send(signal.SIGSTOP)
                try:
                    await asyncio.sleep(LEASE_S + 3.0)
                finally:
                    replica.send(signal.SIGCONT)
                self._report_fault(f"replica {replica.name} stopped for {LEASE_S + 3.0:.0f} s")
            case "redis-restart":
                await redis.kill()
                await redis.start()
                self._report_fault("Redis killed and started")
            case "redis-drop":
                await proxy.kill()
                await proxy.start()
                self._report_fault("all connections dropped")
            case "redis-rolling":
                for each in replicas:
                    await each.terminate()
                    await each.start()
                    await streams.until(
                        f"{MIN_FLOWING} flow", lambda: streams.flowing(time.monotonic() - 1.0) >= MIN_FLOWING, WAIT_S
                    )
                self._report_fault("both replicas restarted in turn")

    async def _broken_store(self) -> Streams:
        """Breaks the store while streams run, kills the server, and repairs the store before the restart."""
        redis = Redis(self._folder, _program("redis-server")) if self._scenario == "store-unreachable" else None
        path = self._folder / "sessions.db"
        where = redis.url if redis is not None else f"sqlite:{path}"
        server = Replica(self._folder, "server", self._models, where)
        async with contextlib.AsyncExitStack() as stack:
            if redis is not None:
                await stack.enter_async_context(redis)
            await stack.enter_async_context(server)
            streams = await stack.enter_async_context(self._streams(LONG, server.address))
            await streams.until(
                "all are steered", lambda: all(s.position > STEERED_TOKENS for s in streams.all), WAIT_S
            )
            broken = FAULTS[self._scenario](path, redis, server)
            async with broken:
                await self._wait_for_store_error(server, streams)
                durable = await self._durable(streams)
                await self._wait_for_flow(streams)
                await server.kill()
                self._report_fault("server killed")
            store = await asyncio.to_thread(open_store, where)
            assert store is not None  # noqa: S101 - the store is not memory
            self._read_durable(store, durable)
            await server.start()
            await streams.until("all flow", lambda: streams.flowing(self._last_fault_s) >= len(streams.all), WAIT_S)
            await self._end(streams)
            return streams

    async def _wait_for_store_error(self, server: Replica, streams: Streams) -> None:
        """Waits until the server reports the failure and every stream has received more tokens."""
        give_up_s = time.monotonic() + WAIT_S
        while not (errors := await server.metric("gruve_store_errors_total")):
            if time.monotonic() > give_up_s:
                raise TimeoutError(f"the server reported no error of its store within {WAIT_S:.0f} s")
            await asyncio.sleep(0.1)
        positions = {stream: stream.position for stream in streams.all}
        await streams.until(
            "all go on", lambda: all(s.position > p + UNHARMED_TOKENS for s, p in positions.items()), WAIT_S
        )
        self._store_figures = {"store_errors": int(errors)}

    async def _durable(self, streams: Streams) -> dict[Stream, int]:
        """The durable position of each stream's session. The server must report each as behind."""
        durable = {}
        for stream in streams.all:
            session = (await streams.client().get_session(stream.session, transcript=False)).session
            if session.HasField("durable_position"):
                durable[stream] = session.durable_position
        self._store_figures["streams_behind"] = len(durable)
        if len(durable) < len(streams.all):
            raise ChildProcessError(f"the store fails, and {len(streams.all) - len(durable)} sessions do not say so")
        return durable

    def _read_durable(self, store: Store, durable: dict[Stream, int]) -> None:
        """Reads every session's transcript from the store, without a server."""
        try:
            for stream, position in durable.items():
                stored = store.read(stream.session, time.time())
                tokens = () if stored is None else memoryview(stored.transcript).cast("H")
                self._transcripts.append((stream, tokens, position + 1))
        finally:
            store.close()


def _program(name: str) -> str:
    found = find_program(name)
    if found is None:
        raise _Missing(f"{name} is not installed")
    return found
