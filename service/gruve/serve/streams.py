"""One stream: blocks of tokens come in from the engine, messages go out as fast as their reader takes them.

A message carries everything that is ready when its writer is free, so messages grow by themselves when the reader or
the loop falls behind. What was accepted is told together with the first tokens, unless they take too long.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from gruve.engine.sequence import FinishReason, Progress, TokenLogprobs
from gruve.errors import EngineFailed, GruveError, HandedOver, PositionMismatch, TakenOver
from gruve.model.tokenizer import Tokenizer
from gruve.serve.text_assembler import TextAssembler
from gruve.serve.validation import FINISH, duration, logprobs_message
from gruve.sessions.generations import OpenedGeneration, record
from gruve.v1 import generation_pb2


class Stream:
    """One call's view of a generation, and the one who records the generation's progress in its session."""

    def __init__(
        self,
        opened: OpenedGeneration,
        tokenizer: Tokenizer,
        start: generation_pb2.GenerationStart,
        most_tokens: int,
        on_end: Callable[[Stream], None],
        patience_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`patience_s` says how long the start waits for the first tokens, to be told together with them."""
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
        # What is ready to be sent: tokens from `_position` on, their text, and log-probabilities if asked for.
        self._position = opened.first_position
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        # Where the next one to make ready stands, prompts in between that are not sent, text that waits for a token.
        self._first = self._filled = opened.first_position
        self._gaps: deque[tuple[int, int]] = deque()
        self._carried = ""
        self._error: GruveError | None = None
        self._sent_end = False
        self._changed = asyncio.Event()
        self._patience_s = patience_s
        self._opened_s = time.monotonic()
        self._first_token_s: float | None = None
        self._last_token_s = self._opened_s
        self._take_tokens(self._next, opened.known, ())
        if opened.admission is None:
            self._known_to_its_end()

    def _known_to_its_end(self) -> None:
        self._end(self.generation.finish_reason or FinishReason.CANCELLED)

    def take(self, progress: Progress) -> None:
        """Hears from the engine; see `model_host.Listener`."""
        opened = self.opened
        if progress.incident is not None:
            self._error = EngineFailed(progress.incident)
        self._note(record(opened.session, opened.generation, progress))
        self._take_tokens(progress.position, progress.tokens, progress.logprobs)
        if progress.ended:
            self.queue_s = progress.queue_s
            reason = progress.finish_reason
            if reason is FinishReason.LENGTH:  # or computed again as far as it went: the record knows why it ended
                reason = self.generation.finish_reason
            self._end(reason)
        self._wake()

    def _note(self, drawn: int) -> None:
        if drawn:
            self._last_token_s = time.monotonic()
            if self._first_token_s is None:
                self._first_token_s = self._last_token_s

    def _wake(self) -> None:
        """Lets the writer look at what is ready, if there is anything to say."""
        if self._tokens or self.ended.is_set():
            self._changed.set()

    def fail(self, error: GruveError) -> None:
        """Hears that `take` has raised; what was recorded before stands."""
        self._error = error
        if not self.ended.is_set():
            self._end(None)
        self._changed.set()

    def take_over(self) -> None:
        """Ends this stream for another one that resumes its generation."""
        self.lose(TakenOver(f"generation {self.generation.id!r} was resumed on another stream"))

    def lose(self, error: GruveError) -> None:
        """Ends this stream for what has happened to its session."""
        self._error = error
        self._changed.set()

    async def messages(self) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """The messages of the call, the first with `start`, the last with `end`; raises what ends it otherwise."""
        started = False
        if not self._tokens and self.finish is None and (patience_s := self._patience_s()) > 0.0:
            patience = asyncio.get_running_loop().call_later(patience_s, self._changed.set)
            await self._changed.wait()
            patience.cancel()
        while not self._sent_end:
            if self._error is not None:
                raise self._error
            if not started or self.finish is not None or self._tokens:
                started = True
                yield self._message()
            else:
                self._changed.clear()
                await self._changed.wait()
        if self.finish is FinishReason.HANDED_OVER:
            raise self._handed_over()

    def _handed_over(self) -> HandedOver:
        return HandedOver(self.generation.next_position)

    def _end(self, reason: FinishReason | None) -> None:
        """The generation produces nothing more for this call; without a reason it has failed."""
        self.finish = reason
        generation, first = self.generation, self._first
        if generation.finished and reason is generation.finish_reason:  # else only this call has ended
            self._text.append(self._carried + self._assembler.finish())
            if first > generation.next_position and self._error is None:
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
        if not self.generation.changes:
            prompt = max(0, self.generation.start_position - position)
            pieces = [self._texts[token] for token in tokens[:prompt]] if prompt else []
            pieces += map(self._assembler.feed, tokens[prompt:])
            self._fill(position, tokens, pieces, logprobs)
            return
        for at, after, drawn in self._runs(position, self._next):
            run = slice(at - position, after - position)
            if drawn:
                pieces = [self._assembler.feed(token) for token in tokens[run]]
            else:  # no stop is completed across a prompt
                pieces = [self._texts[token] for token in tokens[run]]
                self._carried += self._assembler.finish()
            if drawn or self.opened.asked.echo:
                pieces[0], self._carried = self._carried + pieces[0], ""
                self._fill(at, tokens[run], pieces, logprobs[run])
            else:
                self._leave_out(at, after)

    def _runs(self, position: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """From where to where tokens are of a prompt or drawn, and whether they are drawn."""
        prompts = [(self.generation.prompt_position, self.generation.start_position), *self.generation.inserted]
        for begin, after in prompts:
            if position < min(begin, end):
                yield position, min(begin, end), True
            position = max(position, min(begin, end))
            if position < min(after, end):
                yield position, min(after, end), False
            position = max(position, min(after, end))
        if position < end:
            yield position, end, True

    def _fill(
        self, position: int, tokens: Sequence[int], pieces: list[str], logprobs: tuple[TokenLogprobs, ...]
    ) -> None:
        """Makes ready what the client does not have."""
        if before := max(0, self._filled - position):
            tokens, pieces, logprobs = tokens[before:], pieces[before:], logprobs[before:]
        self._tokens += tokens
        self._text += pieces
        self._logprobs += logprobs
        self._filled = max(self._filled, position + len(tokens))

    def _leave_out(self, position: int, after: int) -> None:
        """Has the next token after a prompt that is not sent."""
        if after <= self._filled:
            return
        if self._tokens:
            self._gaps.append((max(position, self._filled), after))
        else:
            self._position = after
        self._filled = after

    def _message(self, most: int | None = None) -> generation_pb2.GenerateResponse:
        """Everything that is ready, up to the most a message may hold, or less."""
        most = self._most_tokens if most is None else min(most, self._most_tokens)
        while self._gaps and self._gaps[0][0] == self._position:
            self._position = self._gaps.popleft()[1]
        if self._gaps:
            most = min(most, self._gaps[0][0] - self._position)
        tokens, self._tokens = self._tokens[:most], self._tokens[most:]
        # The texts that go with the tokens; what the end released goes with the last of them.
        text, self._text = (self._text[:most], self._text[most:]) if self._tokens else (self._text, [])
        message = generation_pb2.GenerateResponse(position=self._position, token_ids=tokens, text="".join(text))
        if self._logprobs:
            message.logprobs.extend(logprobs_message(entry, self._texts) for entry in self._logprobs[: len(tokens)])
            del self._logprobs[: len(tokens)]
        self._position += len(tokens)
        if self._start is not None:
            message.start.CopyFrom(self._start)
            self._start = None
        if self.finish is not None and not self._tokens:
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
                generated_tokens=generation.generated,
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
