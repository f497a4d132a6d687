"""The load generator: client processes that play sessions against a server and record the time of every message.

Closed loop: a fixed number of sessions, each of which sends its next request when the previous one is answered. Open
loop: arrivals at times that are fixed beforehand, so that a slow server cannot reduce its own load. A process records
bytes and times, and parses neither until the run is over. Knows transports, not engines or models.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Self

from gruve.bench.figures import Record, S
from gruve.bench.load.transport import Refused, Request, Transport

SPAWN = multiprocessing.get_context("spawn")
"""A forked process would inherit locks that threads of torch and gRPC hold."""
LEAD_NS = 3 * S // 10
"""The processes are told of a run this long before it begins."""


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """The requests of every session."""

    model: str
    vocabulary_size: int
    prompt_tokens: int = 16
    min_length: int = 128
    """The minimum and maximum number of generated tokens. Uniform, drawn from the session's seed."""
    max_length: int = 384
    turns: int = 4
    """The requests of a session before it is deleted and replaced by another. With 1, no session is kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A number of concurrent sessions from `begin_ns` on. No request begins after `end_ns`."""

    sessions: int
    begin_ns: int
    end_ns: int


@dataclasses.dataclass(frozen=True, slots=True)
class OpenLoop:
    """For each arrival, one session with one request."""

    arrivals_ns: tuple[int, ...]


Run = ClosedLoop | OpenLoop


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """One process's share of a run."""

    workload: Workload
    run: Run
    first: int
    """Its number among the processes, and the step from one of its sessions to its next."""
    step: int


def poisson(rate_per_s: float, begin_ns: int, end_ns: int, seed: int) -> tuple[int, ...]:
    """Arrival times in [begin, end) with exponential gaps."""
    rng, at, arrivals = random.Random(seed), float(begin_ns), []  # noqa: S311 - a schedule, not a secret
    while (at := at + rng.expovariate(rate_per_s) * S) < end_ns:
        arrivals.append(int(at))
    return tuple(arrivals)


