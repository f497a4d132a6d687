"""Applies what a call made to its sequences and turns it into progress; also makes each sequence's last progress.

Knows no scheduler, no thread and no clock (a time is an argument).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import numpy as np

from gruve.decode import Block, Logprobs, RowStatus
from gruve.engine.failures import failed_progress, new_incident
from gruve.engine.intake import Intake
from gruve.engine.sequence import FinishReason, Progress, Sequence, TokenLogprobs
from gruve.engine.slot_times import SlotTimes
from gruve.engine.slots import Slots, State
from gruve.engine.step_times import MAX_STEPS

log = logging.getLogger(__name__)

FINISH_REASONS: Mapping[int, FinishReason] = {
    RowStatus.STOP: FinishReason.STOP,
    RowStatus.END_OF_SEQUENCE: FinishReason.END_OF_SEQUENCE,
    RowStatus.LENGTH: FinishReason.LENGTH,
}
NO_STATES: Mapping[int, State] = {}


class Updater:
    """Moves sequences on and removes those that end from their slots and from the intake."""

    def __init__(self, slots: Slots, intake: Intake) -> None:
        self._slots = slots
        self._intake = intake
        self.slot_times = SlotTimes()
        self.message_gap_s = 0.0
        """See `Engine.message_gap_s`."""

    def update(self, rows: list[Sequence], block: Block, now_s: float) -> list[Progress]:
        """Moves each row past the steps it took in `block` and returns the progress that is due for delivery."""
        columns = block.tokens.T.tolist()
        due: list[tuple[Sequence, tuple[TokenLogprobs, ...], FinishReason | None]] = []
        for i, (sequence, steps, reason) in enumerate(
            zip(rows, block.steps_taken.tolist(), block.statuses.tolist(), strict=True)
        ):
            if sequence.ended:
                continue
            admission, forced = sequence.admission, sequence.advance(steps, now_s)
            if admission.deliver_forced:
                sequence.output.add(columns[i][:steps], forced)
            else:
                sequence.output.add(columns[i][forced:steps], 0)
            last_call = sequence.in_flight == 1
            finish = FINISH_REASONS.get(reason, sequence.finish_requested if last_call else None)
            if finish is None and admission.logprobs is None and not self._is_due(sequence, now_s):
                continue
            logprobs = () if block.logprobs is None else _logprobs_of(block.logprobs, admission.logprobs, i, steps)
            due.append((sequence, logprobs, finish))
        states = NO_STATES
        if self._slots.reads_together:
            states = self._slots.read_together(
                [s for s, _, finish in due if (s.admission.keep_state if finish else _needs_snapshot(s))]
            )
        return [
            self._progress(sequence, now_s, logprobs, states)
            if finish is None
            else self.finish(sequence, finish, now_s, logprobs, states)
            for sequence, logprobs, finish in due
        ]

    def finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now_s: float,
        logprobs: tuple[TokenLogprobs, ...] = (),
        states: Mapping[int, State] = NO_STATES,
    ) -> Progress:
        """Removes a sequence, waiting or running, and returns its last progress.

        `states` are states that have been read already, by slot. A state that cannot be read fails the sequence.
        """
        try:
            state = self._last_state(sequence, reason, states)
        except Exception:
            log.exception("a state could not be read: incident %s", incident := new_incident())
            return self.fail(sequence, incident)
        tokens, forced = sequence.output.take(now_s)
        self._remove(sequence)
        measures = reason is not FinishReason.PREEMPTED and not sequence.slowed_by_client
        if sequence.started_s is not None and measures:
            consumed, cut = sequence.position - sequence.admission.position, reason is FinishReason.DEADLINE
            self.slot_times.record(now_s - sequence.started_s, consumed, sequence.admission.allowed_tokens, cut=cut)
        position = sequence.position + 1 - len(tokens)
        queue_s = (now_s if sequence.started_s is None else sequence.started_s) - sequence.arrived_s
        return Progress(sequence.id, position, tokens, forced, logprobs, reason, state, None, queue_s)

    def fail(self, sequence: Sequence, incident: str) -> Progress:
        """Removes a sequence after a failure and returns its last progress, which carries no state."""
        self._remove(sequence)
        return failed_progress(sequence, incident)

    def _progress(
        self,
        sequence: Sequence,
        now_s: float,
        logprobs: tuple[TokenLogprobs, ...],
        states: Mapping[int, State],
    ) -> Progress:
        """The undelivered output of a sequence that continues, with its state if one is wanted."""
        state = self._snapshot(sequence, states) if _needs_snapshot(sequence) else None
        tokens, forced = sequence.output.take(now_s)
        queue_s = 0.0 if sequence.started_s is None else sequence.started_s - sequence.arrived_s
        position = sequence.position + 1 - len(tokens)
        return Progress(sequence.id, position, tokens, forced, logprobs, None, state, None, queue_s)

    def _is_due(self, sequence: Sequence, now_s: float) -> bool:
        """Whether output of a sequence that continues is to be delivered now."""
        next_s = math.inf if sequence.credit == 0 or sequence.window == 0 else sequence.ready_s
        max_pending = sequence.admission.max_pending_output
        return sequence.output.is_due(now_s, next_s, self.message_gap_s, max_pending) or _needs_snapshot(sequence)

    def _last_state(self, sequence: Sequence, reason: FinishReason, states: Mapping[int, State]) -> State | None:
        if sequence.slot is None:
            return sequence.admission.state
        wanted = sequence.admission.keep_state or reason is FinishReason.PREEMPTED
        return self._state(sequence, states) if wanted else None

    def _snapshot(self, sequence: Sequence, states: Mapping[int, State]) -> State | None:
        sequence.snapshot_position = sequence.position
        try:
            return self._state(sequence, states)
        except Exception:  # the session has one snapshot fewer to rewind to, no more
            log.exception("a state could not be read: incident %s", new_incident())
            return None

    def _state(self, sequence: Sequence, states: Mapping[int, State]) -> State:
        state = None if sequence.slot is None else states.get(sequence.slot)
        return self._slots.read(sequence) if state is None else state

    def _remove(self, sequence: Sequence) -> None:
        sequence.ended = True
        self._slots.release(sequence)
        self._intake.remove(sequence)


def _needs_snapshot(sequence: Sequence) -> bool:
    """Whether its state is wanted now and can be read: no call in flight has moved it on."""
    return sequence.in_flight <= 1 and sequence.wants_snapshot(MAX_STEPS)


def _logprobs_of(logprobs: Logprobs, requested: int | None, row: int, steps: int) -> tuple[TokenLogprobs, ...]:
    """The log-probabilities of one row's tokens with at most `requested` alternatives each; none if None."""
    if requested is None:
        return ()
    chosen = logprobs.chosen[:steps, row].tolist()
    ids, values = logprobs.top_ids[:steps, row, :requested], logprobs.top[:steps, row, :requested]
    known = np.isfinite(values)
    return tuple(
        TokenLogprobs(chosen[k], tuple(zip(ids[k][known[k]].tolist(), values[k][known[k]].tolist(), strict=True)))
        for k in range(steps)
    )
