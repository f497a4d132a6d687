"""The intake: sequences up to the bound, commands in order, and no missed wake-up."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding import PATIENCE_S, admission_of
from gruve.engine.intake import End, Enter, Grant, Intake
from gruve.engine.sequence import FinishReason
from gruve.errors import Draining, EngineFailed, QueueFull


def intake_of(slots=2, max_waiting=3):
    return Intake(slots, max_waiting, lambda: 0.0)


def admit(intake, *, readmitted=False, **fields):
    return intake.admit(admission_of(**fields), None, readmitted=readmitted)


@given(st.lists(st.sampled_from(["admit", "readmit", "end"]), max_size=40), st.integers(1, 3), st.integers(0, 3))
def test_the_bound_holds_for_new_sequences_and_a_place_that_is_free_is_given_again(events, slots, max_waiting):
    intake, alive = intake_of(slots, max_waiting), []
    for event in events:
        if event == "end" and alive:
            intake.remove(intake.find(alive.pop(0)))
        elif event == "admit" and len(alive) >= slots + max_waiting:
            with pytest.raises(QueueFull, match=f"{len(alive)} sequences run or wait; at most {slots} run"):
                admit(intake)
        elif event != "end":
            alive.append(admit(intake, readmitted=event == "readmit"))
        assert [sequence.id for sequence in intake.sequences] == alive
        assert len(intake) == len(alive)


def test_the_sequences_of_each_tenant_are_counted_until_they_end():
    intake = intake_of()
    first, second, other = (intake.find(admit(intake, tenant=tenant)) for tenant in "aab")
    for ended, counts in [(None, [2, 1, 0]), (first, [1, 1, 0]), (other, [1, 0, 0]), (second, [0, 0, 0])]:
        if ended is not None:
            intake.remove(ended)
        assert [intake.of_tenant(tenant) for tenant in "abc"] == counts
    assert not intake._tenants, "a tenant that has nothing takes no memory"


def test_a_sequence_that_gave_up_its_slot_comes_back_even_if_as_many_as_allowed_wait():
    intake = intake_of(slots=1, max_waiting=0)
    admit(intake)
    again = intake.admit(admission_of(), None, readmitted=False, preempted=True)
    assert (again in intake, again + 1 in intake) == (True, False)


def test_threads_that_admit_at_once_do_not_exceed_the_bound_together():
    intake, refused, gate = intake_of(slots=40, max_waiting=10), [], threading.Barrier(8)

    def admit_many():
        gate.wait(PATIENCE_S)
        for _ in range(20):
            try:
                admit(intake)
            except QueueFull:
                refused.append(1)

    threads = [threading.Thread(target=admit_many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(intake), len(refused)) == (50, 110)
    assert len({sequence.id for sequence in intake.sequences}) == 50


def test_commands_are_taken_once_in_the_order_they_were_put():
    intake = intake_of()
    first = admit(intake)
    intake.put(Grant(first, 3))
    intake.put(End(first, FinishReason.CANCELLED))
    commands, is_open = intake.take_commands()
    assert is_open
    assert commands == [Enter(intake.find(first)), Grant(first, 3), End(first, FinishReason.CANCELLED)]
    assert intake.take_commands() == ([], True)


def test_what_was_asked_before_closing_is_still_applied_and_nothing_is_admitted_after_it():
    intake = intake_of()
    admit(intake)
    intake.close()
    with pytest.raises(Draining):
        admit(intake)
    commands, is_open = intake.take_commands()
    assert (len(commands), is_open) == (1, False)


def test_after_a_failure_all_sequences_are_given_back_and_admission_names_the_incident():
    intake = intake_of()
    ids = [admit(intake) for _ in range(3)]
    assert [sequence.id for sequence in intake.fail("incident")] == ids
    assert (len(intake), intake.failed) == (0, True)
    assert (intake.take_commands()[1], intake.of_tenant("")) == (False, 0)
    intake.close()
    with pytest.raises(EngineFailed, match="incident"):
        admit(intake)


@pytest.mark.parametrize(
    "reason", [lambda i: i.put(Grant(1, 1)), lambda i: i.close(), lambda i: i.fail("x"), lambda i: i.wake(), admit]
)
def test_a_worker_that_waits_is_woken_by_every_reason_to_look(reason):
    intake, looked, woken = intake_of(), threading.Event(), threading.Event()

    def wait():
        intake.wait(None, lambda: looked.set() or False)
        woken.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert looked.wait(PATIENCE_S)
    assert not woken.wait(0.02)
    reason(intake)  # waits for the lock, which the worker releases when it falls asleep
    assert woken.wait(PATIENCE_S)
    thread.join()


def test_a_worker_waits_until_its_time_and_no_longer():
    intake, woken, begun_s = Intake(1, 1, lambda: 100.0), threading.Event(), time.monotonic()

    def wait():
        intake.wait(100.05, lambda: False)
        woken.set()

    threading.Thread(target=wait, daemon=True).start()
    assert woken.wait(PATIENCE_S)
    assert time.monotonic() - begun_s >= 0.05


@pytest.mark.parametrize("until_s", [-1.0, 0.0])
def test_no_worker_waits_for_a_time_that_has_come_or_while_there_is_work(until_s):
    intake = intake_of()
    intake.wait(until_s, lambda: False)
    intake.wait(None, lambda: True)
    intake.put(Grant(1, 1))
    intake.wait(None, lambda: False)


@pytest.mark.parametrize("end", [lambda intake: intake.close(), lambda intake: intake.fail("incident")])
def test_no_worker_waits_once_the_engine_has_closed_or_failed(end):
    intake = intake_of()
    end(intake)
    intake.wait(None, lambda: False)
