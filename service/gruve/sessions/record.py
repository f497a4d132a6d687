"""The session record: a transcript with the state that caches it, and the generations that wrote it.

A session's state has consumed the first `consumed` tokens of its transcript. After an orderly end that is all but the
last, the pending token; after a stream that was cut inside a prompt, fewer; and 0, without a state, when the state must
be rebuilt. Whatever is missing is caught up by forcing the rest of the transcript before anything else: the state is a
cache of the transcript, never the other way round.

Knows no tensors, requests, threads or wire format.
"""

from __future__ import annotations

import array
import bisect
import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from gruve.engine.sequence import FinishReason
from gruve.model.sampling import SamplingParameters

START_TOKEN = 0
SESSION_OVERHEAD_BYTES = 1_024
"""What a session costs beside state, transcript and generations: objects, the table's entry, the queue's."""
GENERATION_OVERHEAD_BYTES = 768
BIAS_BYTES = 128
"""One entry of a logit bias: a tuple and two numbers."""
CHANGE_BYTES = 96
SNAPSHOT_TOKENS = 256
"""Reading forward from the nearest snapshot takes at most so many steps, `NEAR_TOKENS` back."""
NEAR_TOKENS = 1_000
MAX_SNAPSHOTS = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What a control did to a generation while it ran. Of several at one position the last one holds."""

    position: int
    """Where it took effect: before the token there was chosen."""
    sampling: SamplingParameters
    """The parameters in force from there on."""
    inserted: int = 0
    """How many tokens of a prompt it put into the transcript, from `position` on."""


@dataclasses.dataclass(slots=True)
class Generation:
    """One accepted request to continue a session, and how far it came."""

    id: str
    prompt_position: int
    """Position of the prompt's first token; a start token that follows an end stands before it."""
    start_position: int
    """Position of the first token it draws."""
    sampling: SamplingParameters
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    created_s: float
    """Unix time."""
    next_position: int
    """Where its tokens end so far."""
    finish_reason: FinishReason | None = None
    """How it ended, or how the last call that streamed it did; None while the first one streams it."""
    finished: bool = False
    """Whether it has ended for good: resuming it draws nothing more."""
    changes: list[Change] = dataclasses.field(default_factory=list)
    """By position; those of one position in the order of arrival."""
    digest: str = ""
    """Of the model that last drew for it."""
    numerics_id: str = ""

    @property
    def drawn(self) -> int:
        """How many tokens it has drawn: all from its start on but those that controls have inserted."""
        end = self.next_position
        inserted = sum(min(c.inserted, max(0, end - c.position)) for c in self.changes if c.inserted)
        return end - self.start_position - inserted

    @property
    def inserted(self) -> list[tuple[int, int]]:
        """From where to before where controls have put prompts, in order."""
        return [(c.position, c.position + c.inserted) for c in self.changes if c.inserted]

    @property
    def matching_position(self) -> int:
        """Where the text begins in which a stop may yet be completed: after the last prompt."""
        return max((after for _, after in self.inserted), default=self.start_position)

    @property
    def last_sampling(self) -> SamplingParameters:
        """The parameters in force at its end."""
        return self.changes[-1].sampling if self.changes else self.sampling

    def sampling_at(self, position: int) -> SamplingParameters:
        """The parameters in force for the token at `position`."""
        if not self.changes:
            return self.sampling
        after = bisect.bisect_right(self.changes, position, key=lambda change: change.position)
        return self.changes[after - 1].sampling if after else self.sampling

    def cut(self, position: int) -> None:
        """Forgets what it did from `position` on, which lies after its first token."""
        self.changes = [
            dataclasses.replace(c, inserted=min(c.inserted, position - c.position))
            for c in self.changes
            if c.position <= position
        ]
        self.start_position = min(self.start_position, position)
        self.next_position = position

    def memory_bytes(self) -> int:
        """What it is counted as in the budget, its logit bias apart, which generations that inherit it share."""
        texts = 4 * (len(self.id) + sum(map(len, self.stop)))
        return GENERATION_OVERHEAD_BYTES + texts + CHANGE_BYTES * len(self.changes)

    def finish(self, reason: FinishReason) -> None:
        """Ends it for good."""
        self.finish_reason, self.finished = reason, True


@dataclasses.dataclass(slots=True, eq=False)
class StoreProgress:
    """How far a store has a session. What was handed over is on its way; what is durable has arrived."""

    stored: bool = False
    """Whether the store has heard of the session at all."""
    version: int = 1
    """Of the lease under which it may be written."""
    lease_until_s: float = 0.0
    """When the lease ends, by a clock that goes on while the machine sleeps; 0 where there is none."""
    lost: bool = False
    """Whether another server has it: nothing of it may be written or sent any more."""
    position: int = 0
    """So many tokens of the transcript were handed over."""
    generations: int = 0
    """So many generations were handed over, and no rewind has touched them since."""
    snapshots: frozenset[int] = frozenset()
    """The states that were handed over and are still true."""
    stored_snapshots: frozenset[int] = frozenset()
    """The states that the store may have, true or not."""
    durable_position: int = 0
    """So many tokens have arrived."""
    events: int = 1
    """Counts what tokens depend on: its creation, generations that begin, what controls did to them, rewinds."""
    submitted_events: int = 0
    durable_events: int = 0
    changed: bool = False
    """Whether something else of it has changed, which nothing depends on: how a generation ended, when it was used."""
    cuts: int = 0
    """Counts rewinds: what was on its way then is not what there is now."""

    def cut(self, position: int, generations: int) -> None:
        """Takes note of a rewind to `position` that left the first so many generations as they were."""
        self.position = min(self.position, position)
        self.durable_position = min(self.durable_position, position)
        self.generations = min(self.generations, generations)
        self.snapshots = frozenset(at for at in self.snapshots if at < position)
        self.cuts += 1
        self.events += 1


