"""The send buffer of a stream: tokens go in as they are generated, and come out as pieces that fit into a message.

Tokens that the client has already are skipped, as are prompts unless it asked for an echo. Text is withheld while it
may become part of a stop string, and is sent with a later token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gruve.engine.sequence import TokenLogprobs
from gruve.serve.streams.text_assembler import TextAssembler
from gruve.sessions.record import Generation, Session


class Piece(NamedTuple):
    """Consecutive tokens of a message."""

    position: int
    tokens: list[int]
    text: str
    logprobs: list[TokenLogprobs]


class SendBuffer:
    """The tokens of one generation that its client does not have yet."""

    def __init__(
        self,
        generation: Generation,
        texts: Sequence[str],
        assembler: TextAssembler,
        first_position: int,
        *,
        echo: bool,
    ) -> None:
        """`texts` are the vocabulary's; `first_position` is that of the first token to send."""
        self.next_position = generation.prompt_position
        """The position of the next token to add."""
        self.first_position = first_position
        self._generation = generation
        self._texts = texts
        self._assembler = assembler
        self._echo = echo
        self._position = self._filled = first_position
        """The positions of the first token that is ready, and of the next one to make ready."""
        self._tokens: list[int] = []
        self._text: list[str] = []
        """The text of each token, and at the end that which the end of the generation released."""
        self._logprobs: list[TokenLogprobs] = []
        self._gaps: deque[tuple[int, int]] = deque()
        """The (begin, end) positions of prompts between ready tokens that are not sent."""
        self._carried = ""
        """Text that was released by a prompt that is not sent, and goes with the next token."""

    def __len__(self) -> int:
        """How many tokens are ready."""
        return len(self._tokens)

    @property
    def position(self) -> int:
        """The position of the next token to send."""
        while self._gaps and self._gaps[0][0] == self._position:
            self._position = self._gaps.popleft()[1]
        return self._position

    @property
    def has_gaps(self) -> bool:
        """Whether a prompt that is not sent lies among the ready tokens."""
        return bool(self._gaps)

    @property
    def matched(self) -> str | int | None:
        """The stop string or stop token id that ended the generation."""
        return self._assembler.matched

    def add(self, position: int, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> None:
        """Adds consecutive tokens from `position` on. Tokens before `next_position` were added already."""
        if seen := max(0, self.next_position - position):
            position, tokens, logprobs = position + seen, tokens[seen:], logprobs[seen:]
        if not tokens:
            return
        self.next_position = position + len(tokens)
        if not self._generation.changes:
            prompt = max(0, self._generation.start_position - position)
            pieces = [self._texts[token] for token in tokens[:prompt]] if prompt else []
            pieces += map(self._assembler.feed, tokens[prompt:])
            self._fill(position, tokens, pieces, logprobs)
            return
        for begin, end, generated in self._runs(position, self.next_position):
            run = slice(begin - position, end - position)
            if generated:
                pieces = [self._assembler.feed(token) for token in tokens[run]]
            else:  # no stop string extends across a prompt
                pieces = [self._texts[token] for token in tokens[run]]
                self._carried += self._assembler.finish()
            if generated or self._echo:
                pieces[0], self._carried = self._carried + pieces[0], ""
                self._fill(begin, tokens[run], pieces, logprobs[run])
            else:
                self._skip(begin, end)

    def finish(self) -> None:
        """Releases the text that was withheld: the generation has ended."""
        self._text.append(self._carried + self._assembler.finish())

    def take(self, max_tokens: int) -> Piece:
        """Removes and returns the next tokens, at most `max_tokens` and none beyond a prompt that is not sent."""
        position = self.position
        if self._gaps:
            max_tokens = min(max_tokens, self._gaps[0][0] - position)
        tokens, self._tokens = self._tokens[:max_tokens], self._tokens[max_tokens:]
        # The text that the end released goes with the last token.
        text, self._text = (self._text[:max_tokens], self._text[max_tokens:]) if self._tokens else (self._text, [])
        logprobs = self._logprobs[: len(tokens)]
        del self._logprobs[: len(tokens)]
        self._position += len(tokens)
        return Piece(position, tokens, "".join(text), logprobs)

    def truncate(self, max_tokens: int) -> None:
        """Drops the ready tokens after the first `max_tokens`."""
        del self._tokens[max_tokens:], self._text[max_tokens:], self._logprobs[max_tokens:]

    def rewind(self, session: Session, position: int) -> None:
        """Makes `position` the next one to add and to send, as if nothing had been added from there on."""
        if self.next_position == position and not self._tokens:
            return
        generation = self._generation
        self.first_position = min(self.first_position, position)
        self._position = self._filled = self.next_position = position
        self._tokens, self._text, self._logprobs, self._carried = [], [], [], ""
        self._gaps.clear()
        begin = position
        for at, after in reversed(generation.inserted if not self._echo else []):
            begin = at if after == begin else begin
        if begin < position:  # text that the prompts before `position`, which are not sent, have released
            previous_ends = (after for _, after in generation.inserted if after <= begin)
            since = max(previous_ends, default=generation.start_position)
            self._assembler.seek(generation.generated, session.transcript[since:begin])
            self._carried = self._assembler.finish()
        self._assembler.seek(generation.generated, session.transcript[generation.matching_position : position])

    def unsent(self, end: int) -> int:
        """How many tokens up to `end` are yet to be sent; negative if the next one to send lies beyond."""
        begin = self.position
        prompts = [] if self._echo else self._generation.inserted
        return end - begin - sum(max(0, min(after, end) - max(at, begin)) for at, after in prompts)

    def _runs(self, position: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Splits positions into (begin, end, generated) where prompts and generated tokens alternate."""
        prompts = [(self._generation.prompt_position, self._generation.start_position), *self._generation.inserted]
        for begin, after in prompts:
            if position < min(begin, end):
                yield position, min(begin, end), True
            position = max(position, min(begin, end))
            if position < min(after, end):
                yield position, min(after, end), False
            position = max(position, min(after, end))
        if position < end:
            yield position, end, True

    def _fill(self, position: int, tokens: Sequence[int], pieces: list[str], logprobs: Sequence[TokenLogprobs]) -> None:
        """Makes the tokens ready that the client does not have."""
        if known := max(0, self._filled - position):
            tokens, pieces, logprobs = tokens[known:], pieces[known:], logprobs[known:]
        self._tokens += tokens
        self._text += pieces
        self._logprobs += logprobs
        self._filled = max(self._filled, position + len(tokens))

    def _skip(self, begin: int, end: int) -> None:
        """Leaves a prompt out."""
        if end <= self._filled:
            return
        if self._tokens:
            self._gaps.append((max(begin, self._filled), end))
        else:
            self._gaps.clear()  # those before this one, which `position` has not passed yet
            self._position = end
        self._filled = end
