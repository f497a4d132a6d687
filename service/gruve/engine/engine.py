"""The engine of one model: what other threads may ask of it, and its life from start to close.

Wires the parts together and forwards to them. `loop.py` has the loop. Knows no session, no text and no message.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from gruve.decode import AsyncBackend, Backend
from gruve.engine.chooser import CallChooser
from gruve.engine.intake import End, Grant, Intake
from gruve.engine.loop import Loop
from gruve.engine.scheduler import Scheduler
from gruve.engine.sequence import Admission, CallReport, FinishReason
from gruve.engine.slot_times import USABLE, SlotTimes, too_late
from gruve.engine.workers import Workers
from gruve.errors import DeadlineTooSoon


@dataclasses.dataclass(frozen=True, slots=True)
class EngineConfig:
    """How one model's engine queues and calls."""

    max_waiting: int = 1_024
    """How many sequences may wait for a slot; one more is refused at once."""
    max_call_ms: float = 10.0
    """How long a call of the backend aims to last at most; joins, leaves and cancels take effect between calls."""
    micro_batch: int | None = None
    """The most rows of a call; None for as many as make it fast."""


class Engine:
    """Decodes admitted sequences on its own worker threads until closed. Any thread may call any method."""

    def __init__(
        self,
        backend: Backend,
        deliver: Callable[[CallReport], None],
        config: EngineConfig | None = None,
        *,
        end_id: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts nothing yet.

        `deliver` gets a report after each call of the backend, on one worker thread at a time; it must not block. The
        progress of one sequence comes in the order of its tokens, not after every call. `end_id` is the token that ends
        a sequence. `on_failure` is called on a worker thread when the loop itself has failed: every sequence has been
        failed then, and `admit` raises `EngineFailed`.
        """
        self.backend = backend
        self.config = config or EngineConfig()
        micro_batch = self.config.micro_batch
        self._on_failure = on_failure
        self._clock = clock
        self._scheduler = Scheduler(backend.slots, micro_batch or backend.max_rows)
        self._intake = Intake(backend.slots, self.config.max_waiting, clock)
        chooser = CallChooser(
            self._scheduler,
            workers=backend.workers,
            worker_rows=micro_batch or backend.saturating_rows,
            max_call_s=self.config.max_call_ms / 1e3,
            pipelined=isinstance(backend, AsyncBackend) and backend.max_in_flight > 1,
        )
        self._loop = Loop(backend, self._intake, chooser, deliver, end_id=end_id, clock=clock)
        self._workers = Workers(
            f"gruve-{backend.name}",
            backend.workers,
            backend.nice,
            self._loop.run,
            on_last=lambda: self._loop.end_all(FinishReason.HANDED_OVER),
            on_failure=self._fail,
        )

    def start(self) -> None:
        """Starts the workers."""
        self._workers.start()

    def close(self) -> None:
        """Refuses new sequences, ends those that are left with HANDED_OVER, and returns when the workers have ended."""
        self._intake.close()
        self._workers.join()

    @property
    def load(self) -> int:
        """How many sequences are admitted and not yet ended, running or waiting."""
        return len(self._intake)

    @property
    def running(self) -> int:
        """How many sequences hold a slot."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """How many sequences wait for a slot."""
        return max(0, self.load - self.running)

    def waiting_of(self, tenant: str) -> int:
        """How many of a tenant's sequences wait for a slot."""
        return max(0, self._intake.of_tenant(tenant) - self._scheduler.running_of(tenant))

    @property
    def slot_times(self) -> SlotTimes:
        """How long sequences have held their slots."""
        return self._loop.updater.slot_times

    @property
    def message_gap_s(self) -> float:
        """The least time between two deliveries of one sequence's generated tokens; 0 delivers after every call.

        Output is delivered regardless if the sequence ends or parks. Above 0, it is also held for as long as the
        sequence's reader has unread output (`delivery.py`).
        """
        return self._loop.updater.message_gap_s

    @message_gap_s.setter
    def message_gap_s(self, seconds: float) -> None:
        self._loop.updater.message_gap_s = seconds

    def admit(
        self,
        admission: Admission,
        credit: int | None = None,
        *,
        readmitted: bool = False,
        preempted: bool = False,
    ) -> int:
        """Queues a sequence and returns its id.

        `credit` is how many tokens may be generated before the first `grant`; None for no bound. A sequence that was
        admitted before and comes back (`readmitted`) waits for a slot like others, but is admitted to a full queue. One
        that was ended with PREEMPTED (`preempted`) also goes before its tenant's other waiting sequences.

        Raises `QueueFull`, `Draining`, for a new sequence `DeadlineTooSoon` (see `slot_times.py`) or, after a failure
        of the loop itself, `EngineFailed`; then nothing is queued.
        """
        if admission.deadline_s is not None and not (readmitted or preempted):
            self._check_deadline(admission, admission.deadline_s)
        return self._intake.admit(admission, credit, readmitted=readmitted, preempted=preempted)

    def cancel(self, sequence_id: int, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends a sequence at the next call, running or waiting. One that has ended is left alone."""
        self._intake.put(End(sequence_id, reason))

    def grant(self, sequence_id: int, tokens: int) -> None:
        """Adds `tokens` to the credit of a sequence that has a bound."""
        self._intake.put(Grant(sequence_id, credit=tokens))

    def acknowledge(self, sequence_id: int, tokens: int) -> None:
        """Adds `tokens` to the window of a sequence that has one: they were delivered, and their memory is free."""
        self._intake.put(Grant(sequence_id, window=tokens))

    def _check_deadline(self, admission: Admission, deadline_s: float) -> None:
        """Raises `DeadlineTooSoon` if the sequence could not be finished from its place in the queue in time."""
        now_s, slot_times = self._clock(), self.slot_times
        slots, holders = self._scheduler.prospect(admission.tenant, admission.weight)
        held_s = [0.0 if holder.started_s is None else now_s - holder.started_s for holder in holders]
        ahead = self.waiting_of(admission.tenant)
        wait_s = slot_times.wait_s(ahead, slots, held_s)
        decoding_s, left_s = slot_times.decoding_s(admission.allowed_tokens), deadline_s - now_s
        if too_late(wait_s, decoding_s, left_s):
            raise DeadlineTooSoon(
                f"the deadline is {left_s:.3f} s away; behind {ahead} waiting requests for {slots} slots this one is "
                f"estimated to wait {wait_s:.3f} s and to decode {decoding_s:.3f} s; it may need {USABLE:.0%} of "
                "the time to its deadline",
                wait_s + decoding_s,
                left_s,
            )

    def _fail(self, incident: str) -> None:
        self._loop.fail_all(incident)
        self._on_failure()
