"""Streams with known tokens: the requests of each stream, what it has received, and its twin.

A stream plays one session, turn after turn, through `gruve.client`. Some streams are steered at fixed positions. Its
twin plays the same turns on an undisturbed server. Knows nothing about the injected faults.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
import time
from collections.abc import Callable, Sequence
from typing import Self

from gruve.bench.chaos.replicas import Replica
from gruve.bench.synthetic import VOCABULARY_SIZE
from gruve.client import AsyncClient, AsyncTokenStream, CallFailed, Chunk, GenerateOptions, Reconnect

PROMPT_TOKENS = 5
WINDOW = 64
STEERED_TOKENS = 150
"""A turn is steered within its first 150 tokens."""
MORE_TOKENS = 40
"""Tokens for which an unfinished turn continues after the last fault."""
PATIENT = Reconnect(max_reconnects=40, backoff_max_s=1.0)
"""The clients' retries. Servers that are killed every few seconds rarely have room for all clients at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rewind:
    """A rewind from one position to another. Both are counted from the turn's first generated token."""

    read: int
    to: int
    seed: int


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One generation."""

    prompt: tuple[int, ...]
    seed: int
    max_tokens: int
    changes: tuple[tuple[int, float], ...] = ()
    """The number of tokens after which each temperature applies."""
    rewind: Rewind | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The turns of the streams, the same on every server."""

    model: str
    min_length: int
    """The minimum number of generated tokens of a turn."""
    max_length: int
    """The maximum number of generated tokens of a turn."""
    ends: bool = True
    """Whether a turn that has begun is always read to its end."""

    def turn(self, stream: int, number: int) -> Turn:
        """The turn of a stream.

        Of four streams, one changes its temperature three times, and one changes it and rewinds.
        """
        rng = random.Random(f"{stream} {number}")  # noqa: S311 - a plan that can be repeated
        turn = Turn(
            prompt=tuple(rng.randrange(1, VOCABULARY_SIZE) for _ in range(PROMPT_TOKENS)),
            seed=rng.getrandbits(64),
            max_tokens=rng.randint(self.min_length, self.max_length),
        )
        if stream % 4 == 2:
            at = sorted(rng.sample(range(1, STEERED_TOKENS), 3))
            return dataclasses.replace(turn, changes=tuple((i, rng.choice((0.5, 0.8, 1.3))) for i in at))
        if stream % 4 == 3:
            rewind = Rewind(read=rng.randint(60, 90), to=rng.randint(30, 59), seed=rng.getrandbits(64))
            return dataclasses.replace(turn, changes=((rng.randint(1, 30), 1.3),), rewind=rewind)
        return turn


@dataclasses.dataclass(slots=True)
class Heard:
    """The result of one turn."""

    tokens: dict[int, int] = dataclasses.field(default_factory=dict)
    """The tokens by position, without those that were rewound."""
    repeated: int = 0
    ended: bool = False

    def take(self, chunk: Chunk) -> None:
        """Records a chunk; raises `ValueError` if a control was refused."""
        answer = chunk.answer
        if answer is not None and answer.position is None:
            raise ValueError(f"control {answer.control_id} was refused: {answer.reason}: {answer.message}")
        if answer is not None and answer.position is not None:
            self.tokens = {at: token for at, token in self.tokens.items() if at < answer.position}
        for at, token in enumerate(chunk.token_ids, chunk.position):
            self.repeated += at in self.tokens
            self.tokens[at] = token


async def play(
    client: AsyncClient,
    session: str,
    turn: Turn,
    first: int,
    heard: Heard,
    *,
    tokens_per_s: float | None = None,
    after: Callable[[Chunk], bool] = lambda _: True,
) -> None:
    """Plays a turn whose first token has position `first`; `after` each chunk says whether to read on."""
    async with _ask(client, session, turn, first, tokens_per_s) as stream:
        rewind, unanswered = turn.rewind, len(turn.changes)
        async for chunk in stream:
            heard.take(chunk)
            unanswered -= chunk.answer is not None
            # A change rewinds tokens that were sent before it took effect, so nothing is final until it is answered.
            settled = chunk.position + len(chunk.token_ids) if not unanswered else first
            if rewind is not None and settled >= first + rewind.read:
                stream.rewind(first + rewind.to, seed=rewind.seed)  # type: ignore[attr-defined] # a conversation
                rewind = None
            if not after(chunk):
                return
        heard.ended = True


