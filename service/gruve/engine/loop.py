"""The engine's loop: apply commands, admit, pick, decode, update, deliver.

Each worker thread runs it. Workers take turns at everything but decoding. The loop knows the steps and their order; how
a call is chosen (`chooser.py`), made (`calls.py`) and applied (`update.py`), and how a sequence ends otherwise
(`endings.py`), stands in the modules it imports. It knows no session and no message.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from gruve.decode import Backend
from gruve.engine.calls import CallQueue, FinishedCall
from gruve.engine.chooser import CallChooser
from gruve.engine.endings import Endings
from gruve.engine.failures import new_incident
from gruve.engine.intake import End, Enter, Grant, Intake
from gruve.engine.sequence import CallReport, FinishReason, Progress, Sequence
from gruve.engine.slots import Slots
from gruve.engine.update import Updater

log = logging.getLogger(__name__)


class Loop:
    """The loop of one model's engine. Its workers are the only threads that call the backend."""

    def __init__(
        self,
        backend: Backend,
        intake: Intake,
        chooser: CallChooser,
        deliver: Callable[[CallReport], None],
        *,
        end_id: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._intake = intake
        self._chooser = chooser
        self._scheduler = chooser.scheduler
        self._deliver_report = deliver
        self._clock = clock
        self._slots = Slots(backend, end_id)
        self.updater = Updater(self._slots, intake)
        self._endings = Endings(self._scheduler, intake, self.updater)
        self._lock = threading.Lock()
        """Held for everything but decoding. The intake has a lock of its own, which is taken last."""

    def run(self) -> None:
        """Runs the loop on the calling thread until the engine closes or fails; then none of its calls is in flight.

        Raises if something fails that no row caused.
        """
        calls = CallQueue(self._backend)
        while True:
            with self._lock:
                if not self._apply_commands():
                    break
                now_s = self._clock()
                self._deliver(self._endings.end_overdue(now_s))
                self._admit(now_s)
                rows, exclusive = self._pick(now_s, calls)
            if rows:
                self._submit(calls, rows, exclusive)
            elif not calls:
                self._wait()
            if calls and (not rows or calls.full):
                self._decode_and_update(calls)
        while calls:
            self._decode_and_update(calls)

    def end_all(self, reason: FinishReason) -> None:
        """Ends every sequence and delivers its last progress; for when all workers have left `run`."""
        with self._lock:
            self._deliver(self._endings.end_all(reason, self._clock()))

    def fail_all(self, incident: str) -> None:
        """Fails every sequence and ends the loop on all workers."""
        with self._lock:
            progress = self._endings.fail_all(incident)
            try:
                self._deliver(progress)
            except Exception:
                log.exception("the failures of incident %s could not be delivered", incident)

    def _apply_commands(self) -> bool:
        """Applies what other threads have asked for; False when the engine closes."""
        commands, is_open = self._intake.take_commands()
        now_s = self._clock()
        progress: list[Progress] = []
        for command in commands:
            match command:
                case Enter(sequence, first):
                    self._scheduler.add(sequence, first=first)
                    self._endings.watch(sequence)
                case Grant(sequence_id, credit, window):
                    if granted := self._intake.find(sequence_id):
                        self._scheduler.grant(granted, credit, window)
                case End(sequence_id, reason):
                    progress += self._endings.end(sequence_id, reason, now_s)
        self._deliver(progress)
        return is_open

    def _admit(self, now_s: float) -> None:
        """Puts waiting sequences into free slots, and frees slots for tenants that hold too few."""
        for sequence in self._scheduler.preemptable():
            self._deliver(self._endings.end(sequence.id, FinishReason.PREEMPTED, now_s))
        for sequence in self._scheduler.admit():
            sequence.started_s = now_s
            try:
                self._slots.fill(sequence)
            except Exception:
                log.exception("a slot could not be filled: incident %s", incident := new_incident())
                self._deliver(self._endings.fail([sequence], incident))

    def _pick(self, now_s: float, calls: CallQueue) -> tuple[list[Sequence], bool]:
        """The rows of this worker's next call, and whether it has the whole machine; wakes a worker for the rest."""
        rows, exclusive = self._chooser.pick(now_s, calls.latest_rows)
        if rows and self._chooser.can_pick():
            self._intake.wake()
        return rows, exclusive

    def _submit(self, calls: CallQueue, rows: list[Sequence], exclusive: bool) -> None:
        """Starts a call with the rows."""
        plan = self._chooser.plan(rows, exclusive=exclusive)
        try:
            calls.submit(plan)
        except Exception:
            log.exception("decoding %d rows failed: incident %s", len(rows), incident := new_incident())
            self._fail_call(calls, rows, incident)

    def _decode_and_update(self, calls: CallQueue) -> None:
        """Waits for the oldest call, moves its rows on and delivers what is due."""
        rows = calls.oldest_rows
        try:
            call = calls.finish()
        except Exception:
            log.exception("decoding %d rows failed: incident %s", len(rows), incident := new_incident())
            self._fail_call(calls, rows, incident)
            return
        with self._lock:
            if self._intake.failed:  # every sequence has had its last progress
                return
            self._chooser.record(call.plan, call.step_seconds)
            now_s, scheduler = self._clock(), self._scheduler
            tokens, full = int(call.block.steps_taken.sum()), scheduler.is_full
            self.updater.slot_times.record_call(now_s, tokens, scheduler.slots, full=full)
            progress = self.updater.update(rows, call.block, now_s)
            scheduler.finish_call(rows)
            self._deliver(progress, call)

    def _fail_call(self, calls: CallQueue, rows: list[Sequence], incident: str) -> None:
        """Fails the rows of a call that raised; the others continue, unless the backend is lost."""
        with self._lock:
            self._deliver(self._endings.fail(rows, incident))
        calls.check_health()

    def _deliver(self, progress: list[Progress], call: FinishedCall | None = None) -> None:
        """Reports a call, or progress that no call made."""
        running, waiting = len(self._scheduler.running), self._scheduler.waiting
        if call is not None:
            rows, steps = len(call.plan.rows), call.plan.steps
            generated = sum([len(p.tokens) - p.forced for p in progress])
            report = CallReport(tuple(progress), rows, steps, call.seconds, generated, running, waiting)
            self._deliver_report(report)
        elif progress:
            self._deliver_report(CallReport(tuple(progress), 0, 0, 0.0, 0, running, waiting))

    def _wait(self) -> None:
        """Blocks until there is something to do.

        A worker that finds all rows in another's call ignores the time: the other one is back soon and looks at it.
        """
        with self._lock:
            may_call = self._chooser.share()[0] > 0
            times = (self._scheduler.next_wake_s(), self._endings.next_deadline_s()) if may_call else ()
        self._intake.wait(min((t for t in times if t is not None), default=None), self._chooser.can_pick)
