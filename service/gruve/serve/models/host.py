"""A model host: one loaded model with its backend, its engine and the listeners of its sequences.

A host brings what the engine's threads deliver into the event loop, with at most one wake-up for each call of the
backend. With many streams the engine delivers to each less often: a message costs as much as decoding several tokens,
so fewer and larger messages leave more of the machine to the model.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Protocol

from gruve.decode import Backend
from gruve.engine.engine import Engine, EngineConfig
from gruve.engine.sequence import Admission, CallReport, Progress
from gruve.errors import GruveError
from gruve.model.repository import Model
from gruve.model.versions import Version
from gruve.serve.calls.status import internal_error
from gruve.serve.metrics import ModelMetrics

MESSAGES_PER_S = 1_000
"""The target for all streams of a model together. Beyond it gRPC takes more of the machine than the model."""
LONGEST_GAP_S = 0.25


class Listener(Protocol):
    """Receives the progress of one sequence, in the event loop."""

    def take(self, progress: Progress) -> None:
        """Called with each progress; the last one has a finish reason or an incident."""

    def fail(self, error: GruveError) -> None:
        """Called once if `take` has raised; nothing is called after it."""


class ModelHost:
    """One loaded model."""

    def __init__(
        self,
        model: Model,
        version: Version,
        backend: Backend,
        config: EngineConfig,
        metrics: ModelMetrics,
        loop: asyncio.AbstractEventLoop,
        on_failure: Callable[[ModelHost], None],
    ) -> None:
        """`on_failure` is called in the loop when the engine has failed for good. `close` ends what this begins."""
        self.model = model
        self.version = version
        self.backend = backend
        self.numerics_id = backend.numerics_id
        """The id of everything that can change a bit of the model's results on this backend."""
        self.load_time_s = time.time()
        self.users = 0
        """How many calls use the host; see `ModelHosts.use`. It is closed only while there are none."""
        self.idle_since_s = 0.0
        """The event loop's time since which there are none."""
        self.memory_bytes = 0
        """What it takes of the limit on the memory of models; 0 without one."""
        self.failed = False
        """Whether the engine has failed for good."""
        self.engine = Engine(
            backend,
            self._deliver,
            config,
            end_id=model.tokenizer.end_id,
            on_failure=self._report_failure,
        )
        self.metrics = metrics
        metrics.watch(self.engine)
        self._loop = loop
        self._on_failure = on_failure
        self._listeners: dict[int, Listener] = {}
        self._calls: collections.deque[CallReport] = collections.deque()
        """Reports that the engine has delivered and the loop has not processed."""
        self._woken = False
        """Whether the loop was woken to process them."""

    def admit(
        self,
        admission: Admission,
        listener: Listener,
        credit: int | None = None,
        *,
        readmitted: bool = False,
        preempted: bool = False,
    ) -> int:
        """Gives a sequence to the engine and its progress to `listener`. Raises what `Engine.admit` raises."""
        sequence_id = self.engine.admit(admission, credit, readmitted=readmitted, preempted=preempted)
        self._listeners[sequence_id] = listener
        self.engine.message_gap_s = self.message_gap_s()
        return sequence_id

    def message_gap_s(self) -> float:
        """How long a stream waits between two messages, so that all of them send `MESSAGES_PER_S` at most."""
        streams = len(self._listeners)
        return 0.0 if streams < 2 else min(LONGEST_GAP_S, streams / MESSAGES_PER_S)

    def _deliver(self, call: CallReport) -> None:
        """Queues a report for the loop, and wakes it unless it was woken already. Runs on the engine's threads."""
        self._calls.append(call)
        if call.progress and not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._dispatch)

    async def close(self) -> None:
        """Ends the engine's threads, hands over the sequences that are left, and frees the model's memory."""
        await asyncio.to_thread(self.engine.close)
        self.metrics.forget(self.engine)
        self.backend.close()
        # The engine and its callbacks refer to each other, so the host itself may stay until a garbage collection.
        self.model = dataclasses.replace(self.model, weights={})

    def _report_failure(self) -> None:
        """Brings the failure of the engine into the loop. Runs on the engine's threads."""
        self._loop.call_soon_threadsafe(self._fail)

    def _fail(self) -> None:
        self.failed = True
        self._on_failure(self)

    def _dispatch(self) -> None:
        self._woken = False  # first, because a report that arrives during the loop below needs another wake-up
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
        except Exception as error:  # noqa: BLE001 - one stream's error must not stop the others
            listeners.pop(progress.sequence_id, None)
            self.engine.cancel(progress.sequence_id)
            listener.fail(internal_error(error, model=self.model.name))
