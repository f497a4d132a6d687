"""A stream that its client steers: it sends no more than was granted, and controls take effect at exact positions.

The engine knows nothing of controls. It decodes the generation in segments: up to the position of the next control, up
to the end of the credit, or until a control arrives and the sequence is called back. Between two segments the record
is cut back to the control's position, the control is recorded, and the engine continues from there. So a segment is
the same as a resumed generation, and as exact.

A control takes effect when everything before its position was sent and nothing from it on. Tokens that were computed
from there on are discarded.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable

from gruve.engine.sequence import FinishReason, Progress
from gruve.errors import (
    Draining,
    GenerationUnknown,
    GruveError,
    HandedOver,
    InvalidField,
    LimitExceeded,
    PositionMismatch,
    TranscriptFull,
)
from gruve.model.tokenizer import Tokenizer
from gruve.receipt.signing import Sign
from gruve.serve.models.host import ModelHost
from gruve.serve.streams.control_queue import ControlQueue
from gruve.serve.streams.steered_generation import SteeredGeneration
from gruve.serve.streams.stream import Stream
from gruve.serve.validation_converse import MAX_CREDIT, Control
from gruve.serve.validation_generate import ValidatedGenerate
from gruve.sessions.opening import RunningGeneration
from gruve.sessions.record import SNAPSHOT_TOKENS
from gruve.v1 import generation_pb2


class Conversation(Stream):
    """The stream of a generation that is steered."""

    def __init__(
        self,
        running: RunningGeneration,
        host: ModelHost,
        request: ValidatedGenerate,
        on_end: Callable[[Stream], None],
        sign: Sign | None = None,
    ) -> None:
        """See `Stream`."""
        super().__init__(running, host, request, on_end, sign)
        self._credit = request.credit or 0
        """How many tokens may still be sent."""
        self._paused = self._stopped = False
        self._may_conclude = self._credit > 0
        """Whether the end may be sent. A call without credit hears its client first: a rewind may undo it."""
        self._hung_up = False
        self._controls = ControlQueue(running.max_transcript, on_answer=self._changed.set)
        self._has_room = asyncio.Event()
        self._called_back = False
        self._steered = SteeredGeneration(running, self._buffer, self._request)
        self._credit_end = 0
        """The position at which the credit of the running sequence ends."""

    def begin(self) -> None:
        """Gives the engine the first segment. Raises what `ModelHost.admit` raises."""
        self._admit_segment(readmitted=False)
        self._end_at_deadline()
        self._confirm()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its model."""
        return self._host.model.tokenizer

    def steer(self, control: Control) -> None:
        """Takes a control; it is answered by a message, or by its `reply`."""
        self._may_conclude = True
        self._controls.arrived.append(control)
        self._advance()

    def check_can_steer(self) -> None:
        """Raises `LimitExceeded` if too many controls are unanswered, `GenerationUnknown` if the stream has ended."""
        if self.ended.is_set():
            raise GenerationUnknown(f"the stream of generation {self.generation.id!r} has ended")
        self._controls.check_room()

    def refuse_message(self, control_id: int, error: GruveError) -> None:
        """Answers a message of the client that holds no valid control."""
        self._may_conclude = True
        self._controls.refuse_message(control_id, error)

    async def wait_for_room(self) -> None:
        """Waits while too many controls are unanswered."""
        while self._controls.is_full:
            self._has_room.clear()
            await self._has_room.wait()

    def hang_up(self) -> None:
        """Ends the generation when its credit is used up: its client has closed its side."""
        self._hung_up = self._may_conclude = True
        self._advance()

    def break_off(self, error: GruveError) -> None:
        """Ends the call with an error."""
        self._error = self._error or error
        self._changed.set()

    def grant(self, tokens: int) -> None:
        """Lets the stream send more tokens. Raises `InvalidField` if that is more than a client may have granted."""
        if self._credit + tokens > MAX_CREDIT:
            raise InvalidField("grant.tokens", f"{tokens} and {self._credit} not yet used are above {MAX_CREDIT}")
        self._may_conclude = True
        self._credit += tokens
        if self.sequence_id is not None and not self._called_back:
            self._host.engine.grant(self.sequence_id, tokens)
            self._credit_end += tokens
        self._advance()

    async def responses(self) -> AsyncIterator[generation_pb2.ConverseResponse]:
        """The messages of the call: tokens as in `messages`, and answers to controls."""
        started = False
        while not self._sent_end:
            if self._error is not None:
                raise self._error
            if started and self._controls.answers:
                response = self._controls.answers.popleft()
                if response.HasField("control_applied"):  # a client that receives it relies on it
                    await self.running.wait_before_send(response.control_applied.position)
                yield response
                self._has_room.set()
                continue
            if started and self._conclude():
                continue
            max_tokens = self._sendable()
            if not started or (self.finish and not self._controls.answers) or max_tokens:
                started = True
                message = self._message(min(max_tokens, self._max_message_tokens))
                if message.token_ids:
                    self._credit -= len(message.token_ids)
                    self._advance()
                await self._wait_before_send(message)
                yield generation_pb2.ConverseResponse(tokens=message)
            elif not self._controls.answers and self._error is None:
                self._changed.clear()
                await self._changed.wait()
        if self.finish is FinishReason.HANDED_OVER:
            raise HandedOver(self._buffer.position)

    def take(self, progress: Progress) -> None:
        """Takes what a call of the engine did for the sequence; see `model_host.Listener`."""
        if progress.incident is not None:
            self.sequence_id = None
            super().take(progress)
            return
        if progress.finish_reason is FinishReason.LENGTH and not self._is_last_segment(progress):
            progress = progress._replace(finish_reason=FinishReason.CANCELLED)
        self._record(progress)
        if progress.finish_reason is not None:
            self._end_segment(progress)
        elif self._buffer.next_position >= self.generation.next_position >= self._credit_end:
            self._call_back()  # without credit it needs no slot
        else:
            self._release_slot_if_unread()
        self._wake()

    def _is_last_segment(self, progress: Progress) -> bool:
        """Whether a segment that reached its length is the generation's last."""
        generated = self.generation.generated + len(progress.tokens) - progress.forced
        end = progress.position + len(progress.tokens)
        reached = generated >= self.generation.max_tokens or end >= self.running.max_transcript
        return self.generation.finished or reached

    def _end_segment(self, progress: Progress) -> None:
        """The engine has ended the sequence, by itself or because it was called back."""
        if self.sequence_id is not None and not self.queue_s:
            self.queue_s = progress.queue_s
        released, self.sequence_id, self._called_back = self._releasing_slot, None, False
        self._releasing_slot, self._sent_logprobs = False, 0
        if self.leaving:
            self._end(FinishReason.CANCELLED)
        elif progress.finish_reason in (FinishReason.DEADLINE, FinishReason.HANDED_OVER):
            self._end(progress.finish_reason)
        else:
            if not self.generation.finished:
                self.generation.finish_reason = None
            preempted = progress.finish_reason is FinishReason.PREEMPTED and not released
            if preempted:
                self._host.metrics.preemptions.inc()
            self._advance(preempted=preempted)

    def _end(self, reason: FinishReason | None) -> None:
        if reason in (FinishReason.DEADLINE, FinishReason.HANDED_OVER):  # the call that resumes sends the rest
            self._buffer.truncate(self._credit)
        super()._end(reason)
        self._controls.close(self.generation.id)
        self._has_room.set()

    def _sendable(self) -> int:
        """How many tokens may be sent now."""
        if self._controls.arrived and self.finish is None:
            return 0
        max_tokens = min(self._credit, len(self._buffer))
        if (position := self._controls.next_position) is not None and self.finish is None:
            max_tokens = min(max_tokens, position - self._buffer.position)
        return max(0, max_tokens)

    def _advance(self, *, preempted: bool = False) -> None:
        """Applies the controls that are due and admits the next segment; calls a running sequence back for them.

        After a segment that was `preempted` the next one goes before the tenant's other waiting sequences.
        """
        self._changed.set()
        if self.ended.is_set():
            return
        if self.sequence_id is not None:
            if self._controls.arrived or self._is_control_due() or self._is_over():
                self._call_back()
            return
        self._apply_controls()
        self._has_room.set()
        if self._is_over():
            if self.generation.finished:  # a client that reads no further changes nothing of it
                self._buffer.truncate(0)
                self._end(FinishReason.CANCELLED)
                return
            self._stop(self._here())
        try:
            self._admit_segment(readmitted=True, preempted=preempted)
        except Draining:
            self.end_idle(FinishReason.HANDED_OVER)
        except GruveError as error:
            self.break_off(error)

    def _apply_controls(self) -> None:
        while True:
            while self._is_control_due():
                self._apply(*self._controls.pop())
            if self._stopped:  # later controls are not answered
                self._controls.close(self.generation.id)
                self._controls.arrived.clear()
            if not self._controls.arrived:
                return
            self._place(self._controls.arrived.popleft())

    def _call_back(self) -> None:
        if not self._called_back and self.sequence_id is not None:
            self._called_back = True
            self._host.engine.cancel(self.sequence_id)

    def _here(self) -> int:
        """The position of the next token to send, at which a control without a position takes effect."""
        return max(self._buffer.position, self.generation.start_position)

    def _is_control_due(self) -> bool:
        """Whether the first waiting control can take effect: everything before it was sent, and a token comes there.

        At the very end of a generation that an earlier call has stopped, that is a rewind alone: it lets it continue.
        """
        position, generation = self._controls.next_position, self.generation
        if position is None or self._stopped or position > self._buffer.position:
            return False
        if position < generation.next_position or not generation.finished:
            return position <= generation.next_position
        return generation.finish_reason is FinishReason.CANCELLED and self._controls.next_kind == "rewind"

    def _is_over(self) -> bool:
        """Whether the client has hung up and nothing more can be sent to it."""
        ended = self.generation.finished and not self._buffer and self._has_added_all()
        done = ended or self._stopped
        return self._hung_up and not done and not self._controls.arrived and (self._paused or not self._credit)

    def _has_added_all(self) -> bool:
        return self._buffer.next_position >= self.generation.next_position

    def _place(self, control: Control) -> None:
        """Lets a control wait for its position, applies it now if it needs none, or refuses it."""
        here, generation = self._here(), self.generation
        if control.kind == "resume":
            for pause in self._controls.take_pauses():  # it ends them too, though they have not begun
                self._controls.answer(pause, here)
            self._paused = False
            self._controls.answer(control, here)
            return
        try:
            if self.running.session.generations[-1] is not generation:
                raise PositionMismatch(f"generation {generation.id!r} ended and the session went on")
            position = self._controls.check(control, here, generation.start_position)
        except GruveError as error:
            self._controls.refuse(control, error)
            return
        has_ended = generation.finished and here >= generation.next_position
        if control.kind == "stop" and control.at is None and not has_ended:
            self._stop(here)  # even if a prompt is being sent and the credit ends in it
            self._controls.answer(control, here)
        else:
            self._controls.add(position, control)

    def _apply(self, position: int, order: int, control: Control) -> None:
        """Applies a control at its position; one that falls on an inserted prompt is applied after the prompt."""
        after_prompt = self._steered.position_after_prompt(control, position)
        if after_prompt > position:
            self._controls.postpone(after_prompt, order, control)
            return
        try:
            self._steered.check_room(control, position)
            self._count(self._steered.tokens_to_compute(control, position))
        except (TranscriptFull, LimitExceeded) as error:
            self._controls.refuse(control, error)
            return
        self._steered.apply(control, position)
        if control.kind == "pause":
            self._paused = True
        elif control.kind == "stop":
            self._stopped = True
        self._controls.answer(control, position)

    def _count(self, tokens: int) -> None:
        """Counts tokens that the tenant has the engine read, or compute again. Raises `LimitExceeded`."""
        if tokens > 0 and self.reservation is not None:
            self.reservation.add_tokens(tokens, time.monotonic())

    def _used_tokens(self, taken_back: int = 0) -> int:
        return super()._used_tokens(taken_back + self._steered.taken_back) + self._steered.inserted

    def _stop(self, position: int) -> None:
        """Finishes the generation before `position`."""
        self._steered.stop(position)
        self._stopped = True

    def _admit_segment(self, *, readmitted: bool, preempted: bool = False) -> None:
        """Gives the engine the next segment, as far as credit and waiting controls allow; none if that is nothing."""
        generation = self.generation
        end, first = generation.next_position, self._buffer.next_position
        has_credit = not self._paused and not generation.finished
        credit = max(0, self._credit - self._buffer.unsent(end)) if has_credit else 0
        control_position = self._controls.next_position
        before = end + MAX_CREDIT if control_position is None else control_position
        if self._must_wait or (first >= end and (not credit or before <= end)):
            return
        rest = self._rest()
        admission = dataclasses.replace(
            rest,
            max_tokens=min(rest.max_tokens, generation.generated + max(0, before - end)),
            keep_state=not generation.finished,
            snapshot_tokens=None if generation.finished else SNAPSHOT_TOKENS,
            deliver_forced=True,  # a sequence without credit loses its slot once its prompt is read
        )
        self.sequence_id = self._host.admit(
            self._owned(admission), self, credit, readmitted=readmitted, preempted=preempted
        )
        self._credit_end = end + credit

    def _conclude(self) -> bool:
        """Ends the stream if its next message is the last; returns whether answers are to be sent before it."""
        end = self.generation.next_position
        if self.ended.is_set() or self.sequence_id is not None or self._controls.arrived or not self._may_conclude:
            return False
        if not self.generation.finished or not self._has_added_all() or self._buffer.has_gaps:
            return False
        if len(self._buffer) > min(self._credit, self._max_message_tokens):
            return False
        position = self._controls.next_position
        if position is not None and position < end and not self._stopped:
            return False
        self._controls.refuse_waiting(end)
        self._end(self.generation.finish_reason)
        return bool(self._controls.answers)

    def _end_message(self) -> generation_pb2.GenerationEnd:
        end, position = super()._end_message(), self._buffer.position
        whole = self.generation.finished and self.finish is self.generation.finish_reason
        end.next_position = max(end.next_position, position) if whole else position
        return end
