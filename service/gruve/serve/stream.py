"""One stream: takes progress from the engine, records it in the session, and yields messages to its client.

A message contains everything that is ready when its writer is free, so messages grow when the client or the event loop
falls behind. The start of a generation is sent together with its first tokens, unless those take too long.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator

from gruve.engine.sequence import Admission, FinishReason, Progress
from gruve.errors import Draining, EngineFailed, GruveError, HandedOver, PositionMismatch, TakenOver
from gruve.receipt.signing import Sign
from gruve.serve.access_log import current_call
from gruve.serve.identity import current_identity
from gruve.serve.ledger import Reservation
from gruve.serve.messages import (
    FINISH_REASONS,
    duration,
    logprobs_message,
    receipt_message,
    sampling_message,
)
from gruve.serve.model_host import ModelHost
from gruve.serve.send_buffer import SendBuffer
from gruve.serve.text_assembler import TextAssembler
from gruve.serve.validation_generate import ValidatedGenerate
from gruve.sessions.admission import build_admission
from gruve.sessions.generations import apply_progress
from gruve.sessions.opening import RunningGeneration
from gruve.sessions.receipts import make_receipt
from gruve.v1 import generation_pb2


class Stream:
    """The stream of a running generation; `begin` starts it. It is a `model_host.Listener` and an `opening.Viewer`."""

    def __init__(
        self, running: RunningGeneration, host: ModelHost, request: ValidatedGenerate, sign: Sign | None = None
    ) -> None:
        """`sign` signs the receipt; None leaves it unsigned."""
        self.running = running
        self.generation = running.generation
        self.sequence_id: int | None = None
        self.ended = asyncio.Event()
        """Set once the engine has ended the sequence and the record is complete."""
        self.leaving = False
        """Whether only the engine has yet to end the sequence. What it still delivers is recorded and not sent."""
        self.finish: FinishReason | None = None
        self.queue_s = 0.0
        self.reservation: Reservation | None = None
        """What the stream holds of its tenant's limits, until it ends."""
        self._generated_before = running.generation.generated
        self._identity = current_identity()
        opened, tokenizer = running.opened, host.model.tokenizer
        self._request = opened.request
        self._host = host
        self._texts = tokenizer.texts
        self._start: generation_pb2.GenerationStart | None = None
        """Sent with the first message. Made when the engine has taken the sequence: refusals must be cheap."""
        self._max_message_tokens = request.max_message_tokens
        assembler = TextAssembler(self._texts, opened.stops, self.generation.min_tokens)
        self._buffer = SendBuffer(
            self.generation, self._texts, assembler, opened.first_position, echo=self._request.echo
        )
        self._buffer.add(self.generation.prompt_position, opened.known)
        self._error: GruveError | None = None
        self._sent_end = False
        self._sign = sign
        self._receipt: generation_pb2.Receipt | None = None
        """Made when the generation ends for good."""
        self._changed = asyncio.Event()
        self._arrived_s = request.arrived_s
        self._opened_s = time.monotonic()
        self._first_token_s: float | None = None
        self._last_token_s = self._opened_s
        self._last_message_s: float | None = None
        self._facts = current_call()
        self._facts.model, self._facts.session_id = host.model.name, running.session.id
        self._facts.prompt_tokens = self.generation.start_position - self.generation.prompt_position
        running.viewer = self

    @property
    def owner(self) -> str:
        """The tenant that it belongs to; see `Identity.owner`."""
        return self._identity.owner

    def begin(self) -> None:
        """Gives the engine what is left to decode. Raises what `ModelHost.admit` raises."""
        admission = self.running.opened.admission
        if admission is None:
            self._confirm()
            self._end(self.generation.finish_reason or FinishReason.CANCELLED)
            return
        self._facts.admitted_s = time.monotonic()
        self.sequence_id = self._host.admit(self._owned(admission), self)
        self._confirm()

    def _owned(self, admission: Admission) -> Admission:
        """The admission with what all of this stream's have in common."""
        return dataclasses.replace(
            admission,
            max_pending_output=self._max_message_tokens,
            tenant=self._identity.tenant,
            weight=self._identity.weight,
        )

    def _confirm(self) -> None:
        self._start = _start_message(self.running, self._host)
        self.running.confirm()
        if self.running.opened.begun:
            self._host.metrics.observe_begin(self.generation.start_position - self.generation.prompt_position)

    def take(self, progress: Progress) -> None:
        """Takes what a call of the engine did for the sequence; see `model_host.Listener`."""
        if progress.incident is not None:
            self._error = EngineFailed(progress.incident)
        if self._facts.slot_s is None and self._facts.admitted_s is not None:
            self._facts.slot_s = self._facts.admitted_s + progress.queue_s
        self._record(progress)
        if progress.finish_reason is FinishReason.PREEMPTED:
            self.queue_s += progress.queue_s
            self._readmit()
        elif progress.ended:
            self.queue_s += progress.queue_s
            reason: FinishReason | None = progress.finish_reason
            if reason is FinishReason.LENGTH:  # or its end was computed again: the record has the reason
                reason = self.generation.finish_reason
            self._end(reason)
        self._wake()

    def _readmit(self) -> None:
        """Admits the rest of a sequence whose slot another tenant got."""
        self._host.metrics.preemptions.inc()
        if self.leaving:
            self._end_unfinished(FinishReason.CANCELLED)
            return
        rest = build_admission(
            self.running.session,
            self.generation,
            self._request,
            self.running.opened.stops,
            self.running.max_transcript,
            self._buffer.next_position,
        )
        rest = dataclasses.replace(rest, ready_s=self._paced_ready_s())
        try:
            self.sequence_id = self._host.admit(self._owned(rest), self, preempted=True)
        except Draining:
            self._end_unfinished(FinishReason.HANDED_OVER)
        except GruveError as error:
            self.fail(error)

    def _end_unfinished(self, reason: FinishReason) -> None:
        """Ends this call; a generation that is not finished can be resumed."""
        if not self.generation.finished:
            self.generation.finish_reason = reason
        self._end(reason)

    def _paced_ready_s(self) -> float:
        """The monotonic time at which `max_tokens_per_second` allows the next token; 0 for at once."""
        rate = self._request.max_tokens_per_second
        return 0.0 if rate is None or self._first_token_s is None else self._last_token_s + 1.0 / rate

    def fail(self, error: GruveError) -> None:
        """Ends the stream because `take` has raised; what was recorded before stays."""
        self._error = error
        if not self.ended.is_set():
            self._end(None)
        self._changed.set()

    def take_over(self) -> None:
        """Ends the stream because another one resumes its generation."""
        self.lose(TakenOver(f"generation {self.generation.id!r} was resumed on another stream"))
        self.leave()  # its own call may be blocked in a write to a client that does not read

    def lose(self, error: GruveError) -> None:
        """Ends the stream with an error."""
        self._error = error
        self._changed.set()

    def leave(self) -> None:
        """Has the engine end the sequence, because the stream has no reader any more."""
        self.leaving = True
        if self.sequence_id is not None and not self.ended.is_set():
            self._host.engine.cancel(self.sequence_id)

    async def wait_ended(self) -> None:
        """Waits until the engine has ended the sequence and the session is free."""
        await self.ended.wait()

    async def messages(self) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """The messages of the call: the first with `start`, the last with `end`. Raises the error that ends it."""
        started = False
        if not self._buffer and self.finish is None and (gap_s := self._host.message_gap_s()) > 0.0:
            timer = asyncio.get_running_loop().call_later(gap_s, self._changed.set)
            await self._changed.wait()
            timer.cancel()
        while not self._sent_end:
            if self._error is not None:
                raise self._error
            if not started or self.finish is not None or self._buffer:
                started = True
                message = self._message(self._max_message_tokens)
                await self._wait_before_send(message)
                yield message
            else:
                self._changed.clear()
                await self._changed.wait()
        if self.finish is FinishReason.HANDED_OVER:
            raise HandedOver(self.generation.next_position)

    async def _wait_before_send(self, message: generation_pb2.GenerateResponse) -> None:
        """Waits until what a message depends on is durable, or reports in it how far that has come."""
        next_position = message.position + len(message.token_ids)
        durable_position = await self.running.wait_before_send(next_position, last=message.HasField("end"))
        if durable_position is not None:
            message.durable_position = durable_position
        if message.end.finish_reason == generation_pb2.FINISH_REASON_HANDED_OVER:
            await self.running.release()
        if message.token_ids:
            now_s, last_s = time.monotonic(), self._last_message_s
            self._last_message_s = now_s
            since_last_s = None if last_s is None else now_s - last_s
            if last_s is None:
                self._facts.first_token_s, self._facts.sent_s = now_s - self._arrived_s, now_s
            self._facts.generated_tokens = self.generation.generated
            self._host.metrics.observe_message(
                len(message.token_ids), now_s - self._arrived_s, since_last_s, self._facts.exemplar
            )

    def _record(self, progress: Progress) -> None:
        """Records progress in the session and puts its tokens into the send buffer."""
        if apply_progress(self.running.session, self.generation, progress):
            self._last_token_s = time.monotonic()
            if self._first_token_s is None:
                self._first_token_s = self._facts.decoded_s = self._last_token_s
        self._buffer.add(progress.position, progress.tokens, progress.logprobs)

    def _wake(self) -> None:
        """Wakes the writer if there is something to send."""
        if self._buffer or self.ended.is_set():
            self._changed.set()

    def _end(self, reason: FinishReason | None) -> None:
        """Ends the generation's production for this call; `reason` is None if it has failed."""
        self.finish = reason
        generation, first = self.generation, self._buffer.first_position
        if generation.finished and reason is generation.finish_reason:  # otherwise only this call has ended
            self._buffer.finish()
            if not self.leaving:  # while the session is still this stream's
                receipt = make_receipt(self.running.session, generation)
                self._receipt = receipt_message(receipt, self._host.model.tokenizer.size, self._sign)
            if first > generation.next_position and self._error is None:
                self._error = PositionMismatch(
                    f"from_position is {first}; the generation ended at {generation.next_position}",
                    position=self.running.session.position,
                )
        self.ended.set()
        self._facts.generated_tokens = generation.generated
        self._facts.finish_reason = reason.value if reason else ""
        self._facts.queue_s = self.queue_s if self.sequence_id is not None else None
        if self.reservation is not None:
            self.reservation.close(self._used_tokens(), time.monotonic())
        self.running.close()
        self._host.metrics.observe_end(reason, self.queue_s if self.sequence_id is not None else None)

    def _used_tokens(self) -> int:
        """How many tokens this call counts for: all that it had to read, and those that it generated."""
        admission = self.running.opened.admission
        read = 0 if admission is None else len(admission.forced)
        return read + max(0, self.generation.generated - self._generated_before)

    def _message(self, max_tokens: int) -> generation_pb2.GenerateResponse:
        """The next message: what is ready, at most `max_tokens` tokens."""
        piece = self._buffer.take(max_tokens)
        message = generation_pb2.GenerateResponse(position=piece.position, token_ids=piece.tokens, text=piece.text)
        if piece.logprobs:
            message.logprobs.extend(logprobs_message(entry, self._texts) for entry in piece.logprobs)
        if self._start is not None:
            message.start.CopyFrom(self._start)
            self._start = None
        if self.finish is not None and not self._buffer:
            message.end.CopyFrom(self._end_message())
            self._sent_end = True
        return message

    def _end_message(self) -> generation_pb2.GenerationEnd:
        generation = self.generation
        end = generation_pb2.GenerationEnd(
            finish_reason=FINISH_REASONS[self.finish or FinishReason.CANCELLED],
            next_position=generation.next_position,
            usage=generation_pb2.Usage(
                prompt_tokens=generation.start_position - generation.prompt_position,
                generated_tokens=generation.generated,
                queue_time=duration(self.queue_s),
            ),
        )
        if self._first_token_s is not None:
            end.usage.prompt_time.CopyFrom(duration(max(0.0, self._first_token_s - self._opened_s - self.queue_s)))
            end.usage.generation_time.CopyFrom(duration(self._last_token_s - self._first_token_s))
        if self._receipt is not None:
            end.receipt.CopyFrom(self._receipt)
        if self.finish is FinishReason.STOP:
            matched = self._buffer.matched
            if isinstance(matched, str):
                end.stop = matched
            elif matched is not None:
                end.stop_token_id = matched
        return end


def _start_message(running: RunningGeneration, host: ModelHost) -> generation_pb2.GenerationStart:
    generation = running.generation
    return generation_pb2.GenerationStart(
        generation_id=generation.id,
        session_id=running.session.id,
        model=host.model.name,
        model_digest=host.model.digest,
        numerics_id=host.numerics_id,
        prompt_position=generation.prompt_position,
        start_position=generation.start_position,
        sampling=sampling_message(generation.sampling, host.model.tokenizer.size),
        max_tokens=generation.max_tokens,
    )
