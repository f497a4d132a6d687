"""What the server hosts: each model with its backend and engine, and the open streams that its blocks go to.

Brings what an engine's threads deliver into the event loop, with no more wake-ups than calls. Among many streams the
engine tells of each a little less often: a message costs as much as the decoding of some tokens, so fewer and larger
ones leave more of the machine to the model.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable
from typing import Protocol

from gruve.decode import Backend
from gruve.engine.engine import Engine, EngineConfig
from gruve.engine.sequence import Admission, CallReport, Progress
from gruve.errors import GruveError, ModelBroken, ModelUnknown
from gruve.model.repository import Broken, Model
from gruve.serve.metrics import Metrics, ModelMetrics
from gruve.serve.status import internal_error

MESSAGES_PER_S = 1_000
"""Of all streams of a model together: beyond, gRPC takes more of the machine than it leaves to the model."""
LONGEST_GAP_S = 0.25


class Listener(Protocol):
    """Whoever admitted a sequence and wants to hear of it."""

    def take(self, progress: Progress) -> None:
        """Called in the event loop for every call that the sequence took part in; the last has a finish reason."""

    def fail(self, error: GruveError) -> None:
        """Called instead, and for the last time, after `take` has raised."""


class ModelHost:
    """One serving model."""

    def __init__(
        self,
        model: Model,
        backend: Backend,
        config: EngineConfig,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        on_broken: Callable[[str], None],
    ) -> None:
        """`on_broken` is called in the loop with the model's name when its engine can take nothing more."""
        self.model = model
        self.backend = backend
        self.load_time_s = time.time()
        self.engine = Engine(
            backend,
            self._deliver,
            config,
            end_id=model.tokenizer.end_id,
            on_failure=self._report_broken,
        )
        self.metrics = ModelMetrics(metrics, model.name)
        self.metrics.watch(self.engine, model.digest)
        self._loop = loop
        self._on_broken = on_broken
        self._listeners: dict[int, Listener] = {}
        self._calls: collections.deque[CallReport] = collections.deque()
        """What the engine has delivered and the loop has not seen,"""
        self._woken = False
        """and whether the loop is going to look."""

    @property
    def numerics_id(self) -> str:
        """The id of everything that can change a bit of the model's results on this backend."""
        return self.backend.numerics_id

    def admit(
        self, admission: Admission, listener: Listener, credit: int | None = None, *, readmitted: bool = False
    ) -> int:
        """Gives a sequence to the engine; `listener` hears of it until it ends. Raises what `Engine.admit` raises."""
        sequence_id = self.engine.admit(admission, credit, readmitted=readmitted)
        self._listeners[sequence_id] = listener
        self.engine.message_gap_s = self.message_gap_s()
        return sequence_id

    def message_gap_s(self) -> float:
        """How long a stream waits between two messages, so that all of them write `MESSAGES_PER_S` together at most."""
        streams = len(self._listeners)
        return 0.0 if streams < 2 else min(LONGEST_GAP_S, streams / MESSAGES_PER_S)

    def _deliver(self, call: CallReport) -> None:
        """On the engine's thread: one wake-up of the loop for everything that it has not looked at yet."""
        self._calls.append(call)
        if call.progress and not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._dispatch)

    def _report_broken(self) -> None:
        self._loop.call_soon_threadsafe(self._on_broken, self.model.name)

    def _dispatch(self) -> None:
        self._woken = False  # first: what is delivered from now on may come too late to be seen below
        while self._calls:
            call = self._calls.popleft()
            self.metrics.observe_call(call)
            for progress in call.progress:
                self._notify(progress)

    def _notify(self, progress: Progress) -> None:
        listeners, ended = self._listeners, progress.ended
        listener = listeners.pop(progress.sequence_id, None) if ended else listeners.get(progress.sequence_id)
        if ended:
            self.engine.message_gap_s = self.message_gap_s()
        if listener is None:
            return
        try:
            listener.take(progress)
        except Exception as error:  # noqa: BLE001 - what one stream cannot take must not keep it from the others
            listeners.pop(progress.sequence_id, None)
            self.engine.cancel(progress.sequence_id)
            listener.fail(internal_error(error, model=self.model.name))


class ModelHosts:
    """The models of the repository by name, serving and broken."""

    def __init__(self, entries: dict[str, ModelHost | Broken]) -> None:
        self.entries = entries

    @property
    def serving(self) -> list[ModelHost]:
        """Those that serve, in the order of their names."""
        return [entry for entry in self.entries.values() if isinstance(entry, ModelHost)]

    def entry(self, name: str) -> ModelHost | Broken:
        """The entry of that name; raises `ModelUnknown`."""
        entry = self.entries.get(name)
        if entry is None:
            known = ", ".join(host.model.name for host in self.serving)
            raise ModelUnknown(f"no model is called {name[:80]!r}; serving are: {known}")
        return entry

    def get(self, name: str) -> ModelHost:
        """The serving model of that name; raises `ModelUnknown` or, with the reason, `ModelBroken`."""
        entry = self.entry(name)
        if isinstance(entry, Broken):
            raise ModelBroken(f"model {name!r} is not serving: {entry.why}", state_reason=entry.why)
        return entry
