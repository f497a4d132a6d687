"""One stream: takes progress from the engine, records it in the session, and yields messages to its client.

A message contains everything that is ready when its writer is free, so messages grow when the client or the event loop
falls behind. The start of a generation is sent together with its first tokens, unless those take too long.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable

from gruve.engine.sequence import Admission, FinishReason, Progress
from gruve.errors import Draining, EngineFailed, GruveError, HandedOver, PositionMismatch, TakenOver
from gruve.receipt.signing import Sign
from gruve.serve.callers.identity import current_identity
from gruve.serve.callers.ledger import Reservation
from gruve.serve.calls.access_log import current_call
from gruve.serve.messages import duration, end_message, logprobs_message, receipt_message, start_message
from gruve.serve.models.host import ModelHost
from gruve.serve.streams.send_buffer import SendBuffer
from gruve.serve.streams.text_assembler import TextAssembler
from gruve.serve.validation_generate import ValidatedGenerate
from gruve.sessions.admission import build_admission
from gruve.sessions.generations import apply_progress
from gruve.sessions.opening import RunningGeneration
from gruve.sessions.receipts import make_receipt
from gruve.v1 import generation_pb2

MAX_UNSENT_LOGPROBS = 512
"""At most this many tokens with log-probabilities, which take up to 1.3 KB each, are decoded and not yet sent."""
ACKNOWLEDGED_AT_ONCE = MAX_UNSENT_LOGPROBS // 2
HELD_UNREAD_S = 0.1
"""How long a stream keeps its slot while that many are unsent."""
OVERDUE_RETRY_S = 0.1
"""How long after a deadline the stream looks whether the engine has ended it."""


class Stream:
    """The stream of a running generation; `begin` starts it. It is a `model_host.Listener` and an `opening.Viewer`.

    A stream with log-probabilities is not decoded further while its client does not read. It gives its slot back and is
    admitted again when the client has read. Other streams are decoded to their end, however slowly they are read.
    """

    def __init__(
        self,
        running: RunningGeneration,
        host: ModelHost,
        request: ValidatedGenerate,
        on_end: Callable[[Stream], None],
        sign: Sign | None = None,
    ) -> None:
        """`on_end` is called once, when the stream produces nothing more. `sign` signs the receipt; None does not."""
        self.running = running
        self.generation = running.generation
        self.sequence_id: int | None = None
        """The engine's; None while the engine decodes nothing for it."""
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
        self._on_end = on_end
        self._admitted = False
        """Whether the engine ever had it."""
        self._releasing_slot = False
        """Whether it has asked the engine to free its slot."""
        self._release_timer: asyncio.TimerHandle | None = None
        """Asks for that, unless its client reads until then."""
        self._sent_logprobs = 0
        """How many tokens with log-probabilities were sent and not yet acknowledged to the engine."""
        self._deadline: asyncio.TimerHandle | None = None
        """Ends a stream that the engine does not decode at the deadline."""
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
        self._admitted = True
        return dataclasses.replace(
            admission,
            max_pending_output=self._max_message_tokens,
            window=None if self._request.logprobs is None else max(1, MAX_UNSENT_LOGPROBS - self._unsent_logprobs),
            tenant=self._identity.tenant,
            weight=self._identity.weight,
        )

    def _confirm(self) -> None:
        running, model = self.running, self._host.model
        self._start = start_message(running.session, running.generation, model, self._host.numerics_id)
        self.running.confirm()
        if self.running.opened.begun:
            self._host.metrics.observe_begin(self.generation.start_position - self.generation.prompt_position)

    def take(self, progress: Progress) -> None:
        """Takes what a call of the engine did for the sequence; see `model_host.Listener`."""
        if progress.incident is not None:
            self._error = EngineFailed(progress.incident)
        if self._facts.slot_s is None and self._facts.admitted_s is not None:
            self._facts.slot_s = self._facts.admitted_s + progress.queue_s
            self.queue_s = progress.queue_s  # waits after its first step do not count
        self._record(progress)
        if progress.finish_reason is FinishReason.PREEMPTED:
            self._continue_without_slot()
        elif progress.ended:
            reason: FinishReason | None = progress.finish_reason
            if reason is FinishReason.LENGTH:  # or its end was computed again: the record has the reason
                reason = self.generation.finish_reason
            self._end(reason)
        else:
            self._release_slot_if_unread()
        self._wake()

    def _release_slot_if_unread(self) -> None:
        """Frees the slot after `HELD_UNREAD_S` if the window is full until then."""
        if self._release_timer is None and not self._releasing_slot and self._unsent_logprobs >= MAX_UNSENT_LOGPROBS:
            self._release_timer = asyncio.get_running_loop().call_later(HELD_UNREAD_S, self._release_slot)

    def _release_slot(self) -> None:
        self._release_timer = None
        if self.sequence_id is not None and self._unsent_logprobs >= MAX_UNSENT_LOGPROBS:
            self._releasing_slot = True
            self._host.engine.cancel(self.sequence_id, FinishReason.PREEMPTED)

    def _continue_without_slot(self) -> None:
        """Continues after the engine has freed the slot, for another tenant or because the client does not read."""
        released, self.sequence_id, self._releasing_slot, self._sent_logprobs = self._releasing_slot, None, False, 0
        if not released:
            self._host.metrics.preemptions.inc()
        if self.leaving:
            self._end_unfinished(FinishReason.CANCELLED)
        elif self._must_wait:
            self._end_at_deadline()
        else:
            self._readmit(preempted=not released)

    def _end_at_deadline(self) -> None:
        """Has the event loop end the stream at its deadline if the engine does not decode it then."""
        if (deadline_s := self._request.deadline_s) is not None and self._deadline is None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(deadline_s - time.monotonic(), self._end_overdue)

    def _end_overdue(self) -> None:
        self.end_idle(FinishReason.DEADLINE)
        if not self.ended.is_set():  # the engine ends it, unless it has just given it back
            self._deadline = asyncio.get_running_loop().call_later(OVERDUE_RETRY_S, self._end_overdue)

    def _continue_if_read(self) -> None:
        """Continues a stream that waits for its client, once that has read enough."""
        if self.sequence_id is None and not self._must_wait and not self.ended.is_set():
            self._readmit(preempted=False)

    def _readmit(self, *, preempted: bool) -> None:
        """Admits the rest of the generation; a sequence that was `preempted` goes before the tenant's others."""
        try:
            self.sequence_id = self._host.admit(self._owned(self._rest()), self, readmitted=True, preempted=preempted)
        except Draining:
            self._end_unfinished(FinishReason.HANDED_OVER)
        except GruveError as error:
            self.fail(error)

    def _end_unfinished(self, reason: FinishReason) -> None:
        """Ends this call; a generation that is not finished can be resumed."""
        if not self.generation.finished:
            self.generation.finish_reason = reason
        self._end(reason)

    def _rest(self) -> Admission:
        """The admission of what is left of the generation, for when `max_tokens_per_second` allows its next token."""
        rest = build_admission(
            self.running.session,
            self.generation,
            self._request,
            self.running.opened.stops,
            self.running.max_transcript,
            self._buffer.next_position,
        )
        rate = self._request.max_tokens_per_second
        if rate is None or self._first_token_s is None:
            return rest
        return dataclasses.replace(rest, ready_s=self._last_token_s + 1.0 / rate)

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
        self.end_idle()

    def end_idle(self, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends the stream if the engine decodes nothing for it; otherwise the engine ends it."""
        if self.sequence_id is None and not self.ended.is_set():
            self._end_unfinished(reason)
            self._changed.set()

    @property
    def _unsent_logprobs(self) -> int:
        """How many tokens fill the window: those not sent, and those sent and not yet acknowledged to the engine."""
        return 0 if self._request.logprobs is None else len(self._buffer) + self._sent_logprobs

    @property
    def _must_wait(self) -> bool:
        """Whether its client has to read before it gets a slot."""
        return self._unsent_logprobs > MAX_UNSENT_LOGPROBS // 2

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
                self._continue_if_read()
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
        unsent = len(self._buffer)
        self._buffer.add(progress.position, progress.tokens, progress.logprobs)
        self._acknowledge(len(progress.tokens) - (len(self._buffer) - unsent))  # the client has these already

    def _acknowledge(self, tokens: int) -> None:
        """Tells the engine that tokens are not in the send buffer any more."""
        if self._request.logprobs is None or self.sequence_id is None:
            return
        self._sent_logprobs += tokens
        if self._sent_logprobs >= ACKNOWLEDGED_AT_ONCE:
            self._host.engine.acknowledge(self.sequence_id, self._sent_logprobs)
            self._sent_logprobs = 0

    def _wake(self) -> None:
        """Wakes the writer if there is something to send."""
        if self._buffer or self.ended.is_set():
            self._changed.set()

    def _end(self, reason: FinishReason | None) -> None:
        """Ends the generation's production for this call; `reason` is None if it has failed."""
        self.finish = reason
        for timer in (self._deadline, self._release_timer):
            if timer is not None:
                timer.cancel()
        self._on_end(self)
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
        self._facts.queue_s = self.queue_s if self._admitted else None
        if self.reservation is not None:
            self.reservation.close(self._used_tokens(), time.monotonic())
        self.running.close()
        self._host.metrics.observe_end(reason, self._facts.queue_s)

    def _used_tokens(self, taken_back: int = 0) -> int:
        """How many tokens this call counts for: all that it had to read, and those that it generated.

        `taken_back` generated tokens are no longer in the generation, because its client has rewound it.
        """
        admission = self.running.opened.admission
        read = 0 if admission is None else len(admission.forced)
        return read + max(0, self.generation.generated + taken_back - self._generated_before)

    def _message(self, max_tokens: int) -> generation_pb2.GenerateResponse:
        """The next message: what is ready, at most `max_tokens` tokens."""
        piece = self._buffer.take(max_tokens)
        self._acknowledge(len(piece.tokens))
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
        end = end_message(self.generation, self.finish or FinishReason.CANCELLED, self._buffer.matched)
        end.usage.queue_time.CopyFrom(duration(self.queue_s))
        if self._first_token_s is not None:
            end.usage.prompt_time.CopyFrom(duration(max(0.0, self._first_token_s - self._opened_s - self.queue_s)))
            end.usage.generation_time.CopyFrom(duration(self._last_token_s - self._first_token_s))
        if self._receipt is not None:
            end.receipt.CopyFrom(self._receipt)
        return end
