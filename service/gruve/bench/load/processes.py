"""The measured processes: the real server, a server that streams canned messages, and an engine without a server.

Each runs in a process of its own and reports over a pipe when it is ready. Its CPU time and memory come from the
operating system.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import queue
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np

from gruve.bench.figures import Record
from gruve.bench.load.generator import SPAWN, Workload
from gruve.bench.load.transport import GENERATE
from gruve.bench.machine import process_rss_mb
from gruve.decode import Backend
from gruve.decode.choose import DecodeConfig, choose_backend
from gruve.engine.engine import Engine
from gruve.engine.sequence import Admission, CallReport
from gruve.model.repository import Model, load
from gruve.model.sampling import SamplingParameters
from gruve.serve.server import ServeConfig, Serving, serve
from gruve.sessions.record import START_TOKEN
from gruve.v1 import generation_pb2

START_S = 120.0
END_S = 40.0


class Child:
    """A process with a pipe to it. Its first message says that it is ready."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=target, args=(*arguments, theirs), daemon=False)
        self._process.start()
        theirs.close()
        try:
            ready = self.pipe.recv() if self.pipe.poll(START_S) else None
        except EOFError:
            ready = None
        if ready is None:
            self.close()
            raise ChildProcessError(f"{type(self).__name__} was not ready within {START_S:.0f} s, or ended before")
        self.ready: Any = ready

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    def rss_mb(self) -> float:
        """Resident memory in MB, that of its descendants included."""
        return process_rss_mb(self.pid)

    def close(self) -> None:
        """Asks it to end, then kills it."""
        self._process.terminate()
        self._process.join(END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Server(Child):
    """A server on free ports."""

    def __init__(self, config: ServeConfig, choose: Callable[[Model, DecodeConfig], Backend] | None = None) -> None:
        super().__init__(_run_server, dataclasses.replace(config, port=0, metrics_port=0), choose)
        self.target = f"127.0.0.1:{self.ready}"


class NullServer(Child):
    """Answers Generate at once with the requested number of tokens, a fixed number in each message."""

    def __init__(self, tokens_per_message: int) -> None:
        super().__init__(_run_null_server, tokens_per_message)
        self.target = f"127.0.0.1:{self.ready}"


class BareEngine(Child):
    """An engine without sessions and server: the speed of the same work without delivery."""

    def __init__(self, model: Path, config: ServeConfig) -> None:
        super().__init__(_run_engine, model, config)
        self.backend: str = self.ready

    def rate(self, sessions: int, workload: Workload, warm_s: float, seconds: float) -> Rate:
        """Tokens per second with this many sequences at once, each followed by another of the same kind."""
        self.pipe.send(("rate", (sessions, workload, warm_s, seconds)))
        rate: Rate = self.pipe.recv()
        return rate

    def mismatches(self, records: Sequence[Record]) -> int:
        """The number of tokens that differ from those of the same request in a batch of its own."""
        self.pipe.send(("mismatches", (list(records),)))
        return int(self.pipe.recv())


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """The speed of a bare engine."""

    tokens_per_s: float
    step_ms: float
    """The time in which all sequences advance by one token, prompts included, over any number of calls."""


def _run_server(config: ServeConfig, choose: Callable[[Model, DecodeConfig], Backend] | None, pipe: Connection) -> None:
    async def ready(serving: Serving) -> None:
        pipe.send(serving.port)

    asyncio.run(serve(config, ready, choose))


def _run_null_server(tokens_per_message: int, pipe: Connection) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve_canned(tokens_per_message, pipe))