class Clients:
    """Client processes that are ready to play. `connect` creates each one's transport inside the process."""

    def __init__(self, connect: Callable[[], Transport], processes: int) -> None:
        self._pipes: list[Connection] = []
        self._processes = []
        self._frozen = False
        for _ in range(processes):
            ours, theirs = SPAWN.Pipe()
            process = SPAWN.Process(target=_client, args=(connect, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def play(self, workload: Workload, run: Run) -> list[Record]:
        """Plays a run to its end and returns every request."""
        self.begin(workload, run)
        return self.finish()

    def begin(self, workload: Workload, run: Run) -> None:
        """Announces a run, which begins at its time."""
        for i, pipe in enumerate(self._pipes):
            pipe.send(Share(workload, run, i, len(self._pipes)))

    def finish(self) -> list[Record]:
        """Waits for the end of the run and returns every request."""
        records: list[Record] = []
        for pipe in self._pipes:
            answer = pipe.recv()
            if isinstance(answer, Exception):
                raise answer
            records += answer
        return records

    def freeze(self) -> None:
        """Stops the processes as they are: they keep their connections and read nothing more. Only `close` follows."""
        self._frozen = True
        for process in self._processes:
            os.kill(process.pid or 0, signal.SIGSTOP)

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(0 if self._frozen else 10)
            process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def soon_ns() -> int:
    """A time to begin that is far enough ahead for every process."""
    return time.monotonic_ns() + LEAD_NS


def _client(connect: Callable[[], Transport], pipe: Connection) -> None:
    """The main function of a client process: plays shares until it is told to end."""
    asyncio.run(_serve_shares(connect(), pipe))


async def _serve_shares(transport: Transport, pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    await transport.open()
    try:
        gc.collect()
        gc.freeze()
        pipe.send("ready")
        while (share := await loop.run_in_executor(None, pipe.recv)) is not None:
            # Garbage collection would look like latency of the server.
            gc.collect()
            gc.disable()
            try:
                answer: list[Record] | Exception = await _play(transport, share)
            except Exception as error:  # noqa: BLE001 - sent to the parent process, which raises it
                answer = error
            gc.enable()
            pipe.send(answer)
    finally:
        await transport.close()


async def _play(transport: Transport, share: Share) -> list[Record]:
    exchanges: list[_Exchange] = []
    run, workload = share.run, share.workload
    if isinstance(run, ClosedLoop):
        async with asyncio.TaskGroup() as group:
            for i in range(share.first, run.sessions, share.step):
                group.create_task(_play_sessions(transport, workload, run, i, exchanges))
    else:
        async with asyncio.TaskGroup() as group:
            for i in range(share.first, len(run.arrivals_ns), share.step):
                await _until(run.arrivals_ns[i])
                session = _Session(transport, workload, i)
                group.create_task(session.send(run.arrivals_ns[i], exchanges))
    return [exchange.record(transport) for exchange in exchanges]


async def _play_sessions(
    transport: Transport, workload: Workload, run: ClosedLoop, index: int, exchanges: list[_Exchange]
) -> None:
    """Plays one session after the other until the closed loop ends; at least one request."""
    await _until(run.begin_ns)
    seed, over = index, False
    while not over:
        session = _Session(transport, workload, seed)
        for _ in range(workload.turns):
            answered = await session.send(None, exchanges)
            over = time.monotonic_ns() >= run.end_ns
            if over or not answered:
                break
        await session.delete()
        seed += run.sessions


class _Session:
    """One session. Its seed determines prompts and lengths."""

    def __init__(self, transport: Transport, workload: Workload, seed: int) -> None:
        self._transport = transport
        self._workload = workload
        self._seed = seed
        self._rng = random.Random(seed)  # noqa: S311 - random prompts, not secrets
        self._id = ""
        self._last: _Exchange | None = None

    async def send(self, scheduled_ns: int | None, exchanges: list[_Exchange]) -> bool:
        """Sends one request and reads the whole answer; returns whether it ended normally."""
        work, rng = self._workload, self._rng
        prompt = tuple(rng.randrange(1, work.vocabulary_size) for _ in range(work.prompt_tokens))
        length = rng.randint(work.min_length, work.max_length)
        request = Request(work.model, prompt, length, self._seed, self._id, keep=work.turns > 1)
        exchange = _Exchange(request, self._last if self._id else None, scheduled_ns)
        exchanges.append(exchange)
        await exchange.run(self._transport)
        if exchange.failed or not exchange.raw:
            return False
        self._id = self._id or self._transport.read(exchange.raw[0]).session
        self._last = exchange
        return True

    async def delete(self) -> None:
        """Deletes the session, if there is one."""
        if self._id:
            await self._transport.delete_session(self._id)


class _Exchange:
    """One request and everything received for it, as bytes and times."""

    def __init__(self, request: Request, last: _Exchange | None, scheduled_ns: int | None) -> None:
        """`last` is the session's previous exchange."""
        self.request = request
        self.last = last
        self.scheduled_ns = scheduled_ns
        self.sent_ns = 0
        self.times_ns: list[int] = []
        self.raw: list[bytes] = []
        self.failed = ""
        self.before: tuple[int, ...] = ()
        self.generated: tuple[int, ...] = ()

    async def run(self, transport: Transport) -> None:
        """Sends the request and receives the answer."""
        now, times, raws = time.monotonic_ns, self.times_ns, self.raw
        self.sent_ns = now()
        try:
            async for raw in transport.stream(self.request):
                times.append(now())
                raws.append(raw)
        except Refused as refused:
            self.failed = str(refused) or "refused"

    def record(self, transport: Transport) -> Record:
        """The records of the run, earlier ones first. Messages without tokens are not counted."""
        held = [(at, m) for at, raw in zip(self.times_ns, self.raw, strict=True) if (m := transport.read(raw).tokens)]
        self.generated = tuple(token for _, tokens in held for token in tokens)
        before = () if self.last is None else self.last.before + self.last.generated
        self.before = before + self.request.prompt
        failed = self.failed
        if not failed and sum(len(tokens) for _, tokens in held) < self.request.max_tokens:
            failed = "ended early"
        return Record(
            scheduled_ns=self.sent_ns if self.scheduled_ns is None else self.scheduled_ns,
            sent_ns=self.sent_ns,
            times_ns=tuple(at for at, _ in held),
            counts=tuple(len(tokens) for _, tokens in held),
            tokens=self.generated,
            prompt=self.before,
            seed=self.request.seed,
            failed=failed,
        )


async def _until(at_ns: int) -> None:
    await asyncio.sleep(max(0, at_ns - time.monotonic_ns()) / S)


def sample(records: Sequence[Record], max_tokens: int) -> Iterator[Record]:
    """Answered requests in random order, with at most `max_tokens` tokens in all, prompts included."""
    rng, left = random.Random(1), max_tokens  # noqa: S311 - a choice of requests, not a secret
    whole = [r for r in records if r.tokens and not r.failed]
    for record in rng.sample(whole, len(whole)):
        left -= len(record.prompt) + len(record.tokens)
        if left < 0:
            return
        yield record
