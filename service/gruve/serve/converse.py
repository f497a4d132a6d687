"""A stream that its client steers: sends no more than was granted, and has controls take effect at exact positions.

The engine knows nothing of controls. It decodes the generation piece by piece: up to where the next control takes
effect, up to where the credit ends, or until a control comes and the sequence is called back. Between two pieces the
session's record is cut to the position of the control, what that does is recorded, and the engine goes on from there.
So a piece is what any generation is when it is resumed, and as exact.

A control takes effect when everything before its position has been sent and nothing from it on; what was computed from
there on is taken back.
"""

from __future__ import annotations

import asyncio
import bisect
import dataclasses
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

import grpc

from gruve.engine.sequence import FinishReason, Progress
from gruve.errors import Draining, GruveError, HandedOver, InvalidField, PositionMismatch, TranscriptFull
from gruve.serve.model_host import ModelHost
from gruve.serve.status import internal_error, shorten
from gruve.serve.steering import MAX_CREDIT, Control, control_of, grant_of
from gruve.serve.streams import Stream
from gruve.sessions.generations import OpenedGeneration, admission_of, record
from gruve.sessions.record import SNAPSHOT_TOKENS, Change
from gruve.sessions.rewind import rewind
from gruve.v1 import generation_pb2, sampling_pb2

MOST_UNANSWERED = 64
"""Controls that are read before their answers are written."""
MOST_WAITING = 1_024
"""Controls that may wait for their positions."""
HANG_UP_S = 0.1
"""gRPC says the same of a client that has closed its side and of one that is gone, whose call it ends soon after."""