async def _serve_canned(tokens_per_message: int, pipe: Connection) -> None:
    def canned(count: int) -> bytes:
        message = generation_pb2.GenerateResponse(position=1000, token_ids=[65] * count, text="a" * count)
        return bytes(message.SerializeToString())

    start = generation_pb2.GenerateResponse(
        start=generation_pb2.GenerationStart(session_id="canned")
    ).SerializeToString()
    whole = canned(tokens_per_message)

    async def generate(request: bytes, _: object) -> AsyncIterator[bytes]:
        left = generation_pb2.GenerateRequest.FromString(request).max_tokens
        yield start
        while left > tokens_per_message:
            yield whole
            left -= tokens_per_message
        yield canned(left)

    class Handler(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic only in its stubs
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            if details.method == GENERATE:
                return grpc.unary_stream_rpc_method_handler(generate)
            return grpc.unary_unary_rpc_method_handler(_answer_nothing)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


async def _answer_nothing(request: bytes, _: object) -> bytes:  # noqa: ARG001 - the report does not matter
    return b""


def _run_engine(folder: Path, config: ServeConfig, pipe: Connection) -> None:
    model = load(folder)
    bench = _EngineBench(model, config)
    pipe.send(bench.engine.backend.name)
    with contextlib.suppress(EOFError):
        while True:
            command, arguments = pipe.recv()
            pipe.send(getattr(bench, command)(*arguments))


class _EngineBench:
    """Drives one engine; `listen` is the present receiver of its call reports."""

    def __init__(self, model: Model, config: ServeConfig) -> None:
        backend = choose_backend(model, config.decode)
        self._listen: Callable[[CallReport], None] | None = None
        self.engine = Engine(backend, self._deliver, config.engine, end_id=model.tokenizer.end_id)
        self.engine.start()

    def rate(self, sessions: int, workload: Workload, warm_s: float, seconds: float) -> Rate:
        """See `BareEngine.rate`."""
        load = _Load(self.engine, workload, sessions)
        self._listen = load.hear
        load.begin()
        time.sleep(warm_s + seconds)
        load.end()
        return load.rate(warm_s, seconds)

    def mismatches(self, records: Sequence[Record]) -> int:
        """See `BareEngine.mismatches`."""
        return sum(self._differing(record) for record in records)

    def _differing(self, record: Record) -> int:
        heard: queue.SimpleQueue[CallReport] = queue.SimpleQueue()
        self._listen = heard.put
        self.engine.admit(_admission(record.prompt, record.seed, len(record.tokens)))
        tokens: list[int] = []
        while True:
            (progress,) = heard.get(timeout=START_S).progress
            tokens += progress.tokens[progress.forced :]
            if progress.ended:
                break
        pairs = zip(tokens, record.tokens, strict=False)
        return sum(a != b for a, b in pairs) + abs(len(tokens) - len(record.tokens))

    def _deliver(self, call: CallReport) -> None:
        if self._listen is not None:
            self._listen(call)


class _Load:
    """The closed loop without clients: each sequence that ends is followed by another."""

    def __init__(self, engine: Engine, workload: Workload, sessions: int) -> None:
        self._engine = engine
        self._workload = workload
        self._sessions = sessions
        self._rng = random.Random(sessions)  # noqa: S311 - random prompts, not secrets
        self._calls: collections.deque[tuple[float, int, int]] = collections.deque()
        self._running: set[int] = set()
        self._ending = False
        self._began_s = 0.0

    def begin(self) -> None:
        """Admits the first sequence of every session."""
        self._began_s = time.perf_counter()
        for _ in range(self._sessions):
            self._admit()

    def hear(self, call: CallReport) -> None:
        """Runs on the engine's thread: counts tokens, and replaces sequences that have ended."""
        drawn = sum(len(progress.tokens) - progress.forced for progress in call.progress)
        self._calls.append((time.perf_counter(), drawn, sum(len(progress.tokens) for progress in call.progress)))
        for progress in call.progress:
            if progress.ended:
                self._running.discard(progress.sequence_id)
                if not self._ending:
                    self._admit()

    def end(self) -> None:
        """Cancels all sequences and waits for their end."""
        self._ending = True
        while self._engine.load:
            for sequence_id in list(self._running):
                self._engine.cancel(sequence_id)
            time.sleep(0.01)

    def rate(self, warm_s: float, seconds: float) -> Rate:
        """The reports that arrived after the warm-up."""
        begin = self._began_s + warm_s
        calls = [call for call in self._calls if begin <= call[0] < begin + seconds]
        return Rate(
            tokens_per_s=sum(drawn for _, drawn, _ in calls) / seconds,
            step_ms=1e3 * seconds * self._sessions / max(1, sum(taken for _, _, taken in calls)),
        )

    def _admit(self) -> None:
        work, rng = self._workload, self._rng
        prompt = tuple(rng.randrange(1, work.vocabulary_size) for _ in range(work.prompt_tokens))
        count = rng.randint(work.min_length, work.max_length)
        self._running.add(self._engine.admit(_admission(prompt, rng.getrandbits(64), count)))


def _admission(prompt: Sequence[int], seed: int, max_tokens: int) -> Admission:
    return Admission(
        sampling=SamplingParameters(seed=seed),
        history=np.array([START_TOKEN], dtype=np.int32),
        position=0,
        forced=np.array(prompt, dtype=np.int32),
        max_tokens=max_tokens,
    )