@dataclasses.dataclass(slots=True, eq=False)
class Session:
    """One transcript with its state. A session without an id is kept by nobody: it lives as long as its sequence."""

    id: str
    model: str
    digest: str
    numerics_id: str
    idle_ttl_s: float
    created_s: float
    """Unix time."""
    used_s: float
    """Unix time of the last use."""
    transcript: array.array[int] = dataclasses.field(default_factory=lambda: array.array("H", (START_TOKEN,)))
    state: NDArray[np.float32] | None = None
    consumed: int = 0
    generations: list[Generation] = dataclasses.field(default_factory=list)
    tokenizer_digest: str = ""
    """Of the tokenizer that the transcript is in; empty while it holds the start token alone."""
    next_sampling: SamplingParameters | None = None
    """What the next generation inherits where that is not what the last one had: after a rewind or a fork."""
    snapshots: dict[int, NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    """Earlier states, and `state`, by how many tokens they have consumed."""
    in_use: bool = False
    holds: int = 0
    """How many requests have it in hand and are about to use it."""
    idle_bytes: int = 0
    """What it is counted as in the budget while it lies idle."""
    store_progress: StoreProgress = dataclasses.field(default_factory=StoreProgress)

    @property
    def position(self) -> int:
        """The transcript's length: the position of the token that comes next."""
        return len(self.transcript)

    @property
    def dirty(self) -> bool:
        """Whether there is anything that has not arrived in the store."""
        kept = self.store_progress
        return kept.durable_position < self.position or kept.durable_events < kept.events or kept.changed

    @property
    def sampling(self) -> SamplingParameters | None:
        """What the next generation inherits, or None before the first."""
        if self.next_sampling is not None:
            return self.next_sampling
        return self.generations[-1].last_sampling if self.generations else None

    def sampling_at(self, position: int) -> SamplingParameters | None:
        """The parameters in force for the token at `position`; at the end, those that the next one inherits."""
        for generation in self.generations:
            if generation.next_position > position:
                return generation.sampling_at(position)
        return self.sampling

    def generation(self, generation_id: str) -> Generation | None:
        """The generation of that id, or None."""
        return next((g for g in reversed(self.generations) if g.id == generation_id), None)

    def advance(self, state: NDArray[np.float32], consumed: int) -> None:
        """Keeps a state that has consumed so many tokens among the snapshots; the furthest is the session's own."""
        if consumed >= self.consumed:
            self.state, self.consumed = state, consumed
        snapshots = {**self.snapshots, consumed: state}
        kept = thin_snapshots(snapshots, self.position)
        self.snapshots = {at: snapshot for at, snapshot in snapshots.items() if at in kept}

    def copy(self, other: Session) -> None:
        """Takes another session's contents; both may go on by themselves."""
        self.transcript = other.transcript[:]
        self.generations = [dataclasses.replace(g, changes=list(g.changes)) for g in other.generations]
        for generation in self.generations[-1:]:
            if not generation.finished:  # its call is the other's
                generation.finish_reason = generation.finish_reason or FinishReason.CANCELLED
        self.tokenizer_digest, self.next_sampling = other.tokenizer_digest, other.next_sampling
        self.state, self.consumed, self.snapshots = other.state, other.consumed, other.snapshots

    def drop_states(self) -> None:
        """Has the state rebuilt from the transcript when the session is next used."""
        self.state, self.consumed, self.snapshots = None, 0, {}
        self.store_progress.snapshots = frozenset()

    def memory_bytes(self) -> int:
        """What it would be counted as in the budget."""
        states = {id(state): state.nbytes for state in (self.state, *self.snapshots.values()) if state is not None}
        generations = sum(generation.memory_bytes() for generation in self.generations)
        parameters = [g.sampling for g in self.generations] + [c.sampling for g in self.generations for c in g.changes]
        biases = sum({id(p.logit_bias): len(p.logit_bias) for p in parameters}.values())
        return (
            SESSION_OVERHEAD_BYTES + sum(states.values()) + 2 * len(self.transcript) + generations + BIAS_BYTES * biases
        )


def thin_snapshots(snapshots: Iterable[int], end: int, most: int = MAX_SNAPSHOTS) -> set[int]:
    """The snapshots that are kept, of those that have consumed so many tokens, of a transcript of `end` tokens.

    The further back the fewer: each time the one goes whose loss costs least for its distance from the end, never the
    latest, and none that would leave more than `SNAPSHOT_TOKENS` between two within `NEAR_TOKENS` of the end.
    """
    kept = sorted(snapshots)
    while len(kept) > most:
        before = [0, *kept]
        gaps = [after - before[i] for i, after in enumerate(kept[1:])]
        near = [
            after > end - NEAR_TOKENS - 1 and gap > SNAPSHOT_TOKENS for after, gap in zip(kept[1:], gaps, strict=True)
        ]
        cost = [gap / max(end - at, SNAPSHOT_TOKENS) for at, gap in zip(kept, gaps, strict=False)]
        del kept[min(range(len(gaps)), key=lambda i: (near[i], cost[i]))]
    return set(kept)
