"""The server: builds models, engines, sessions, servicers and ports, and runs them from start to a drained end."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gruve.certificates import Certificates
from gruve.decode import Backend
from gruve.decode.choose import DecodeConfig, choose_backend
from gruve.engine.engine import EngineConfig
from gruve.errors import ModelUnknown, StoreUnavailable, Unavailable
from gruve.model.repository import Model
from gruve.model.versions import Version, load_version
from gruve.ports import TlsFiles
from gruve.receipt.signing import Sign
from gruve.serve import metrics_server
from gruve.serve.callers.access import Access, AccessConfig
from gruve.serve.callers.exposure import warn_if_unprotected
from gruve.serve.callers.identity import Limits
from gruve.serve.callers.ledger import Ledger
from gruve.serve.calls.access_log import LogCall, TraceCall
from gruve.serve.calls.interceptor import Interceptor
from gruve.serve.endings import Ending, run_until_ending, signals
from gruve.serve.generation_service import GenerationServicer
from gruve.serve.grpc_server import MAX_REQUEST_BYTES, GrpcServer
from gruve.serve.health import SERVER, STORE, Health
from gruve.serve.metrics import Metrics
from gruve.serve.model_service import ModelServicer
from gruve.serve.models.broken import describe_broken, log_broken
from gruve.serve.models.host import ModelHost
from gruve.serve.models.hosts import ModelHosts
from gruve.serve.models.memory import ModelMemory
from gruve.serve.models.served import ServedModel
from gruve.serve.models.watch import ModelWatch
from gruve.serve.session_service import SessionServicer
from gruve.sessions.opening import GenerationOpener
from gruve.sessions.persistence import Persistence
from gruve.sessions.record import Session
from gruve.sessions.store import Store
from gruve.sessions.store.open import open_store
from gruve.sessions.table import SessionsConfig, SessionTable
from gruve.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)

log = logging.getLogger(__name__)
FLUSH_S = 2.0
"""How long the last messages of handed over streams may take to be sent."""
SWITCH_S = 0.0005
SERVICES = (
    generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name,
    session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
    model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)


@dataclasses.dataclass(frozen=True, slots=True)
class ServeConfig:
    """The configuration of a server. By default it is embedded: loopback, sessions in memory, one machine."""

    models: Path = Path("models")
    """The model repository, or the folder of one model."""
    host: str = "127.0.0.1"
    """Where gRPC listens."""
    port: int = 50_051
    """gRPC's port; 0 takes any free one."""
    metrics_host: str = "127.0.0.1"
    """Where `/metrics` listens."""
    metrics_port: int = 9_464
    """The port of `/metrics`; 0 takes any free one."""
    tls: TlsFiles | None = None
    """The certificates of both ports. None serves without TLS."""
    access: AccessConfig = dataclasses.field(default_factory=AccessConfig)
    """What callers are identified by. By default the server does not authenticate."""
    drain_s: float = 30.0
    """How long running streams may continue after SIGTERM before they are handed over."""
    session_key: bytes | None = None
    """Authenticates session ids. None takes the store's key, or without a store a new random one."""
    export_key: bytes | None = None
    """Signs exported sessions. None takes the session key, unless that is random."""
    log_call: LogCall | None = None
    """Writes the access log; None for none. See `gruve.serve.calls.access_log`."""
    trace_call: TraceCall | None = None
    """Traces each call; None for no traces. See `gruve.serve.calls.tracing`."""
    sign_receipt: Sign | None = None
    """Signs the canonical form of a receipt; None leaves receipts unsigned. See `gruve.receipt.signing`."""
    store: str = "memory"
    """The session store; see `gruve.sessions.store.open`."""
    store_synchronous: str = "NORMAL"
    """SQLite's synchronous mode: NORMAL survives a crash of the process, FULL also a power failure."""
    watch_s: float | None = None
    """How often to look for models whose files have changed, which are reloaded; None for never."""
    model_memory_bytes: int | None = None
    """The memory that loaded models may take, on a CPU. Then each is loaded by the first request for it. None loads the
    newest version of every model at the start."""
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    sessions: SessionsConfig = dataclasses.field(default_factory=SessionsConfig)
    total_limits: Limits = dataclasses.field(default_factory=Limits)
    """What all tenants together may use."""
    tenant_limits: Limits = dataclasses.field(default_factory=Limits)
    """What each tenant may use, as far as its key sets no limit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Serving:
    """A server that is ready."""

    port: int
    metrics_port: int
    models: tuple[str, ...]
    broken: tuple[tuple[str, str], ...]


async def serve(
    config: ServeConfig,
    ready: Callable[[Serving], Awaitable[None]],
    choose: Callable[[Model, DecodeConfig], Backend] | None = None,
) -> None:
    """Serves until SIGTERM, SIGHUP or SIGINT, then shuts down in order; awaits `ready` once everything answers.

    Requests are answered while `ready` runs. `choose` replaces `choose_backend`. A signal that comes before cancels the
    start, or `ready`.

    On SIGTERM and SIGHUP, running streams continue for `drain_s`; if sessions are stored, and can continue elsewhere,
    they are handed over at once. SIGINT and a second signal hand them over at once too. Raises `ModelUnknown` if no
    model can be served, `CannotListen` if a port cannot be used, `CredentialsBroken` if a certificate cannot,
    `StoreBroken` or `StoreUnavailable` if the store cannot, and `InvalidField` if `config.store` names none.
    """
    # The engine's threads need the GIL once for each call, and the event loop holds it most of the time. By default it
    # would be released after 5 ms, which is as long as a call.
    sys.setswitchinterval(SWITCH_S)
    # A signal that arrives while the last messages are sent must not end them.
    with signals() as endings:
        async with Server(config, choose=choose) as server:

            async def start() -> None:
                serving = await server.start()
                # Keeps what was loaded out of collections: a full one would stop every stream for 0.15 s.
                gc.collect()
                gc.freeze()
                await ready(serving)

            ending = await run_until_ending(start(), endings)
            await server.drain(ending, endings)


class Server:
    """A server with everything that it runs.

    `clock` gives the Unix time by which sessions expire. `store` replaces the one that `config` names, and `choose`
    replaces `choose_backend`.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        clock: Callable[[], float] = time.time,
        store: Store | None = None,
        choose: Callable[[Model, DecodeConfig], Backend] | None = None,
    ) -> None:
        self.config = config
        self._choose_backend = choose or choose_backend
        self.metrics = Metrics()
        self._certificates: Certificates | None = None
        if config.tls is not None:
            self._certificates = certificates = Certificates(config.tls)
            self.metrics.watch_certificate(lambda: certificates.expires_s)
        access = Access(config.access, clock=clock) if config.access.authenticates else None
        self.interceptor = Interceptor(self.metrics, access, config.log_call, config.trace_call)
        store = store or open_store(config.store, synchronous=config.store_synchronous)
        key = config.session_key or _key_of(store)
        self.export_key = config.export_key or key
        self.table = SessionTable(config.sessions, key=key, clock=clock, can_evict=self._can_evict)
        self.persistence = Persistence(self.table, store, self.metrics.store.observer())
        self.persistence.on_failing(self._report_store)
        self.health = Health()
        memory = None
        if config.model_memory_bytes is not None:
            memory = ModelMemory(config.model_memory_bytes, config.decode)
        self.models = ModelHosts(config.models, self._load_host, self._report_model, memory)
        self._grpc: GrpcServer | None = None
        self._generations: GenerationServicer | None = None
        self._metrics_server: WSGIServer | None = None
        self._watch: ModelWatch | None = None
        if config.watch_s is not None:
            self._watch = ModelWatch(config.models, self.models.reload, config.watch_s)
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._close()

    async def start(self) -> Serving:
        """Loads models, starts engines and listens. With a limit on the memory of models it loads none yet."""
        if self._watch is not None:
            await self._watch.begin()
        await self.models.start()
        broken = tuple((served.name, served.state_reason) for served in self.models.broken)
        log_broken(broken)
        if not self.models.serving:
            raise ModelUnknown(f"no model in {str(self.config.models)!r} can be served: {describe_broken(broken)}")
        if self.persistence.store is not None:
            log.info("sessions are stored", extra={"store": self.persistence.store.name})
        await self.persistence.start()
        self.metrics.watch_sessions(self.table, self.persistence)
        self.metrics.watch_models(self.models.loaded)
        loop = asyncio.get_running_loop()
        self._metrics_server = metrics_server.listen(
            self.config.metrics_host,
            self.config.metrics_port,
            self.metrics.registry,
            lambda: self.health.why_not_serving(loop),
            self._certificates,
        )
        await self._set_health(True)
        warn_if_unprotected(self.config.host, self.config.tls, self.config.access)
        port = await self._listen()  # last: from here on requests are answered
        if self._watch is not None:
            self._watching = asyncio.create_task(self._watch.run())
        names = tuple(served.name for served in self.models.serving)
        return Serving(port, self._metrics_server.server_port, names, broken)

    async def drain(self, ending: Ending, endings: asyncio.Queue[Ending]) -> None:
        """Becomes unready, refuses new requests, and waits for running streams before they are handed over.

        If sessions are stored, streams can continue elsewhere, so it does not wait.
        """
        log.info("draining", extra={"ending": ending, "running": self._sequence_count()})
        self.interceptor.draining = True
        self._stop_watching()
        await self._set_health(False)
        if ending == "drain" and self.persistence.store is None:
            waits = asyncio.create_task(endings.get()), asyncio.create_task(self.interceptor.quiet.wait())
            await asyncio.wait(waits, timeout=self.config.drain_s, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        log.info("handing over", extra={"running": self._sequence_count()})

    async def _close(self) -> None:
        """Shuts down, the engines first: what they hand over has to be sent and stored."""
        self._stop_watching()
        await self.models.close()
        if self._generations is not None:
            self._generations.streams.hand_over()
        if self._grpc is not None:
            await self._grpc.stop(FLUSH_S)
        self.interceptor.write_unread()
        await self.persistence.close()
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.shutdown)
            self._metrics_server.server_close()

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    async def _load_host(self, name: str, version: Version) -> ModelHost:
        """Loads a version into its backend and starts its engine. Raises `ModelBroken`, also if no backend takes it."""
        config = self.config

        def load() -> tuple[Model, Backend]:
            model = load_version(name, version)
            return model, self._choose_backend(model, config.decode)

        model, backend = await asyncio.to_thread(load)
        log.info(
            "model loaded",
            extra={
                "model": name,
                "version": version.number,
                "digest": model.digest[:16],
                "backend": backend.name,
                "why": backend.selection_reason,
                "numerics_id": backend.numerics_id,
            },
        )
        loop, metrics = asyncio.get_running_loop(), self.metrics.model(name)
        host = ModelHost(model, version, backend, config.engine, metrics, loop, self._report_failed)
        host.engine.start()
        return host

    async def _listen(self) -> int:
        """Starts the gRPC server and returns its port."""
        opener = GenerationOpener(self.persistence, self.models)
        ledger = Ledger(self.config.total_limits, self.config.tenant_limits)
        generations = GenerationServicer(self.models, opener, ledger, self.config.sign_receipt)
        sessions = SessionServicer(self.models, self.persistence, ledger, self.export_key, MAX_REQUEST_BYTES)
        models = ModelServicer(self.models)

        def add_services(server: grpc.aio.Server) -> None:
            generation_pb2_grpc.add_GenerationServiceServicer_to_server(generations, server)
            session_pb2_grpc.add_SessionServiceServicer_to_server(sessions, server)
            model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
            health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, server)
            channelz.add_channelz_servicer(server)  # type: ignore[arg-type] # its stubs know the sync server alone
            reflection.enable_server_reflection(
                (
                    *SERVICES,
                    health.SERVICE_NAME,
                    channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
                    reflection.SERVICE_NAME,
                ),
                server,
            )

        grpc_server = GrpcServer(self.config.host, self.config.port, self.interceptor, add_services, self._certificates)
        self._grpc, self._generations = grpc_server, generations
        return await grpc_server.start()

    async def _set_health(self, serving: bool) -> None:
        """Sets the health of the server, of each service and of each model."""
        if self.persistence.store is not None:
            self._report_store(self.persistence.failing)
        for name in (SERVER, *SERVICES, *(served.name for served in self.models.serving)):
            await self.health.set(name, serving)
        for served in self.models.broken:
            await self.health.set(served.name, False)

    def _report_failed(self, host: ModelHost) -> None:
        """Makes a model whose engine has failed unready, and the server too: a reload or a restart helps."""
        self.health.set_soon(host.model.name, False)
        self.health.set_soon(SERVER, False)

    def _report_model(self, served: ServedModel) -> None:
        """Sets the health of a model whose versions have changed, and that of the server."""
        if self._grpc is None or self.interceptor.draining:
            return
        self.health.set_soon(served.name, not served.state_reason)
        self.health.set_soon(SERVER, not self.models.failed)

    def _can_evict(self, session: Session) -> bool:
        """Whether an idle session may leave memory: always without a store, otherwise once the store has it."""
        return self.persistence.store is None or not session.dirty

    def _report_store(self, failing: bool) -> None:
        self.health.set_soon(STORE, not failing)

    def _sequence_count(self) -> int:
        """How many sequences run or wait."""
        return sum(host.engine.load for host in self.models.hosts)


def _key_of(store: Store | None) -> bytes | None:
    """The store's key. If the store fails, it is closed, and the error says which store and why."""
    if store is None:
        return None
    try:
        return store.key()
    except StoreUnavailable as error:
        store.close()
        raise StoreUnavailable(f"{error}: {store.name}: {error.__cause__}") from error
    except Unavailable:
        store.close()
        raise
