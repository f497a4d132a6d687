"""A real server in this process on its own event loop, and helpers that call it over the wire."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from gruve.client import CallFailed
from gruve.client.errors import failure_of
from gruve.decode.choose import DecodeConfig
from gruve.engine.engine import EngineConfig
from gruve.model.repository import save
from gruve.model.tokenizer import END, START, Tokenizer
from gruve.serve.models.host import ModelHost
from gruve.serve.server import ServeConfig, Server
from gruve.sessions.store import Store
from gruve.v1 import generation_pb2 as g
from gruve.v1 import generation_pb2_grpc, model_pb2_grpc, session_pb2, session_pb2_grpc
from nets import CELL_NAMES, CELLS, config_of, tokenizer_of, weights_of

TINY = Path(__file__).parents[2] / "models" / "tiny"
ABC_TOKENS = ("L:1/8\n", "M:4/4\n", "K:Cmaj\n", "| ", "|]\n", "|: ", *"ABCDEFGz", "c'", "2", "3/2", "(3")
HELD = 0.01
"""The tokens per second of a stream that must not advance after its first token."""
PATIENCE_S = 60.0
"""How long a test waits on a busy machine before it gives up."""


class Running:
    """A running server, with a channel to it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: ServeConfig,
        clock: Callable[[], float],
        store: Store | None = None,
    ) -> None:
        self._loop = loop
        self._closing: Future[None] | None = None
        self.server = Server(config, clock=clock, store=store)
        try:
            self.serving = self.run(self.server.start())
        except BaseException:
            self.run(self.server.__aexit__())
            raise
        self.address = f"127.0.0.1:{self.serving.port}"
        self.channel = self.connect()
        self.generation = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(self.channel)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    def connect(self) -> grpc.Channel:
        """Opens another connection."""
        return grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def host(self, model: str) -> ModelHost:
        """The host of a model's newest version, which must be loaded."""
        host = self.server.models.host(*self.server.models.find(model))
        assert host is not None
        return host

    def generate(self, timeout: float | None = PATIENCE_S, **fields: Any) -> Any:
        """Opens a stream, of the model `tiny` if no other is named."""
        if not {"model", "session_id", "new_session"} & set(fields):
            fields["model"] = "tiny"
        return self.generation.Generate(g.GenerateRequest(**fields), timeout=timeout)

    def read(self, **fields: Any) -> Read:
        """Reads a whole stream."""
        return read(self.generate(**fields))

    def create(self, model: str = "tiny", **fields: Any) -> str:
        """Creates a session and returns its id."""
        new = g.NewSession(model=model, **fields)
        return self.sessions.CreateSession(session_pb2.CreateSessionRequest(session=new)).session.id

    def session(self, session_id: str) -> session_pb2.Session:
        return self.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session_id, page_size=0)).session

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """What `/metrics` says: name -> labels -> value."""
        return metrics_at(self.serving.metrics_port)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics().get(name, {}).get(tuple(sorted(labels.items())), 0.0)

    def handled(self, method: str, code: str) -> float:
        """The number of calls of a method that have ended with a status."""
        counted = self.metrics().get("grpc_server_handled_total", {}).items()
        return sum(value for labels, value in counted if {("grpc_method", method), ("grpc_code", code)} <= set(labels))

    def close(self) -> Future[None]:
        """Begins to close the server. Further calls do nothing."""
        if self._closing is None:
            self._closing = asyncio.run_coroutine_threadsafe(self.server.__aexit__(), self._loop)
        return self._closing

    def stop(self) -> Future[None]:
        """Begins to close the server, and has nothing more to say to it."""
        self.channel.close()
        return self.close()


def metrics_at(port: int | None) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """What `/metrics` of a port says: name -> labels -> value."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S).read().decode()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


@dataclasses.dataclass(frozen=True)
class Read:
    """A stream that was read to its end."""

    messages: list[g.GenerateResponse]

    @property
    def tokens(self) -> list[int]:
        return [token for message in self.messages for token in message.token_ids]

    @property
    def text(self) -> str:
        return "".join(message.text for message in self.messages)

    @property
    def logprobs(self) -> list[Any]:
        return [entry for message in self.messages for entry in message.logprobs]

    @property
    def start(self) -> g.GenerationStart:
        return self.messages[0].start

    @property
    def end(self) -> g.GenerationEnd:
        return self.messages[-1].end

    @property
    def reason(self) -> str:
        return g.FinishReason.Name(self.end.finish_reason).removeprefix("FINISH_REASON_")


def read(messages: Iterable[g.GenerateResponse]) -> Read:
    return Read(list(messages))


def first(call: Any, messages: int = 1) -> list[g.GenerateResponse]:
    """Reads `count` messages of a stream that continues."""
    return [next(call) for _ in range(messages)]


def token(call: Any) -> g.GenerateResponse:
    """Returns the next message that has tokens."""
    return next(message for message in call if message.token_ids)


def refusal(call: Callable[[], Any]) -> CallFailed:
    """The error of a call, raised at once or while it streams; fails if there is none."""
    _, failure = broken(call)
    assert failure is not None, "the call was answered"
    return failure


def broken(call: Callable[[], Any]) -> tuple[list[Any], CallFailed | None]:
    """The messages of a call, and the error that ended it, if any."""
    messages: list[Any] = []
    try:
        answer = call()
        messages.extend(answer if isinstance(answer, Iterator) else [answer])
    except grpc.RpcError as error:
        return messages, failure_of(error)
    return messages, None


def until(condition: Callable[[], Any]) -> None:
    """Waits until a condition that another thread makes true."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_s, "what was waited for did not come"
        time.sleep(0.002)


