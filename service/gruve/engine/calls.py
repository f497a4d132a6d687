"""The calls of the backend that one worker has in flight. Knows no scheduler and no lock.

An asynchronous backend takes calls before the earlier ones have returned: what the host does with the results of one
then takes none of the backend's time. Any other backend has one call at a time, made when its results are asked for.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable

from gruve.decode import AsyncBackend, Backend, Block
from gruve.engine.chooser import CallPlan
from gruve.engine.sequence import Sequence
from gruve.engine.slots import slot_of


@dataclasses.dataclass(frozen=True, slots=True)
class FinishedCall:
    """A call that has returned."""

    plan: CallPlan
    block: Block
    seconds: float
    """From when the backend was free for it until it returned."""
    step_seconds: float
    """How long its steps took: CPU time where threads compete for cores, because waiting for a core is no decoding."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    plan: CallPlan
    max_steps: list[int]
    """How many steps each row may take in it."""
    began_s: float
    result: Callable[[], Block]


class CallQueue:
    """One worker's calls in flight, oldest first."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._async = backend if isinstance(backend, AsyncBackend) else None
        self._max_calls = self._async.max_in_flight if self._async else 1
        self._calls: collections.deque[_Call] = collections.deque()
        self._free_s = 0.0
        """When the backend had done the last call that returned."""

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def full(self) -> bool:
        """Whether the oldest call must return before another is submitted."""
        return len(self._calls) >= self._max_calls

    @property
    def oldest_rows(self) -> list[Sequence]:
        """The rows of the call that `finish` waits for."""
        return self._calls[0].plan.rows

    @property
    def latest_rows(self) -> list[Sequence]:
        """The rows of the call submitted last; empty if none is in flight."""
        return self._calls[-1].plan.rows if self._calls else []

    def submit(self, plan: CallPlan) -> None:
        """Starts a call. Raises what the backend raises, and then has started nothing."""
        slots, began_s = [slot_of(sequence) for sequence in plan.rows], time.perf_counter()
        if self._async is not None:
            result = self._async.submit(slots, plan.limits, plan.steps)
        else:
            result = functools.partial(self._backend.decode, slots, plan.limits, plan.steps, exclusive=plan.exclusive)
        max_steps = [min(limit, plan.steps) for limit in plan.limits]
        for sequence, steps in zip(plan.rows, max_steps, strict=True):
            sequence.submitted += steps
        self._calls.append(_Call(plan, max_steps, began_s, result))

    def finish(self) -> FinishedCall:
        """Waits for the results of the oldest call and removes it. Raises what the backend raises."""
        call = self._calls.popleft()
        plan, busy_s, free_s = call.plan, time.thread_time(), self._free_s
        try:
            block = call.result()
        finally:
            self._free_s = time.perf_counter()
        busy_s = time.thread_time() - busy_s
        seconds = self._free_s - max(call.began_s, free_s)
        for sequence, steps in zip(plan.rows, call.max_steps, strict=True):
            sequence.submitted -= steps
        competes = self._backend.nice > 0 and not plan.exclusive
        return FinishedCall(plan, block, seconds, busy_s if competes else seconds)

    def check_health(self) -> None:
        """Raises if the backend can compute nothing any more; to be asked after a call has failed."""
        if self._async is not None:
            self._async.check_health()
