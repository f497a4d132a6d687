"""Prometheus metrics on their own port. They are updated for each backend call or message, never for each token."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from gruve import __version__
from gruve.decode import Backend
from gruve.engine.engine import Engine
from gruve.engine.sequence import CallReport, FinishReason
from gruve.serve.scraped_metrics import LoadedModels, ModelCollector, PersistenceState, SessionCollector
from gruve.sessions.persistence import StoreObserver
from gruve.sessions.table import SessionTable

SHORT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STEP_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
WATCHED_CODES = ("OK", "INTERNAL", "RESOURCE_EXHAUSTED")
"""The statuses whose series begin at 0. For Prometheus a series that appears with 1 has not increased, so an alert on
the first fault of a method would not fire."""
FAILED = "failed"
REASONS = (*(reason.value for reason in FinishReason), FAILED)
UNUSED_S = 900.0
"""How long the series of a model stay after its last version was unloaded: through several scrapes, and through the
ranges of the rules. A server of a thousand models otherwise has a hundred lines in each scrape for all that it ever
loaded. When the model is loaded again, its counters begin at 0, as after a restart."""
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        # It adds a second series to each metric.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        prometheus_client.PlatformCollector(registry)
        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.GCCollector(registry)
        model = ("model",)
        self.running = Gauge("gruve_requests_running", "Sequences that hold a slot.", model, registry=registry)
        self.waiting = Gauge("gruve_requests_waiting", "Sequences that wait for a slot.", model, registry=registry)
        self.requests = Counter(
            "gruve_requests", "Streams that ended, by reason.", ("model", "finish_reason"), registry=registry
        )
        self.prompt_tokens = Counter("gruve_prompt_tokens", "Prompt tokens accepted.", model, registry=registry)
        self.tokens = Counter("gruve_generation_tokens", "Tokens generated.", model, registry=registry)
        self.first_token = Histogram(
            "gruve_time_to_first_token_seconds",
            "Time from the arrival of a request to its first message with tokens.",
            model,
            unit="seconds",
            registry=registry,
            buckets=SHORT_S,
        )
        self.gap = Histogram(
            "gruve_inter_message_seconds",
            "Time between two messages with tokens.",
            model,
            unit="seconds",
            registry=registry,
            buckets=SHORT_S,
        )
        self.per_message = Histogram(
            "gruve_tokens_per_message", "Tokens in a message.", model, registry=registry, buckets=COUNTS
        )
        self.queue = Histogram(
            "gruve_queue_seconds",
            "Time that a sequence waited for a slot.",
            model,
            unit="seconds",
            registry=registry,
            buckets=SHORT_S,
        )
        self.step = Histogram(
            "gruve_step_seconds", "Time of one decode step.", model, unit="seconds", registry=registry, buckets=STEP_S
        )
        self.preemptions = Counter(
            "gruve_preemptions",
            "Sequences that gave their slot to another tenant's and waited for one again.",
            model,
            registry=registry,
        )
        self.rows = Histogram(
            "gruve_batch_rows", "Sequences in a call of the decoder.", model, registry=registry, buckets=COUNTS
        )
        self.backend = Gauge(
            "gruve_backend_info",
            "1 for the backend that decodes the newest version of a model, while that is loaded.",
            ("model", "backend", "numerics_id", "digest"),
            registry=registry,
        )
        self._models: dict[str, ModelMetrics] = {}
        self.store = StoreMetrics(registry)
        calls = ("grpc_type", "grpc_service", "grpc_method")
        self._started = Counter("grpc_server_started", "RPCs started.", calls, registry=registry)
        self._handled = Counter("grpc_server_handled", "RPCs ended.", (*calls, "grpc_code"), registry=registry)
        self._received = Counter("grpc_server_msg_received", "Messages received.", calls, registry=registry)
        self._sent = Counter("grpc_server_msg_sent", "Messages sent.", calls, registry=registry)
        self._handling = Histogram(
            "grpc_server_handling_seconds",
            "Duration of RPCs.",
            calls,
            unit="seconds",
            registry=registry,
            buckets=SHORT_S,
        )
        Info("gruve_build", "The server's version.", registry=registry).info({"version": __version__})

    def model(self, name: str) -> ModelMetrics:
        """The series of one model of the repository."""
        if name not in self._models:
            self._models[name] = ModelMetrics(self, name)
        return self._models[name]

    def _remove_model(self, name: str) -> None:
        """Removes the series of a model."""
        del self._models[name]
        queues = self.running, self.waiting, self.queue, self.preemptions
        tokens = self.prompt_tokens, self.tokens, self.first_token, self.gap, self.per_message
        for metric in (*queues, *tokens, self.step, self.rows):
            metric.remove(name)
        for reason in REASONS:
            self.requests.remove(name, reason)

    def watch_sessions(self, sessions: SessionTable, persistence: PersistenceState) -> None:
        """Adds the metrics of the session table and the store, which are read at each scrape."""
        self.registry.register(SessionCollector(sessions, persistence))

    def watch_certificate(self, expires_s: Callable[[], float]) -> None:
        """Adds the metric of the server's certificate, whose Unix time of expiry is read at each scrape."""
        Gauge(
            "gruve_certificate_expiry_timestamp_seconds",
            "When the server's certificate, or an intermediate one, expires, in Unix time.",
            unit="seconds",
            registry=self.registry,
        ).set_function(expires_s)

    def watch_models(self, models: LoadedModels) -> None:
        """Adds the metrics of loading and unloading, which are read at each scrape."""
        self.registry.register(ModelCollector(models))

    def rpc(self, kind: str, service: str, method: str) -> RpcMetrics:
        """The series of one method; `kind` is its `grpc_type` label."""
        labels = (kind, service, method)
        for code in WATCHED_CODES:
            self._handled.labels(*labels, code)
        return RpcMetrics(
            self._started.labels(*labels),
            self._received.labels(*labels),
            self._sent.labels(*labels),
            self._handling.labels(*labels),
            functools.cache(lambda code: self._handled.labels(*labels, code)),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class RpcMetrics:
    """The series of one method, looked up once instead of for each call."""

    started: Counter
    received: Counter
    sent: Counter
    handling: Histogram
    handled: Callable[[str], Counter]
    """The counter of a status code, by its name."""

    def observe_end(self, code: str, received: int, sent: int, seconds: float) -> None:
        """Counts a call that has ended, with its messages."""
        self.handled(code).inc()
        self.received.inc(received)
        self.sent.inc(sent)
        self.handling.observe(seconds)


class StoreMetrics:
    """The calls of the session store."""

    def __init__(self, registry: CollectorRegistry) -> None:
        operation = ("operation",)
        self.seconds = Histogram(
            "gruve_store_seconds",
            "Duration of calls of the session store.",
            operation,
            unit="seconds",
            registry=registry,
            buckets=SHORT_S,
        )
        self.errors = Counter(
            "gruve_store_errors", "Calls in which the session store failed.", operation, registry=registry
        )

    def observer(self) -> StoreObserver:
        """The callbacks through which persistence reports each call of the store."""
        return StoreObserver(
            on_call=lambda operation, seconds: self.seconds.labels(operation).observe(seconds),
            on_error=lambda operation: self.errors.labels(operation).inc(),
        )


class ModelMetrics:
    """The series of one model, all versions together, looked up once instead of for each message.

    The label is the model's name in the repository, never what a client has sent.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._engines: frozenset[Engine] = frozenset()
        """Those of the versions that are loaded. Replaced, never changed: scrapes read it on another thread."""
        self._backend: tuple[str, ...] | None = None
        """The labels of the backend that is shown."""
        self._removal: asyncio.TimerHandle | None = None
        metrics.running.labels(model).set_function(lambda: sum(engine.running for engine in self._engines))
        metrics.waiting.labels(model).set_function(lambda: sum(engine.waiting for engine in self._engines))
        self._prompt_tokens = metrics.prompt_tokens.labels(model)
        self._tokens = metrics.tokens.labels(model)
        self._first_token = metrics.first_token.labels(model)
        self._gap = metrics.gap.labels(model)
        self._per_message = metrics.per_message.labels(model)
        self._queue = metrics.queue.labels(model)
        self._step = metrics.step.labels(model)
        self._rows = metrics.rows.labels(model)
        self.preemptions = metrics.preemptions.labels(model)

    def watch(self, engine: Engine) -> None:
        """Reports the queues of an engine at each scrape."""
        self._engines |= {engine}
        self._stay()

    def forget(self, engine: Engine) -> None:
        """Reports an engine no longer, because it was closed, and the model no longer after a time without any."""
        self._engines -= {engine}
        self._stay()
        if not self._engines:
            remove = self._metrics._remove_model
            self._removal = asyncio.get_running_loop().call_later(UNUSED_S, remove, self._model)

    def _stay(self) -> None:
        if self._removal is not None:
            self._removal.cancel()
            self._removal = None

    def show_backend(self, backend: Backend | None, digest: str) -> None:
        """Shows the backend of the newest version in place of what was shown; None if that is not loaded."""
        labels = None
        if backend is not None:
            labels = (self._model, backend.name, backend.numerics_id, digest[:16])
        if labels == self._backend:
            return
        if self._backend is not None:
            self._metrics.backend.remove(*self._backend)
        if labels is not None:
            self._metrics.backend.labels(*labels).set(1)
        self._backend = labels

    def observe_call(self, call: CallReport) -> None:
        """Counts one call of the backend."""
        if call.rows:
            self._rows.observe(call.rows)
            self._step.observe(call.seconds / call.steps)
            self._tokens.inc(call.generated)

    def observe_begin(self, prompt_tokens: int) -> None:
        """Counts an accepted generation."""
        self._prompt_tokens.inc(prompt_tokens)

    def observe_message(
        self, tokens: int, since_arrival_s: float, since_last_s: float | None, exemplar: dict[str, str] | None = None
    ) -> None:
        """Counts a message with tokens; `since_last_s` is None for the first. `exemplar` names the call's trace."""
        self._per_message.observe(tokens)
        if since_last_s is None:
            self._first_token.observe(since_arrival_s, exemplar)
        else:
            self._gap.observe(since_last_s)

    def observe_end(self, reason: FinishReason | None, queue_s: float | None) -> None:
        """Counts a stream that has ended. `reason` is None if it failed, `queue_s` if it decoded nothing."""
        self._metrics.requests.labels(self._model, reason.value if reason else FAILED).inc()
        if queue_s is not None:
            self._queue.observe(queue_s)