LANES = 64
"""More tokens per second than any machine generates."""


class Gate:
    """Stops a model's backend before each call until the test lets it through."""

    def __init__(self, host: ModelHost) -> None:
        self._arrived = self._let = 0
        self._open = False
        self._permits = threading.Semaphore(0)
        self._decode = host.backend.decode
        host.backend.decode = self._held  # type: ignore[method-assign]

    def let(self, calls: int) -> None:
        """Lets `calls` calls through and returns when the next one waits."""
        self._let += calls
        for _ in range(calls):
            self._permits.release()
        until(lambda: self._arrived > self._let)

    def open(self) -> None:
        """Lets everything through from now on."""
        self._open = True
        self._permits.release(LANES)

    def _held(self, *args: Any, **more: Any) -> Any:
        self._arrived += 1
        if not self._open:
            self._permits.acquire(timeout=PATIENCE_S)
        return self._decode(*args, **more)


def write_models(folder: Path) -> None:
    """A repository with a model of each cell, one with longer tokens, `tiny`, and two broken ones."""
    shutil.copytree(TINY, folder / "tiny")
    for name, cell in zip(CELL_NAMES, CELLS, strict=True):
        config = config_of(cell, V=13, H=16)
        save(folder / name, config, tokenizer_of(13), weights_of(config))
    tokenizer = Tokenizer("abc", (START, END, *ABC_TOKENS), has_end=True)
    config = dataclasses.replace(config_of(CELLS[0], V=tokenizer.size, H=16), default_temperature=0.9)
    save(folder / "abc", config, tokenizer, weights_of(config))
    shutil.copytree(TINY, folder / "truncated")
    weights = folder / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000])
    shutil.copytree(TINY, folder / "unknown-key")
    path = folder / "unknown-key" / "config.json"
    path.write_text(path.read_text().replace('"cell"', '"attention": true, "cell"'))


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One event loop for every server of the tests."""
    torch.set_num_threads(1)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copytree(TINY, folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def server(loop: asyncio.AbstractEventLoop, repository: Path) -> Iterator[Running]:
    """The server for tests that leave nothing behind."""
    yield from shared_server(loop, repository, DecodeConfig("cpu", 128))


@pytest.fixture(scope="session")
def float32_server(loop: asyncio.AbstractEventLoop, repository: Path) -> Iterator[Running]:
    """The same for tests that compare with the equations, from which int8 is further away."""
    yield from shared_server(loop, repository, DecodeConfig("cpu", 128, arithmetic="float32"))


def shared_server(loop: asyncio.AbstractEventLoop, repository: Path, decode: DecodeConfig) -> Iterator[Running]:
    """Starts a server, and closes it after its yield."""
    running = Running(loop, ServeConfig(models=repository, port=0, metrics_port=0, decode=decode), time.time)
    yield running
    running.stop().result(PATIENCE_S)


@pytest.fixture(scope="session")
def stopping() -> Iterator[list[Future[None]]]:
    """Servers that are closed while other tests run, because the thread of `/metrics` takes half a second."""
    futures: list[Future[None]] = []
    yield futures
    for future in futures:
        future.result(PATIENCE_S)


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    """The value of --store for a new SQLite file."""
    return f"sqlite:{tmp_path}/sessions.db"


@pytest.fixture
def start(
    loop: asyncio.AbstractEventLoop, tiny_repository: Path, stopping: list[Future[None]]
) -> Iterator[Callable[..., Running]]:
    """Starts servers for one test, which end with it. They serve `tiny` unless told otherwise."""
    started: list[Running] = []

    def start_one(
        clock: Callable[[], float] = time.time,
        slots: int = 8,
        waiting: int = 64,
        shared: Store | None = None,
        **fields: Any,
    ) -> Running:
        own = {"decode": DecodeConfig("cpu", slots), "engine": EngineConfig(max_waiting=waiting)}
        config = ServeConfig(**{"models": tiny_repository, "port": 0, "metrics_port": 0, **own, **fields})
        started.append(Running(loop, config, clock, shared))
        return started[-1]

    yield start_one
    stopping.extend(running.stop() for running in started)
