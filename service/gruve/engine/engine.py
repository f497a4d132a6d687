"""The loop: take commands, admit, pick, decode, update, deliver. Nobody else touches a model's backend.

A lane is a thread that goes round this loop. One row by itself gets the whole machine: the backend shares each step out
over it. As soon as there are two, each lane decodes rows of its own: nobody waits for anybody's share of a step, and
while one lane is busy with what its call has made, the others decode on. Which lane has a row changes nothing of what
the row becomes.

Knows threads and the clock; nothing of sessions, text or the wire.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import heapq
import itertools
import logging
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gruve.decode import Backend, Block, Logprobs, Reason, Row, Submitting
from gruve.engine.scheduler import Scheduler
from gruve.engine.sequence import Admission, CallReport, FinishReason, Progress, Sequence, TokenLogprobs
from gruve.engine.step_times import MAX_STEPS, StepTimes
from gruve.errors import Draining, EngineFailed, QueueFull

log = logging.getLogger(__name__)
T = TypeVar("T")

FEW_ROWS, FEW_CALL_S = 4, 0.002
"""A call with the whole machine and at most so many rows aims to last so long at most: each may be watched."""

_FINISH: dict[int, FinishReason] = {
    Reason.STOP: FinishReason.STOP,
    Reason.END_OF_SEQUENCE: FinishReason.END_OF_SEQUENCE,
    Reason.LENGTH: FinishReason.LENGTH,
}


@dataclasses.dataclass(frozen=True, slots=True)
class EngineConfig:
    """How one model's engine queues and calls."""

    max_waiting: int = 1_024
    """Sequences that may wait for a slot; one more is refused at once."""
    max_call_ms: float = 10.0
    """What a call of the backend aims to last at most; joins, leaves and cancels take effect between calls."""
    micro_batch: int | None = None
    """Rows a call takes at most; None for as many as make it fast."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    """A call that is under way."""

    rows: list[Sequence]
    most: list[int]
    """How many steps it may take with each of them."""
    steps: int
    alone: bool
    began_s: float
    result: Callable[[], Block]
    """Waits for it, or does it."""


class Engine:
    """Decodes admitted sequences on its own threads until closed.

    `deliver` is called on one of these threads at a time, once a call, and hears of one sequence in the order of its
    tokens, not with every call; it must not block. `on_failure` is called there when the loop itself has
    failed and will take nothing more. All methods may be called from any thread.
    """

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
        self.backend = backend
        self._on_failure = on_failure
        self.config = config or EngineConfig()
        self._submitting = backend if isinstance(backend, Submitting) else None  # once: to look takes long
        self._ahead = self._submitting.ahead if self._submitting else 0
        self.message_gap_s = 0.0
        """At least this long lies between two deliveries of one sequence's generated tokens, unless it ends or parks. 0
        delivers after every call."""
        self._deliver = deliver
        self._end_id = end_id
        self._clock = clock
        self._scheduler = Scheduler(backend.slots, self.config.micro_batch or backend.most_rows)
        self._lane_rows = self.config.micro_batch or backend.enough_rows
        self._deadlines: list[tuple[float, int]] = []
        self._ids = itertools.count(1)
        self._pace = StepTimes()
        self._states: dict[int, NDArray[np.float32]] = {}
        """States by slot that were read together and are told at once."""
        # What stands above is the lanes' own, who take turns at it.
        self._turn = threading.Lock()
        # Shared with other threads, under the condition's lock; whoever needs both locks takes this one last.
        self._changed = threading.Condition()
        self._commands: collections.deque[Callable[[], Progress | None]] = collections.deque()
        self._sequences: dict[int, Sequence] = {}
        self._closing = False
        self._broken: str | None = None
        self._lanes = [
            threading.Thread(target=self._run, name=f"gruve-{backend.name}-{lane}", daemon=True)
            for lane in range(backend.lanes)
        ]
        self._lanes_open = len(self._lanes)

    def start(self) -> None:
        """Starts the loop."""
        for lane in self._lanes:
            lane.start()

    def close(self) -> None:
        """Refuses new sequences, hands over those that are left, and returns when the loop has ended."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for lane in self._lanes:
            if lane.ident is not None:
                lane.join()

    @property
    def load(self) -> int:
        """Sequences admitted and not yet finished, running or waiting."""
        return len(self._sequences)

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a slot."""
        return max(0, self.load - self.running)

    def admit(self, admission: Admission, credit: int | None = None, *, readmitted: bool = False) -> int:
        """Takes a sequence and returns its id.

        Raises `QueueFull`, `Draining` or, after a failure of the loop itself, `EngineFailed`, at once, and then has
        taken nothing. `credit` is how many tokens may be generated before the first `grant`; None for no bound. A
        sequence that was admitted before and comes back (`readmitted`) is never refused as one too many.
        """
        most = self.backend.slots + self.config.max_waiting
        with self._changed:
            if self._broken is not None:
                raise EngineFailed(self._broken)
            if self._closing:
                raise Draining("the server is shutting down and takes no new sequences")
            if len(self._sequences) >= most and not readmitted:
                raise QueueFull(
                    f"{len(self._sequences)} sequences run or wait; at most {self.backend.slots} run and "
                    f"{self.config.max_waiting} wait"
                )
            sequence = Sequence(next(self._ids), admission, self._clock(), credit=credit)
            self._sequences[sequence.id] = sequence
            self._commands.append(lambda: self._enter(sequence))
            self._changed.notify()
        return sequence.id

    def cancel(self, sequence_id: int, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends a sequence at the next call, running or waiting; one that has ended already is left alone."""
        self._command(lambda: self._end(sequence_id, reason))

    def grant(self, sequence_id: int, tokens: int) -> None:
        """Lets a sequence with credit draw `tokens` more."""
        self._command(lambda: self._grant(sequence_id, tokens))

    def _command(self, command: Callable[[], Progress | None]) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def _run(self) -> None:
        """One lane: goes round until the engine closes; the last lane to leave hands over what is left.

        Where the backend takes calls before the earlier ones have returned, so many are under way when the results of
        the earliest are waited for: what the host does with them takes none of the backend's time.
        """
        _be_nice(self.backend.nice)
        calls: collections.deque[_Call] = collections.deque()
        free_s = 0.0
        try:
            while (picked := self._next(calls[-1].rows if calls else None)) is not None:
                rows, alone = picked
                if rows and (call := self._submit(rows, alone)) is not None:
                    calls.append(call)
                if calls and (not rows or len(calls) > self._ahead):
                    free_s = self._finish(calls.popleft(), free_s)
            while calls:
                free_s = self._finish(calls.popleft(), free_s)
            with self._turn:
                self._lanes_open -= 1
                if not self._lanes_open and self._broken is None:
                    self._publish([self._end(i, FinishReason.HANDED_OVER) for i in list(self._sequences)])
        except Exception:
            incident = _incident()
            log.exception("the engine's loop failed: incident %s", incident)
            with self._turn:
                self._fail_all(incident)

    def _next(self, under_way: list[Sequence] | None) -> tuple[list[Sequence], bool] | None:
        """The rows of this lane's next call, and whether it is one beside others; None when closing.

        Carries out what other threads have asked for, and waits while there is nothing to do; not, however, while a
        call of this lane is under way, rows of which may go on in the next.
        """
        while True:
            with self._turn:
                if not self._take_commands():
                    return None
                now = self._clock()
                self._end_overdue(now)
                self._give_slots(now)
                most, alone = self._share()
                rows = self._scheduler.pick(now, most) if most else []
                if under_way:
                    on = [s for s in under_way if s.can_continue(MAX_STEPS)][: most - len(rows)]
                    self._scheduler.start_call(on)
                    return rows + on, alone
                if rows:
                    if self._may_pick():
                        with self._changed:
                            self._changed.notify()
                    return rows, alone
                # Where another lane has all the rows it comes round soon, and looks at the time itself.
                wakes = (self._scheduler.next_wake_s(), self._next_deadline()) if most else ()
                wake = min((t for t in wakes if t is not None), default=None)
            with self._changed:
                if not self._asked() and (wake is None or wake > self._clock()):
                    self._changed.wait(None if wake is None else wake - self._clock())

    def _asked(self) -> bool:
        """Whether there is something for a lane to do, pace and deadlines aside."""
        return bool(self._commands) or self._closing or self._broken is not None or self._may_pick()

    def _may_pick(self) -> bool:
        return self._scheduler.ready() and self._share()[0] > 0

    def _share(self) -> tuple[int, bool]:
        """How many rows the next call may take, 0 for none, and whether it goes on beside calls of other lanes."""
        scheduler, lanes = self._scheduler, len(self._lanes)
        rows = scheduler.ready_rows + scheduler.in_flight
        if lanes > 1 and rows > 1:
            return min(-(-rows // lanes), self._lane_rows), True
        return (0 if scheduler.in_flight and not self._ahead else self._lane_rows), False

    def _take_commands(self) -> bool:
        """Carries out what other threads asked for; False when closing."""
        with self._changed:
            commands = list(self._commands)
            self._commands.clear()
            going_on = not self._closing and self._broken is None
        self._publish([command() for command in commands])
        return going_on

    def _enter(self, sequence: Sequence) -> None:
        self._scheduler.add(sequence)
        if sequence.admission.deadline_s is not None:
            heapq.heappush(self._deadlines, (sequence.admission.deadline_s, sequence.id))

    def _grant(self, sequence_id: int, tokens: int) -> None:
        if sequence := self._sequences.get(sequence_id):
            self._scheduler.grant(sequence, tokens)

    def _give_slots(self, now: float) -> None:
        """Puts waiting sequences into free slots and into the backend."""
        for sequence in self._scheduler.admit():
            sequence.started_s = now
            try:
                self.backend.admit(_slot(sequence), self._row(sequence.admission), sequence.admission.state)
            except Exception:
                incident = _incident()
                log.exception("a slot could not be filled: incident %s", incident)
                self._fail([sequence], incident)

    def _row(self, admission: Admission) -> Row:
        return Row(
            history=admission.history,
            position=admission.position,
            forced=admission.forced,
            sampling=admission.sampling,
            max_tokens=admission.max_tokens,
            min_tokens=admission.min_tokens,
            end_id=self._end_id,
            ignore_eos=admission.ignore_eos,
            stops=admission.stops,
            stop_state=admission.stop_state,
            drawn=admission.generated,
            logprobs=admission.logprobs,
        )

    def _submit(self, rows: list[Sequence], alone: bool) -> _Call | None:
        """Gives a call to the backend, if that takes it before its results are waited for; None if it refuses it."""
        limits = [sequence.step_limit() for sequence in rows]
        steps = min(self._steps(rows, alone), max(limits))
        slots, began_s = [_slot(sequence) for sequence in rows], time.perf_counter()
        result: Callable[[], Block]
        if self._submitting is not None:
            try:
                result = self._submitting.submit(slots, limits, steps)
            except Exception:
                log.exception("decoding %d rows failed: incident %s", len(rows), incident := _incident())
                with self._turn:
                    self._fail(rows, incident)
                self._submitting.check()
                return None
        else:
            result = functools.partial(self.backend.decode, slots, limits, steps, alone=alone)
        most = [min(limit, steps) for limit in limits]
        for sequence, submitted in zip(rows, most, strict=True):
            sequence.submitted += submitted
        return _Call(rows, most, steps, alone, began_s, result)

    def _finish(self, call: _Call, free_s: float) -> float:
        """Waits for what a call has made, or makes it: decode, update, deliver.

        The backend was free for it at `free_s`, a performance counter; returns when it was free for the next one.
        """
        rows = call.rows
        busy_s = time.thread_time()
        try:
            block = call.result()
        except Exception:
            log.exception("decoding %d rows failed: incident %s", len(rows), incident := _incident())
            with self._turn:
                self._fail(rows, incident)
            if self._submitting is not None:
                self._submitting.check()
            return time.perf_counter()
        ended_s, busy_s = time.perf_counter(), time.thread_time() - busy_s
        seconds = ended_s - max(call.began_s, free_s)
        with self._turn:
            if self._broken is not None:  # all have been answered
                return ended_s
            # A thread whose core was wanted by others would be taken for slow, and called for less at a time.
            timed_s = busy_s if call.alone and self.backend.nice else seconds
            self._pace.record(len(rows), call.alone, call.steps, timed_s)
            for sequence, submitted in zip(rows, call.most, strict=True):
                sequence.submitted -= submitted
            progress = self._update(rows, block)
            self._scheduler.finish_call(rows)
            generated = sum([len(p.tokens) - p.forced for p in progress])
            self._publish(progress, len(rows), call.steps, seconds, generated)
        return ended_s

    def _steps(self, rows: list[Sequence], alone: bool) -> int:
        """How many steps the call takes: what fits into `max_call_ms`, but no further than to what is waited for.

        That is the first two tokens of rows that have none, for the second one is what a reader has until the next
        turn. Among a few rows it is the first one: a reader of theirs may be watching, and the next turn is near.
        """
        longest_s, first = self.config.max_call_ms / 1e3, 2
        if len(rows) <= FEW_ROWS and not alone:
            longest_s, first = min(longest_s, FEW_CALL_S), 1
        fitting = self._pace.steps_within(len(rows), alone, longest_s)
        return min(fitting, *[sequence.steps_until(first) for sequence in rows], MAX_STEPS)

    def _update(self, rows: list[Sequence], block: Block) -> list[Progress]:
        """Moves each sequence past what the block yielded, and says what is to be told of it by now."""
        now = self._clock()
        columns = block.tokens.T.tolist()
        due = []
        for i, (sequence, taken, reason) in enumerate(
            zip(rows, block.taken.tolist(), block.reasons.tolist(), strict=True)
        ):
            if sequence.ended:
                continue
            admission = sequence.admission
            forced = sequence.advance(taken, now)
            tokens = columns[i]
            if admission.deliver_forced:
                sequence.output.add(tokens[:taken], forced)
            else:
                sequence.output.add(tokens[forced:taken], 0)
            finish = _FINISH.get(reason, sequence.finish_requested if sequence.in_flight == 1 else None)
            if finish is None and admission.logprobs is None and not self._is_due(sequence, now):
                continue
            logprobs = () if block.logprobs is None else _logprobs(block.logprobs, admission.logprobs, i, taken)
            due.append((sequence, logprobs, finish))
        if self._submitting is not None:
            told = [s for s, _, finish in due if (s.admission.keep_state if finish else self._is_far(s))]
            self._read_states(self._submitting, told)
        progress = [self._progress(sequence, now, logprobs, finish) for sequence, logprobs, finish in due]
        self._states.clear()
        return progress

    def _is_due(self, sequence: Sequence, now: float) -> bool:
        """Whether a sequence that goes on is to be told of."""
        next_s = math.inf if sequence.credit == 0 else sequence.ready_s
        due = sequence.output.is_due(now, next_s, self.message_gap_s, sequence.admission.max_pending_output)
        return due or self._is_far(sequence)

    def _progress(
        self, sequence: Sequence, now: float, logprobs: tuple[TokenLogprobs, ...], finish: FinishReason | None
    ) -> Progress:
        """Tells what nobody has been told yet of one sequence; with a finish reason for the last time."""
        if finish is None:
            state = self._snapshot(sequence)
        elif sequence.slot is None:
            state = sequence.admission.state
        else:
            try:
                state = self._state(sequence.slot) if sequence.admission.keep_state else None
            except Exception:
                incident = _incident()
                log.exception("a state could not be read: incident %s", incident)
                self._remove(sequence)
                return _failed(sequence, incident)
        tokens, forced = sequence.output.take(now)
        position = sequence.position + 1 - len(tokens)
        if finish is None:
            return Progress(sequence.id, position, tokens, forced, logprobs, state=state)
        self._remove(sequence)
        started = sequence.started_s if sequence.started_s is not None else self._clock()
        return Progress(
            sequence.id, position, tokens, forced, logprobs, finish, state, None, started - sequence.arrived_s
        )

    @staticmethod
    def _is_far(sequence: Sequence) -> bool:
        """Whether its state is wanted now, and there is one: a call that is under way has not gone further with it."""
        return sequence.in_flight <= 1 and sequence.wants_snapshot(MAX_STEPS)

    def _snapshot(self, sequence: Sequence) -> NDArray[np.float32] | None:
        """The state in between, if it is time for one."""
        if sequence.slot is None or not self._is_far(sequence):
            return None
        sequence.snapshot_position = sequence.position
        try:
            return self._state(sequence.slot)
        except Exception:  # one fewer to go back to, no more
            log.exception("a state could not be read: incident %s", _incident())
            return None

    def _read_states(self, backend: Submitting, sequences: list[Sequence]) -> None:
        """Waits once for the states of several sequences, where each wait is for everything that was submitted."""
        if len(sequences) < 2:
            return
        slots = [_slot(sequence) for sequence in sequences]
        try:
            self._states = dict(zip(slots, backend.snapshots(slots), strict=True))
        except Exception:  # whoever cannot do without is told when it is asked for alone
            log.exception("states could not be read together: incident %s", _incident())

    def _state(self, slot: int) -> NDArray[np.float32]:
        """The state in a slot, as it is after all calls."""
        state = self._states.pop(slot, None)
        return self.backend.snapshot(slot) if state is None else state

    def _end(self, sequence_id: int, reason: FinishReason) -> Progress | None:
        """Ends a sequence that has not ended by itself."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return None
        if sequence.in_flight:
            sequence.finish_requested = reason
            return None
        progress = self._progress(sequence, self._clock(), (), reason)
        self._scheduler.remove(sequence)
        return progress

    def _end_overdue(self, now: float) -> None:
        overdue = []
        while self._deadlines and self._deadlines[0][0] <= now:
            overdue.append(self._end(heapq.heappop(self._deadlines)[1], FinishReason.DEADLINE))
        self._publish(overdue)

    def _next_deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._sequences:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _fail(self, rows: list[Sequence], incident: str) -> None:
        """Answers the rows of a call that raised; the others go on."""
        failed = [sequence for sequence in rows if not sequence.ended]
        for sequence in failed:
            self._remove(sequence)
        self._scheduler.finish_call([sequence for sequence in rows if sequence.in_flight])
        for sequence in failed:
            if not sequence.in_flight:
                self._scheduler.remove(sequence)
        self._publish([_failed(sequence, incident) for sequence in failed])

    def _fail_all(self, incident: str) -> None:
        """Answers everybody after a failure that no row can be blamed for; from here on `admit` refuses."""
        with self._changed:
            self._broken = incident
            self._changed.notify_all()
            left = list(self._sequences.values())
            self._sequences.clear()
        try:
            self._publish([_failed(sequence, incident) for sequence in left])
        except Exception:
            log.exception("nobody could be told of incident %s", incident)
        self._on_failure()

    def _remove(self, sequence: Sequence) -> None:
        sequence.ended = True
        if sequence.slot is not None:
            self.backend.release(sequence.slot)
        with self._changed:
            del self._sequences[sequence.id]

    def _publish(
        self,
        progress: Iterable[Progress | None],
        rows: int = 0,
        steps: int = 0,
        seconds: float = 0.0,
        generated: int = 0,
    ) -> None:
        told = tuple(p for p in progress if p is not None)
        if told or rows:
            scheduler = self._scheduler
            self._deliver(
                CallReport(told, rows, steps, seconds, generated, len(scheduler.running), len(scheduler.waiting))
            )


def _be_nice(nice: int) -> None:
    """Has this thread give way to those who take requests in and send tokens out: what they do is short and waited for.

    On Linux alone a thread has a nice value of its own.
    """
    if sys.platform == "linux" and nice:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + nice)


def _incident() -> str:
    """A name under which the log has what went wrong, for those who are told no more."""
    return uuid.uuid4().hex[:12]


def _failed(sequence: Sequence, incident: str) -> Progress:
    output = sequence.output
    position = sequence.position + 1 - len(output.tokens)
    return Progress(sequence.id, position, output.tokens, output.forced, incident=incident)


def _slot(sequence: Sequence) -> int:
    if sequence.slot is None:
        raise ValueError(f"sequence {sequence.id} has no slot")
    return sequence.slot


def _logprobs(logprobs: Logprobs, asked: int | None, row: int, taken: int) -> tuple[TokenLogprobs, ...]:
    if asked is None:
        return ()
    chosen = logprobs.chosen[:taken, row].tolist()
    ids, values = logprobs.top_ids[:taken, row, :asked], logprobs.top[:taken, row, :asked]
    known = np.isfinite(values)
    return tuple(
        TokenLogprobs(chosen[k], tuple(zip(ids[k][known[k]].tolist(), values[k][known[k]].tolist(), strict=True)))
        for k in range(taken)
    )