def _ask(client: AsyncClient, session: str, turn: Turn, first: int, tokens_per_s: float | None) -> AsyncTokenStream:
    options: GenerateOptions = {
        "max_tokens": turn.max_tokens,
        "seed": turn.seed,
        "temperature": 1.0,
        "ignore_eos": True,
        "max_tokens_per_second": tokens_per_s,
    }
    if not (turn.changes or turn.rewind):
        return client.generate(turn.prompt, session_id=session, **options)
    conversation = client.converse(turn.prompt, session_id=session, window=WINDOW, **options)
    for at, temperature in turn.changes:
        conversation.change(temperature=temperature, at_position=first + at)
    return conversation


class Stream:
    """One stream that plays a session."""

    def __init__(self, plan: Plan, number: int) -> None:
        self.number = number
        self.session = ""
        self.turns: list[Heard] = []
        self.streaming = False
        """Whether a generation has begun and not ended."""
        self.heard_s = 0.0
        """When it last received a token."""
        self.failure = ""
        self.plan = plan
        self._position = 1
        self._left = MORE_TOKENS

    @property
    def position(self) -> int:
        """The reader's position in the generation, counted from the first generated token."""
        return len(self.turns[-1].tokens) if self.turns else 0

    @property
    def end(self) -> int:
        """The end of its transcript after its last turn."""
        return self._position

    async def run(self, client: AsyncClient, tokens_per_s: float, crowd: Streams) -> None:
        """Plays turns until `crowd` ends them."""
        self._left = MORE_TOKENS
        try:
            while not crowd.ending:
                turn, heard = self.plan.turn(self.number, len(self.turns)), Heard()
                self.turns.append(heard)
                first = self._position + len(turn.prompt)
                hear = functools.partial(self._hear, crowd)
                await play(client, self.session, turn, first, heard, tokens_per_s=tokens_per_s, after=hear)
                self._position = first + turn.max_tokens
                self.streaming = False
        except (CallFailed, ValueError) as error:
            self.failure = f"stream {self.number}, turn {len(self.turns) - 1}, {self.position} tokens: {error}"
        finally:
            self.streaming = False
            crowd.moved.set()

    def _hear(self, crowd: Streams, chunk: Chunk) -> bool:
        """Records a chunk and returns whether to read on."""
        if chunk.token_ids:
            self.heard_s, self.streaming = time.monotonic(), True
        if crowd.ending and not self.plan.ends:
            self._left -= len(chunk.token_ids)
        crowd.moved.set()
        return self._left > 0


@dataclasses.dataclass(slots=True)
class Difference:
    """The differences between streams and their twins."""

    tokens: int = 0
    """How many tokens were compared."""
    differing: int = 0
    lost: int = 0
    repeated: int = 0
    places: list[str] = dataclasses.field(default_factory=list)
    """Descriptions of the differences."""

    def compare(self, what: str, heard: Heard, twin: Heard) -> None:
        """Compares one turn. A turn that was left early has no lost tokens after its last one."""
        end = max(heard.tokens, default=0) if not heard.ended else max(twin.tokens)
        self.tokens += len(heard.tokens)
        self.repeated += heard.repeated
        differing = [at for at, token in heard.tokens.items() if twin.tokens.get(at) != token]
        self._add(what, differing, [at for at in twin.tokens if at <= end and at not in heard.tokens])

    def compare_record(self, what: str, kept: Sequence[int], twin: Sequence[int], least: int) -> None:
        """Compares a transcript of a server or store, which must have at least `least` tokens."""
        differing = [at for at, (a, b) in enumerate(zip(kept, twin, strict=False)) if a != b]
        self._add(what, differing, range(len(kept), least))

    def _add(self, what: str, differing: Sequence[int], lost: Sequence[int]) -> None:
        self.differing += len(differing)
        self.lost += len(lost)
        if differing:
            self.places.append(f"{what}: {len(differing)} tokens differ, from {min(differing)} on")
        if lost:
            self.places.append(f"{what}: {len(lost)} tokens are lost, from {min(lost)} on")


