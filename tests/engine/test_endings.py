"""Sequences that end outside of a call: they end once, in all parts of the engine, and never while a call has them."""

from __future__ import annotations

import pytest

from decoding import FakeBackend, admission_of
from gruve.engine.endings import Endings
from gruve.engine.intake import Intake
from gruve.engine.scheduler import Scheduler
from gruve.engine.sequence import FinishReason
from gruve.engine.slots import Slots
from gruve.engine.update import Updater


class Bed:
    """The parts of an engine without threads: `count` sequences, of which two have slots."""

    def __init__(self, count=3, **admission) -> None:
        self.backend, self.scheduler = FakeBackend(slots=2), Scheduler(2, 64)
        self.intake = Intake(2, 1_024, lambda: 0.0)
        self.slots = Slots(self.backend, end_id=None)
        self.endings = Endings(self.scheduler, self.intake, Updater(self.slots, self.intake))
        for _ in range(count):
            self.intake.admit(admission_of(**admission), None, readmitted=False)
        self.sequences = self.intake.sequences
        for sequence in self.sequences:
            self.scheduler.add(sequence)
            self.endings.watch(sequence)
        for sequence in self.scheduler.admit():
            self.slots.fill(sequence)

    def left(self):
        waiting = [id_ for queue in self.scheduler._tenants.values() for id_ in queue.waiting]
        return sorted(self.scheduler.running), waiting, sorted(self.backend.rows)


@pytest.mark.parametrize("which", [0, 2])
def test_a_running_or_waiting_sequence_ends_in_scheduler_backend_and_intake(which):
    bed = Bed()
    sequence = bed.sequences[which]
    (progress,) = bed.endings.end(sequence.id, FinishReason.CANCELLED, 7.0)
    assert (progress.finish_reason, progress.sequence_id, sequence.ended) == (FinishReason.CANCELLED, which + 1, True)
    assert sequence.id not in bed.intake
    assert bed.left() == (([2], [3], [1]) if which == 0 else ([1, 2], [], [0, 1]))
    assert bed.endings.end(sequence.id, FinishReason.CANCELLED, 8.0) == []


def test_a_sequence_in_a_call_is_only_marked():
    bed = Bed()
    (row, *_) = bed.scheduler.pick(0.0)
    assert bed.endings.end(row.id, FinishReason.DEADLINE, 0.0) == []
    assert (row.finish_requested, row.ended, row.id in bed.intake) == (FinishReason.DEADLINE, False, True)


def test_overdue_sequences_end_once_and_the_next_deadline_is_of_one_that_has_not_ended():
    bed = Bed(deadline_s=5.0)
    assert (bed.endings.end_overdue(4.9), bed.endings.next_deadline_s()) == ([], 5.0)
    bed.endings.end(1, FinishReason.CANCELLED, 4.9)
    assert [p.sequence_id for p in bed.endings.end_overdue(5.0)] == [2, 3]
    assert (bed.endings.end_overdue(6.0), bed.endings.next_deadline_s()) == ([], None)


def test_the_rows_of_a_call_that_raised_fail_once_and_free_their_slots():
    bed = Bed()
    rows = bed.scheduler.pick(0.0)
    progress = bed.endings.fail(rows, "incident")
    assert [(p.sequence_id, p.incident, p.ended) for p in progress] == [(1, "incident", True), (2, "incident", True)]
    assert (bed.left(), bed.scheduler.in_flight) == (([], [3], []), 0)
    assert [sequence.id for sequence in bed.scheduler.admit()] == [3]


def test_a_sequence_that_could_not_be_put_into_its_slot_leaves_the_slot_free():
    bed = Bed()
    (progress,) = bed.endings.fail(bed.sequences[:1], "incident")
    assert (progress.incident, bed.left()) == ("incident", ([2], [3], [1]))
    assert [sequence.id for sequence in bed.scheduler.admit()] == [3]
    assert 1 not in [row.id for row in bed.scheduler.pick(0.0)]


def test_a_failed_row_that_another_call_has_keeps_its_slot_until_that_call_returns():
    bed = Bed()
    rows = bed.scheduler.pick(0.0)
    bed.scheduler.start_call(rows)  # the second call
    assert len(bed.endings.fail(rows, "incident")) == 2
    assert (sorted(bed.scheduler.running), bed.scheduler.admit()) == ([1, 2], [])
    assert bed.endings.fail(rows, "incident") == []
    assert [sequence.id for sequence in bed.scheduler.admit()] == [3]


def test_all_sequences_end_or_fail_running_and_waiting():
    ended = Bed().endings.end_all(FinishReason.HANDED_OVER, 1.0)
    assert [p.finish_reason for p in ended] == [FinishReason.HANDED_OVER] * 3
    assert [p.incident for p in Bed().endings.fail_all("incident")] == ["incident"] * 3