class Conversation(Stream):
    """One call's view of a generation, steered; `begin` starts it."""

    def __init__(
        self,
        opened: OpenedGeneration,
        host: ModelHost,
        start: generation_pb2.GenerationStart,
        most_tokens: int,
        on_end: Callable[[Stream], None],
        credit: int,
        most_transcript: int,
    ) -> None:
        self._credit = credit
        """Tokens that may yet be sent."""
        self._paused = self._stopped = False
        self._hung_up = False
        self._arrived: deque[Control] = deque()
        self._waiting: list[tuple[int, int, Control]] = []
        """Controls by their position and order of arrival."""
        self._order = itertools.count()
        self._answers: deque[generation_pb2.ConverseResponse] = deque()
        self._room = asyncio.Event()
        self._called_back = False
        self._may_draw_to = 0
        """Where the credit of the running sequence ends."""
        self._host = host
        self._most_transcript = most_transcript
        self._deadline: asyncio.TimerHandle | None = None
        super().__init__(opened, host.model.tokenizer, start, most_tokens, on_end, host.message_gap_s)

    def begin(self) -> None:
        """Gives the engine what there is to decode; raises what `Engine.admit` raises."""
        self._go_on(again=False)
        if (deadline_s := self.opened.asked.deadline_s) is not None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(deadline_s - time.monotonic(), self.let_go, FinishReason.DEADLINE)

    async def listen(self, requests: AsyncIterator[object]) -> None:
        """Takes what the client says until it says no more; the call fails on what is no control."""
        tokenizer = self._host.model.tokenizer
        try:
            async for request in requests:
                tokens = grant_of(request)
                if tokens is not None:
                    self._grant(tokens)
                    continue
                assert isinstance(request, generation_pb2.ConverseRequest)  # noqa: S101 - `grant_of` has seen to it
                try:
                    self._arrived.append(await control_of(request, tokenizer))
                except GruveError as error:
                    self._refuse(request.control_id, error)
                self._advance()
                while len(self._arrived) + len(self._answers) >= MOST_UNANSWERED:
                    self._room.clear()
                    await self._room.wait()
            await asyncio.sleep(HANG_UP_S)
            self._hung_up = True
            self._advance()
        except GruveError as error:
            self._break_off(error)
        except grpc.aio.BaseError:
            return  # the call has ended, and nobody is left to be heard or answered
        except Exception as error:  # noqa: BLE001 - the call must not wait for one that has gone
            self._break_off(internal_error(error, model=self._host.model.name))

    async def responses(self) -> AsyncIterator[generation_pb2.ConverseResponse]:
        """The messages of the call; see `messages`."""
        started = False
        while not self._sent_end:
            if self._error is not None:
                raise self._error
            if started and self._answers:
                yield self._answers.popleft()
                self._room.set()
                continue
            if started and self._conclude():
                continue
            most = self._sendable()
            if not started or (self.finish and not self._answers) or most:
                started = True
                message = self._message(most)
                if message.token_ids:
                    self._credit -= len(message.token_ids)
                    self._advance()
                yield generation_pb2.ConverseResponse(tokens=message)
            elif not self._answers and self._error is None:
                self._changed.clear()
                await self._changed.wait()
        if self.finish is FinishReason.HANDED_OVER:
            raise self._handed_over()

    def take(self, progress: Progress) -> None:
        """Hears from the engine; see `model_host.Listener`."""
        if progress.incident is not None:
            self.sequence_id = None
            super().take(progress)
            return
        generation = self.generation
        if progress.finish_reason is FinishReason.LENGTH and not self._is_last(progress):
            progress = progress._replace(finish_reason=FinishReason.CANCELLED)
        self._note(record(self.opened.session, generation, progress))
        self._take_tokens(progress.position, progress.tokens, progress.logprobs)
        if progress.finish_reason is None:
            if self._next >= generation.next_position >= self._may_draw_to:  # without credit it needs no slot
                self._call_back()
        else:
            self._came_back(progress)
        self._wake()

    def let_go(self, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends the call if no sequence is running, which would end by itself."""
        if self.sequence_id is not None or self.ended.is_set():
            return
        if not self.generation.finished:
            self.generation.finish_reason = reason
        self._end(reason)
        self._changed.set()

    def _is_last(self, progress: Progress) -> bool:
        """Whether a piece of full length is also the last one."""
        drawn = self.generation.generated + len(progress.tokens) - progress.forced
        end = progress.position + len(progress.tokens)
        return self.generation.finished or drawn >= self.generation.max_tokens or end >= self._most_transcript

    def _came_back(self, progress: Progress) -> None:
        """The engine has let go of the sequence, because it was called back or by itself."""
        if self.sequence_id is not None and not self.queue_s:
            self.queue_s = progress.queue_s
        self.sequence_id, self._called_back = None, False
        if self.leaving:
            self._end(FinishReason.CANCELLED)
        elif progress.finish_reason in (FinishReason.DEADLINE, FinishReason.HANDED_OVER):
            self._end(progress.finish_reason)
        else:
            if not self.generation.finished:
                self.generation.finish_reason = None
            self._advance()

    def _known_to_its_end(self) -> None:
        """Controls may yet take something back."""

    def _end(self, reason: FinishReason | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if reason in (FinishReason.DEADLINE, FinishReason.HANDED_OVER):  # the call that resumes sends the rest
            del self._tokens[self._credit :], self._text[self._credit :], self._logprobs[self._credit :]
        super()._end(reason)
        self._room.set()

    def _break_off(self, error: GruveError) -> None:
        self._error = self._error or error
        self._changed.set()

    def _grant(self, tokens: int) -> None:
        if self._credit + tokens > MAX_CREDIT:
            raise InvalidField("grant.tokens", f"{tokens} and {self._credit} not yet used are above {MAX_CREDIT}")
        self._credit += tokens
        if self.sequence_id is not None and not self._called_back:
            self._host.engine.grant(self.sequence_id, tokens)
            self._may_draw_to += tokens
        self._advance()

    def _unsent(self) -> int:
        """The position of the next token to be sent."""
        while self._gaps and self._gaps[0][0] == self._position:
            self._position = self._gaps.popleft()[1]
        return self._position

    def _sendable(self) -> int:
        """How many tokens may be sent now."""
        if self._arrived and self.finish is None:
            return 0
        most = min(self._credit, len(self._tokens))
        if self._waiting and self.finish is None:
            most = min(most, self._waiting[0][0] - self._unsent())
        return max(0, most)

    def _advance(self) -> None:
        """Carries out what is due, then has the engine go on; calls the sequence back if one is running."""
        self._changed.set()
        if self.ended.is_set():
            return
        if self.sequence_id is not None:
            if self._arrived or self._is_due() or self._is_over():
                self._call_back()
            return
        while True:
            while self._is_due():
                self._carry_out(*self._waiting.pop(0))
            if self._stopped:  # what comes after is not answered any more
                self._arrived.clear()
            if not self._arrived:
                break
            self._place(self._arrived.popleft())
        self._room.set()
        if self._is_over():
            self._stop(self._here())
        try:
            self._go_on(again=True)
        except Draining:
            self.let_go(FinishReason.HANDED_OVER)
        except GruveError as error:
            self._break_off(error)

    def _call_back(self) -> None:
        if not self._called_back and self.sequence_id is not None:
            self._called_back = True
            self._host.engine.cancel(self.sequence_id)

    def _here(self) -> int:
        """The position of the next token not yet sent, which a control that names none means."""
        return max(self._unsent(), self.generation.start_position)

    def _is_due(self) -> bool:
        """Whether the first waiting control can take effect: all before it is sent, and something comes there."""
        if not self._waiting or self._stopped:
            return False
        position, end = self._waiting[0][0], self.generation.next_position
        return position <= self._unsent() and (position < end or (position == end and not self.generation.finished))

    def _is_over(self) -> bool:
        """Whether the client, who says nothing more, can be sent nothing more."""
        ended = self.generation.finished and not self._tokens and self._next >= self.generation.next_position
        done = ended or self._stopped
        return self._hung_up and not done and not self._arrived and (self._paused or not self._credit)

    def _place(self, control: Control) -> None:
        """Decides where a control takes effect, or refuses it."""
        here, start, name = self._here(), self.generation.start_position, "at_position"
        if control.kind == "rewind":
            name = "rewind.to_position"
        if control.kind == "resume":
            self._paused = False
            self._answer(control, here)
        elif not self._is_steerable():
            self._refuse(
                control.id, PositionMismatch(f"generation {self.generation.id!r} ended and the session went on")
            )
        elif control.at is not None and control.at < start:
            self._refuse(control.id, PositionMismatch(f"{name} is {control.at}; the generation starts at {start}"))
        elif control.kind == "rewind" and control.at is not None and control.at > here:
            self._refuse(control.id, PositionMismatch(f"{name} is {control.at}; the next token is that of {here}"))
        elif sum(len(waiting.prompt) for *_, waiting in self._waiting) + len(control.prompt) >= self._most_transcript:
            why = f"the prompts that wait for their positions have more than {self._most_transcript - 1} tokens"
            self._refuse(control.id, TranscriptFull(why))
        elif len(self._waiting) >= MOST_WAITING:
            self._refuse(control.id, InvalidField(name, f"{MOST_WAITING} controls wait for their positions already"))
        elif control.kind == "stop" and control.at is None and not self._has_ended_by(here):
            self._stop(here)  # whatever credit is left for a prompt that is being sent
            self._answer(control, here)
        else:
            bisect.insort(self._waiting, (here if control.at is None else control.at, next(self._order), control))

    def _has_ended_by(self, position: int) -> bool:
        return self.generation.finished and position >= self.generation.next_position

    def _is_steerable(self) -> bool:
        return self.opened.session.generations[-1] is self.generation

    def _carry_out(self, position: int, order: int, control: Control) -> None:
        """Has a control take effect; one that falls on an inserted prompt does after it."""
        session, generation, prompt = self.opened.session, self.generation, control.prompt
        if control.kind != "rewind":
            for begin, after in generation.inserted:
                if begin <= position < after:
                    bisect.insort(self._waiting, (after, order, control))
                    return
        if prompt and position + len(prompt) >= self._most_transcript:
            why = f"the prompt has {len(prompt)} tokens and comes at {position}"
            self._refuse(
                control.id, TranscriptFull(f"{why}; at most {self._most_transcript - 1} leave room to generate")
            )
            return
        self._take_back(position, control.seed)
        sampling = dataclasses.replace(generation.sampling_at(position), **control.sampling)
        if control.kind == "change_parameters":
            self._record(Change(position, sampling))
        elif control.kind == "insert_prompt":
            session.transcript.extend(prompt)
            generation.next_position += len(prompt)
            self._record(Change(position, sampling, len(prompt)))
            if not self.opened.asked.echo or self.opened.asked.logprobs is None:  # which only the engine knows
                self._take_tokens(position, prompt, ())
        elif control.kind == "pause":
            self._paused = True
        elif control.kind == "stop":
            self._stop(position)
        self._answer(control, position)

    def _take_back(self, position: int, seed: int | None = None) -> None:
        """Makes `position` the next one, as if nothing had been computed or sent from there on."""
        generation, session = self.generation, self.opened.session
        if generation.next_position > position or generation.finished or seed is not None:
            rewind(session, position, seed, within=generation)
        if self._next == position and not self._tokens:
            return
        self._first = min(self._first, position)
        self._position = self._filled = self._next = position
        self._tokens, self._text, self._logprobs, self._carried = [], [], [], ""
        self._gaps.clear()
        begin = position
        for at, after in reversed(generation.inserted if not self.opened.asked.echo else []):
            begin = at if after == begin else begin
        if begin < position:  # the text that a prompt, of which nothing is sent, has released
            since = max(
                (after for _, after in generation.inserted if after <= begin), default=generation.start_position
            )
            self._assembler.seek(generation.generated, session.transcript[since:begin])
            self._carried = self._assembler.finish()
        self._assembler.seek(generation.generated, session.transcript[generation.matching_position : position])

    def _stop(self, position: int) -> None:
        """Finishes the generation before `position`."""
        self._take_back(position)
        self._stopped = True
        self.generation.finish(FinishReason.CANCELLED)
        self.opened.session.store_progress.events += 1

    def _record(self, change: Change) -> None:
        """Writes down what a control did; of two that inserted nothing at one position the later one stands."""
        changes = self.generation.changes
        if changes and changes[-1].position == change.position and not changes[-1].inserted:
            changes.pop()
        changes.append(change)
        self.opened.session.store_progress.events += 1

    def _go_on(self, *, again: bool) -> None:
        """Has the engine go on as far as credit and waiting controls allow; it is left alone where it need not."""
        generation, session = self.generation, self.opened.session
        end = generation.next_position
        credit = 0 if self._paused or generation.finished else max(0, self._credit - self._ready_tokens())
        before = self._waiting[0][0] if self._waiting else end + MAX_CREDIT
        if self._next >= end and (not credit or before <= end):
            return
        admission = admission_of(
            session, generation, self.opened.asked, self.opened.stops, self._most_transcript, self._next
        )
        admission = dataclasses.replace(
            admission,
            max_tokens=min(admission.max_tokens, generation.generated + max(0, before - end)),
            keep_state=not generation.finished,
            snapshot_tokens=None if generation.finished else SNAPSHOT_TOKENS,
            ready_s=self._may_go_on_s(),
            deliver_forced=True,  # one without credit has no slot once its prompt is read
            max_pending_output=self._most_tokens,
        )
        self.sequence_id = self._host.admit(admission, self, credit, again=again)
        self._may_draw_to = end + credit

    def _ready_tokens(self) -> int:
        """How many tokens up to the transcript's end are yet to be sent; negative if the first to send lies beyond."""
        unsent, end = self._unsent(), self.generation.next_position
        prompts = [] if self.opened.asked.echo else self.generation.inserted
        return end - unsent - sum(max(0, min(after, end) - max(begin, unsent)) for begin, after in prompts)

    def _may_go_on_s(self) -> float:
        """When the pace allows the next token; 0 for at once."""
        pace = self.opened.asked.max_tokens_per_second
        return 0.0 if pace is None or self._first_token_s is None else self._last_token_s + 1.0 / pace

    def _conclude(self) -> bool:
        """Ends the call if the next message is the last; whether something is to be said before."""
        end = self.generation.next_position
        if self.ended.is_set() or self.sequence_id is not None or self._arrived or not self.generation.finished:
            return False
        if self._next < end or len(self._tokens) > min(self._credit, self._most_tokens) or self._gaps:
            return False
        if self._waiting and self._waiting[0][0] < end and not self._stopped:
            return False
        for position, _, control in self._waiting:
            self._refuse(control.id, PositionMismatch(f"at_position is {position}; the generation ended at {end}"))
        self._waiting.clear()
        self._end(self.generation.finish_reason)
        return bool(self._answers)

    def _answer(self, control: Control, position: int) -> None:
        inserted = sampling_pb2.TokenIds(ids=control.prompt) if control.prompt else None
        applied = generation_pb2.ControlApplied(control_id=control.id, position=position, inserted=inserted)
        self._answers.append(generation_pb2.ConverseResponse(control_applied=applied))
        self._changed.set()

    def _refuse(self, control_id: int, error: GruveError) -> None:
        refused = generation_pb2.ControlRefused(
            control_id=control_id, reason=f"ERROR_REASON_{error.reason}", message=shorten(str(error))
        )
        self._answers.append(generation_pb2.ConverseResponse(control_refused=refused))
        self._changed.set()

    def _end_message(self) -> generation_pb2.GenerationEnd:
        end = super()._end_message()
        end.next_position = max(end.next_position, self._position) if self.generation.finished else self._position
        return end

    def _handed_over(self) -> HandedOver:
        return HandedOver(self._position)
