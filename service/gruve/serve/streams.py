"""One stream: blocks of tokens come in from the engine, messages go out as fast as their reader takes them.

A message carries everything that is ready when its writer is free, so messages grow by themselves when the reader or
the loop falls behind. Among many streams a writer also waits a little between its messages: a message costs as much as
the decoding of a token or two, so fewer and larger ones leave more of the machine to the model. The first tokens never
wait, nor do the last ones or a full message; what was accepted is told together with the first tokens, unless they take
longer than that wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from gruve.engine.generations import Opened, record
from gruve.engine.sequence import FinishReason, Progress, TokenLogprobs
from gruve.errors import EngineFailed, GruveError, HandedOver, PositionMismatch, TakenOver
from gruve.model.tokenizer import Tokenizer
from gruve.serve.fields import FINISH, duration, logprobs_message
from gruve.serve.text import TextAssembler
from gruve.v1 import generation_pb2


class Stream:
    """One call's view of a generation, and the one who records the generation's progress in its session."""

    def __init__(
        self,
        opened: Opened,
        tokenizer: Tokenizer,
        start: generation_pb2.GenerationStart,
        most_tokens: int,
        on_end: Callable[[Stream], None],
        gap_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.opened = opened
        self.generation = opened.generation
        self.sequence_id: int | None = None
        self.ended = asyncio.Event()
        """Set once the engine has let go: the record says all that there is to say."""
        self.leaving = False
        """Whether nobody wants it any more, and only the engine has yet to let go; what that still delivers is recorded
        and sent to nobody."""
        self.finish: FinishReason | None = None
        self.queue_s = 0.0
        self._texts = tokenizer.texts
        self._start: generation_pb2.GenerationStart | None = start
        self._most_tokens = most_tokens
        self._on_end = on_end
        self._assembler = TextAssembler(tokenizer.texts, opened.stops, opened.generation.min_tokens)
        self._next = opened.generation.prompt_position
        # What is ready to be sent: tokens from `_position` on, and log-probabilities if asked for. What stands before
        # has been fed to the assembler.
        self._position = opened.first_position
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._error: GruveError | None = None
        self._finished = False
        self._sent_end = False
        self._changed = asyncio.Event()
        # Between two messages: how long at least, until when, and what ends the wait.
        self._gap_s = gap_s
        self._due_s = 0.0
        self._wait: asyncio.TimerHandle | None = None
        self._opened_s = time.monotonic()
        self._first_token_s: float | None = None
        self._last_token_s = self._opened_s
        self._take_tokens(self._next, opened.known, ())
        if opened.admission is None:
            self._end(self.generation.finish_reason or FinishReason.CANCELLED)

    def take(self, progress: Progress) -> None:
        """Hears from the engine; see `hosting.Listener`."""
        opened, now_s = self.opened, time.monotonic()
        if progress.failed is not None:
            self._error = EngineFailed(progress.failed)
        if record(opened.session, opened.generation, progress):
            self._last_token_s = now_s
            if self._first_token_s is None:
                self._first_token_s = now_s
        self._take_tokens(progress.position, progress.tokens, progress.logprobs)
        if progress.finish_reason is not None or progress.failed is not None:
            self.queue_s = progress.queue_s
            reason = progress.finish_reason
            if reason is FinishReason.LENGTH:  # or computed again as far as it went: the record knows why it ended
                reason = self.generation.finish_reason
            self._end(reason)
        ended = self.ended.is_set()
        if not self._tokens and not ended:
            return
        if ended or now_s >= self._due_s or len(self._tokens) >= self._most_tokens:
            self._wake()
        elif self._wait is None:
            self._wait = asyncio.get_running_loop().call_later(self._due_s - now_s, self._wake)

    def _wake(self) -> None:
        """Lets the writer look at what is ready."""
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        self._changed.set()

    def fail(self, error: GruveError) -> None:
        """Hears that `take` has raised; what was recorded before stands."""
        self._error = error
        if not self.ended.is_set():
            self._end(None)
        self._changed.set()

    def take_over(self) -> None:
        """Ends this stream for another one that resumes its generation."""
        self._error = TakenOver(f"generation {self.generation.id!r} was resumed on another stream")
        self._changed.set()

    async def messages(self) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """The messages of the call, the first with `start`, the last with `end`; raises what ends it otherwise."""
        started = False
        if not self._tokens and self.finish is None and (gap_s := self._gap_s()) > 0.0:
            patience = asyncio.get_running_loop().call_later(gap_s, self._changed.set)
            await self._changed.wait()
            patience.cancel()
        while not self._sent_end:
            if self._error is not None:
                raise self._error
            if not started or self.finish is not None or (self._tokens and self._wait is None):
                started = True
                message = self._message()
                if message.token_ids:
                    self._due_s = time.monotonic() + self._gap_s()
                yield message
            else:
                self._changed.clear()
                await self._changed.wait()
        if self.finish is FinishReason.HANDED_OVER:
            raise HandedOver(self.generation.next_position)

    def _end(self, reason: FinishReason | None) -> None:
        """The generation produces nothing more for this call; without a reason it has failed."""
        self.finish = reason
        generation, first = self.generation, self.opened.first_position
        self._finished = generation.finished and reason is generation.finish_reason  # else only this call has ended
        if self._finished and first > generation.next_position and self._error is None:
            self._error = PositionMismatch(
                f"from_position is {first}; the generation ended at {generation.next_position}",
                position=self.opened.session.position,
            )
        self.ended.set()
        self._on_end(self)

    def _take_tokens(self, position: int, tokens: Sequence[int], logprobs: tuple[TokenLogprobs, ...]) -> None:
        """Takes consecutive tokens, skipping those seen before, and makes ready what is to be sent."""
        if seen := max(0, self._next - position):
            position, tokens, logprobs = position + seen, tokens[seen:], logprobs[seen:]
        if not tokens:
            return
        self._next = position + len(tokens)
        if before := max(0, self._position - position):  # these the client has
            self._texts_of(position, tokens[:before])
            tokens, logprobs = tokens[before:], logprobs[before:]
        self._tokens += tokens
        self._logprobs += logprobs

    def _texts_of(self, position: int, tokens: Sequence[int]) -> str:
        """The text that these tokens make certain, the first of them being at `position`; each is asked for once."""
        prompt = max(0, self.generation.start_position - position)
        pieces = [self._texts[token] for token in tokens[:prompt]]
        pieces += map(self._assembler.feed, tokens[prompt:])
        return "".join(pieces)

    def _message(self) -> generation_pb2.GenerateResponse:
        """Everything that is ready, up to the most a message may hold."""
        most = self._most_tokens
        tokens, self._tokens = self._tokens[:most], self._tokens[most:]
        text = self._texts_of(self._position, tokens)
        last = self.finish is not None and not self._tokens
        if last and self._finished:
            text += self._assembler.finish()
        message = generation_pb2.GenerateResponse(position=self._position, token_ids=tokens, text=text)
        if self._logprobs:
            message.logprobs.extend(logprobs_message(entry, self._texts) for entry in self._logprobs[: len(tokens)])
            del self._logprobs[: len(tokens)]
        self._position += len(tokens)
        if self._start is not None:
            message.start.CopyFrom(self._start)
            self._start = None
        if last:
            message.end.CopyFrom(self._end_message())
            self._sent_end = True
        return message

    def _end_message(self) -> generation_pb2.GenerationEnd:
        generation = self.generation
        end = generation_pb2.GenerationEnd(
            finish_reason=FINISH[self.finish or FinishReason.CANCELLED],
            next_position=generation.next_position,
            usage=generation_pb2.Usage(
                prompt_tokens=generation.start_position - generation.prompt_position,
                generated_tokens=generation.drawn,
                queue_time=duration(self.queue_s),
            ),
        )
        if self._first_token_s is not None:
            end.usage.prompt_time.CopyFrom(duration(max(0.0, self._first_token_s - self._opened_s - self.queue_s)))
            end.usage.generation_time.CopyFrom(duration(self._last_token_s - self._first_token_s))
        if self.finish is FinishReason.STOP:
            matched = self._assembler.matched
            if isinstance(matched, str):
                end.stop = matched
            elif matched is not None:
                end.stop_token_id = matched
        return end