class Streams:
    """All streams of a scenario. They notify when any of them makes progress."""

    def __init__(self, plan: Plan, count: int, addresses: Sequence[str], clients: int, tokens_per_s: float) -> None:
        self.plan = plan
        self.all = [Stream(plan, i) for i in range(count)]
        self._clients = [AsyncClient(addresses, reconnect=PATIENT) for _ in range(clients)]
        self._tokens_per_s = tokens_per_s
        self.moved = asyncio.Event()
        """Set whenever a stream moves."""
        self.ending = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for stream in self.all:
            client = self._clients[stream.number % len(self._clients)]
            stream.session = (await client.create_session(self.plan.model)).id
            self._tasks.append(asyncio.create_task(stream.run(client, self._tokens_per_s, self)))
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.close()

    def client(self) -> AsyncClient:
        """One of the clients."""
        return self._clients[0]

    def flowing(self, since_s: float) -> int:
        """How many streams are inside a generation and have received a token since `since_s`."""
        return sum(stream.streaming and stream.heard_s > since_s for stream in self.all)

    async def until(self, what: str, condition: Callable[[], bool], within_s: float) -> None:
        """Waits until a condition holds.

        Raises `TimeoutError` with the condition, or the error that ended the streams.
        """
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    for task in self._tasks:
                        if task.done():
                            task.result()
                    if len(failed := self._failures()) == len(self.all):
                        raise ChildProcessError(f"every stream has failed; the first: {failed[0]}")
                    self.moved.clear()
                    await self.moved.wait()
        except TimeoutError:
            failed, positions = self._failures(), sorted(stream.position for stream in self.all)
            raise TimeoutError(
                f"{what}: not within {within_s:.0f} s; positions {positions[0]} to {positions[-1]}, {len(failed)} of"
                f" {len(self.all)} streams have failed{''.join(f'; {failure}' for failure in failed[:1])}"
            ) from None

    def _failures(self) -> list[str]:
        return [stream.failure for stream in self.all if stream.failure]

    async def finish(self, within_s: float) -> None:
        """Lets every stream end its turn. One that does not end has failed."""
        self.ending = True
        _, late = await asyncio.wait(self._tasks, timeout=within_s)
        for stream, task in zip(self.all, self._tasks, strict=True):
            if task in late:
                stream.failure = f"stream {stream.number} did not end within {within_s:.0f} s"


class Twins:
    """The same turns on an undisturbed server. Each turn is played once and its result is cached."""

    def __init__(self, replica: Replica) -> None:
        """`replica` is started when it is first needed."""
        self._replica = replica
        self._client = AsyncClient(replica.address)
        self._played: dict[tuple[Plan, int], _Twin] = {}
        self._playing = asyncio.Lock()

    async def compare(self, streams: Streams, transcripts: Sequence[tuple[Stream, Sequence[int], int]]) -> Difference:
        """Compares every turn of every stream, and transcripts, which must have at least the given number of tokens."""
        difference = Difference()
        async with self._playing:
            if not self._replica.pid:
                await self._replica.start()
            await asyncio.gather(*(self._play(stream) for stream in streams.all))
        for stream in streams.all:
            twin = self._played[stream.plan, stream.number]
            for number, (heard, undisturbed) in enumerate(zip(stream.turns, twin.turns, strict=False)):
                difference.compare(f"stream {stream.number}, turn {number}", heard, undisturbed)
        for stream, kept, least in transcripts:
            twin = self._played[stream.plan, stream.number]
            difference.compare_record(f"stream {stream.number}, its record", kept, twin.transcript, least)
        return difference

    async def close(self) -> None:
        """Closes the connection and ends the server."""
        await self._client.close()
        await self._replica.kill()

    async def _play(self, stream: Stream) -> None:
        """Plays the twin as far as the stream has played."""
        twin = self._played.setdefault((stream.plan, stream.number), _Twin())
        twin.session = twin.session or (await self._client.create_session(stream.plan.model)).id
        if len(twin.turns) >= len(stream.turns):
            return
        for number in range(len(twin.turns), len(stream.turns)):
            turn, heard = stream.plan.turn(stream.number, number), Heard()
            first = twin.position + len(turn.prompt)
            await play(self._client, twin.session, turn, first, heard)
            twin.turns.append(heard)
            twin.position = first + turn.max_tokens
        twin.transcript = (await self._client.get_session(twin.session)).token_ids


@dataclasses.dataclass(slots=True)
class _Twin:
    session: str = ""
    position: int = 1
    turns: list[Heard] = dataclasses.field(default_factory=list)
    transcript: Sequence[int] = ()
