"""The worker threads: the last one ends the engine, and a failure is reported once."""

from __future__ import annotations

import threading

from decoding import PATIENCE_S
from gruve.engine.workers import Workers


def workers_of(count, run, **hooks):
    return Workers("test", count, 0, run, **{"on_last": lambda: None, "on_failure": lambda incident: None, **hooks})


def test_the_last_worker_ends_the_engine_after_all_have_returned():
    gate, returned, seen = threading.Barrier(3), [], []

    def run():
        gate.wait(PATIENCE_S)
        returned.append(threading.current_thread().name)

    workers = workers_of(3, run, on_last=lambda: seen.append(len(returned)))
    workers.start()
    workers.join()
    assert (seen, sorted(returned)) == ([3], ["test-0", "test-1", "test-2"])


def test_a_worker_that_raises_reports_its_incident_and_the_engine_is_not_ended_as_if_whole(caplog):
    turns, incidents, ended = iter([True, False]), [], []

    def run():
        if next(turns):
            raise RuntimeError("cause")

    workers = workers_of(2, run, on_last=lambda: ended.append(1), on_failure=incidents.append)
    workers.start()
    workers.join()
    (incident,) = incidents
    assert not ended
    assert incident in caplog.text
    assert "cause" in caplog.text


def test_a_failure_of_the_end_itself_is_reported_as_well(caplog):
    incidents = []
    workers = workers_of(1, lambda: None, on_last=lambda: 1 / 0, on_failure=incidents.append)
    workers.start()
    workers.join()
    assert incidents[0] in caplog.text


def test_workers_that_were_never_started_are_not_waited_for():
    workers_of(2, lambda: None).join()
