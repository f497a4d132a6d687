"""Chooses a worker's next call: its rows, how many steps it takes, and whether it has the whole machine.

A single row gets the whole machine: the backend divides each step among all cores. As soon as there are two, every
worker decodes rows of its own on one core: no core waits for another's part of a step, and while one worker handles
its results, the others decode. Which worker decodes a row changes no bit of it.

Pure: no backend, threads or clock (a time is an argument).
"""

from __future__ import annotations

import dataclasses

from gruve.engine.scheduler import Scheduler
from gruve.engine.sequence import Sequence
from gruve.engine.step_times import MAX_STEPS, StepTimes

FEW_ROWS, FEW_ROWS_CALL_S = 4, 0.002
"""A call with the whole machine and at most this many rows aims to last at most this long: each may be watched."""


@dataclasses.dataclass(frozen=True, slots=True)
class CallPlan:
    """One call of the backend."""

    rows: list[Sequence]
    limits: list[int]
    """How many steps each row may take."""
    steps: int
    exclusive: bool
    """Whether the call has the whole machine, rather than one core beside the calls of other workers."""


class CallChooser:
    """Chooses calls from a scheduler's queues; the workers take turns at it."""

    def __init__(
        self, scheduler: Scheduler, *, workers: int, worker_rows: int, max_call_s: float, pipelined: bool
    ) -> None:
        """`worker_rows` bounds the rows of a call and `max_call_s` is the time it aims to stay within.

        `pipelined` says that the backend takes a call before earlier ones have returned.
        """
        self.scheduler = scheduler
        self._workers = workers
        self._worker_rows = worker_rows
        self._max_call_s = max_call_s
        self._pipelined = pipelined
        self._step_times = StepTimes()

    def share(self) -> tuple[int, bool]:
        """How many rows a worker's next call may take, 0 for none, and whether it has the whole machine."""
        rows = self.scheduler.ready_rows + self.scheduler.in_flight
        if self._workers > 1 and rows > 1:
            return min(-(-rows // self._workers), self._worker_rows), False
        return (0 if self.scheduler.in_flight and not self._pipelined else self._worker_rows), True

    def can_pick(self) -> bool:
        """Whether a worker that is free could start a call or admit a sequence now, paced rows excepted."""
        return self.scheduler.ready() and self.share()[0] > 0

    def pick(self, now_s: float, latest: list[Sequence]) -> tuple[list[Sequence], bool]:
        """Takes the rows of a worker's next call from their queues; also returns whether it has the whole machine.

        `latest` are the rows of the worker's latest call in flight; those that can continue before it returns join.
        """
        max_rows, exclusive = self.share()
        rows = self.scheduler.pick(now_s, max_rows) if max_rows else []
        if latest:
            continuing = [s for s in latest if s.can_continue(MAX_STEPS)][: max_rows - len(rows)]
            self.scheduler.start_call(continuing)
            rows += continuing
        return rows, exclusive

    def plan(self, rows: list[Sequence], *, exclusive: bool) -> CallPlan:
        """Fixes the steps of a call with these rows."""
        limits = [sequence.step_limit() for sequence in rows]
        return CallPlan(rows, limits, min(self._steps(rows, exclusive), max(limits)), exclusive)

    def record(self, plan: CallPlan, seconds: float) -> None:
        """Learns from a call that took `seconds`."""
        self._step_times.record(len(plan.rows), plan.exclusive, plan.steps, seconds)

    def _steps(self, rows: list[Sequence], exclusive: bool) -> int:
        """What fits into `max_call_s`, but no further than to the first tokens that a reader waits for.

        Those are the first two of a row, because the second one keeps its reader busy until the next turn. Among a few
        rows it is the first one alone: a reader may be watching, and the next turn is near.
        """
        max_s, first_tokens = self._max_call_s, 2
        if len(rows) <= FEW_ROWS and exclusive:
            max_s, first_tokens = min(max_s, FEW_ROWS_CALL_S), 1
        fitting = self._step_times.steps_within(len(rows), exclusive, max_s)
        return min(fitting, *[sequence.steps_until(first_tokens) for sequence in rows])
