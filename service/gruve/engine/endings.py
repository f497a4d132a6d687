"""Ends sequences that no call ends: cancelled, overdue, handed over, failed. Knows no thread and no clock.

Every method returns the last progress of what it ended, for the loop to deliver.
"""

from __future__ import annotations

from gruve.engine.deadlines import Deadlines
from gruve.engine.failures import failed_progress
from gruve.engine.intake import Intake
from gruve.engine.scheduler import Scheduler
from gruve.engine.sequence import FinishReason, Progress, Sequence
from gruve.engine.update import Updater


class Endings:
    """Ends sequences in the scheduler, the backend and the intake alike."""

    def __init__(self, scheduler: Scheduler, intake: Intake, updater: Updater) -> None:
        self._scheduler = scheduler
        self._intake = intake
        self._updater = updater
        self._deadlines: Deadlines[int] = Deadlines(intake)

    def watch(self, sequence: Sequence) -> None:
        """Notes the sequence's deadline, if it has one."""
        if sequence.admission.deadline_s is not None:
            self._deadlines.add(sequence.admission.deadline_s, sequence.id)

    def next_deadline_s(self) -> float | None:
        """The earliest deadline of a sequence that has not ended, or None."""
        return self._deadlines.next_s()

    def end(self, sequence_id: int, reason: FinishReason, now_s: float) -> list[Progress]:
        """Ends one sequence, unless it has ended; one in a call ends when the call returns."""
        sequence = self._intake.find(sequence_id)
        if sequence is None:
            return []
        if sequence.in_flight:
            if reason is not FinishReason.PREEMPTED or sequence.finish_requested is None:
                sequence.finish_requested = reason  # a preempted one is admitted again, as if nothing else were asked
            return []
        progress = self._updater.finish(sequence, reason, now_s)
        self._scheduler.remove(sequence)
        return [progress]

    def end_overdue(self, now_s: float) -> list[Progress]:
        """Ends the sequences whose deadline has passed."""
        overdue = self._deadlines.pop_overdue(now_s)
        return [p for sequence_id in overdue for p in self.end(sequence_id, FinishReason.DEADLINE, now_s)]

    def end_all(self, reason: FinishReason, now_s: float) -> list[Progress]:
        """Ends every sequence; no call is in flight."""
        return [p for sequence in self._intake.sequences for p in self.end(sequence.id, reason, now_s)]

    def fail(self, rows: list[Sequence], incident: str) -> list[Progress]:
        """Ends the rows of a call that raised, or rows that could not be put into their slots."""
        failed = [sequence for sequence in rows if not sequence.ended]
        progress = [self._updater.fail(sequence, incident) for sequence in failed]
        self._scheduler.finish_call([sequence for sequence in rows if sequence.in_flight])
        for sequence in failed:
            if not sequence.in_flight:
                self._scheduler.remove(sequence)
        return progress

    def fail_all(self, incident: str) -> list[Progress]:
        """Ends every sequence after a failure that no row caused. The engine takes no others from then on."""
        return [failed_progress(sequence, incident) for sequence in self._intake.fail(incident)]
