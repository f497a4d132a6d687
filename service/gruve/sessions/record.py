"""The session record: a transcript, the hidden state that caches it, and the generations that wrote it.

A session's state has consumed the first `consumed` tokens of its transcript: all but the last one, the pending token,
after a generation that ended; fewer after a stream that was cut inside a prompt; none, without a state, if the state
must be rebuilt. The next generation first feeds the tokens that are missing. The state follows from the transcript,
never the other way round.

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
from gruve.receipt.token_hash import TokenHash

START_TOKEN = 0
DEFAULT_TENANT = "default"
"""The tenant of sessions that were made without authentication, or before sessions had tenants."""
SESSION_OVERHEAD_BYTES = 1_024
"""Memory of a session without its states, transcript and generations: objects and the table's entries."""
GENERATION_OVERHEAD_BYTES = 768
BIAS_BYTES = 128
"""One entry of a logit bias: a tuple and two numbers."""
CHANGE_BYTES = 96
SNAPSHOT_TOKENS = 256
"""The maximum distance between two snapshots within `NEAR_TOKENS` of the transcript's end."""
NEAR_TOKENS = 1_000
MAX_SNAPSHOTS = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What a control changed in a running generation. Of several changes at one position the last one counts."""

    position: int
    """Where it took effect: it applies to the token at this position and those after it."""
    sampling: SamplingParameters
    """The parameters from there on."""
    inserted: int = 0
    """How many prompt tokens it inserted into the transcript at `position`."""


@dataclasses.dataclass(slots=True)
class Generation:
    """One accepted request to continue a session, and how far it has come."""

    id: str
    prompt_position: int
    """Position of the prompt's first token. A start token that follows an end token comes before it."""
    start_position: int
    """Position of its first generated token."""
    sampling: SamplingParameters
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    created_s: float
    """Unix time."""
    next_position: int
    """The position after its last token so far."""
    finish_reason: FinishReason | None = None
    """Why it ended, or why the last call that streamed it did; None during its first call."""
    finished: bool = False
    """Whether it has ended for good: a resume generates nothing more."""
    changes: list[Change] = dataclasses.field(default_factory=list)
    """By position, then by arrival."""
    digest: str = ""
    """Of the model that generated its last tokens."""
    numerics_id: str = ""
    computed_from: int = 0
    """The first position that `digest` and `numerics_id` have computed; 0 for its start."""
    record_bytes: int = dataclasses.field(default=0, compare=False)
    """The size of its record when it was last encoded or decoded; 0 before that."""

    @property
    def generated(self) -> int:
        """How many tokens it has generated: those from its start on, without the ones that controls inserted."""
        end = self.next_position
        if not self.changes:
            return end - self.start_position
        inserted = sum(min(c.inserted, max(0, end - c.position)) for c in self.changes if c.inserted)
        return end - self.start_position - inserted

    @property
    def inserted(self) -> list[tuple[int, int]]:
        """The (begin, end) positions of the prompts that controls inserted, in order."""
        return [(c.position, c.position + c.inserted) for c in self.changes if c.inserted]

    @property
    def matching_position(self) -> int:
        """Where the text begins in which a stop can still be completed: after the last prompt."""
        return max((after for _, after in self.inserted), default=self.start_position)

    @property
    def last_sampling(self) -> SamplingParameters:
        """The parameters at its end."""
        return self.changes[-1].sampling if self.changes else self.sampling

    def sampling_at(self, position: int) -> SamplingParameters:
        """The parameters of the token at `position`."""
        if not self.changes:
            return self.sampling
        after = bisect.bisect_right(self.changes, position, key=lambda change: change.position)
        return self.changes[after - 1].sampling if after else self.sampling

    def cut(self, position: int) -> None:
        """Removes its tokens and changes from `position` on, which lies after its first token."""
        self.changes = [
            dataclasses.replace(c, inserted=min(c.inserted, position - c.position))
            for c in self.changes
            if c.position <= position
        ]
        self.start_position = min(self.start_position, position)
        self.computed_from = min(self.computed_from, position)
        self.next_position = position

    def add(self, change: Change) -> None:
        """Records a change. It replaces an earlier one at its position that inserted nothing."""
        if self.changes and self.changes[-1].position == change.position and not self.changes[-1].inserted:
            self.changes.pop()
        self.changes.append(change)

    def memory_bytes(self) -> int:
        """Its share of the memory budget, without the logit bias, which it may share with other generations."""
        texts = 4 * (len(self.id) + sum(map(len, self.stop)))
        return GENERATION_OVERHEAD_BYTES + texts + CHANGE_BYTES * len(self.changes)

    def finish(self, reason: FinishReason) -> None:
        """Ends it for good."""
        self.finish_reason, self.finished = reason, True


@dataclasses.dataclass(slots=True, eq=False)
class StoreProgress:
    """How far a session is in the store. What was submitted is on its way; what is durable has arrived."""

    stored: bool = False
    """Whether the store has the session."""
    version: int = 1
    """Of the lease under which it is written."""
    lease_until_s: float = 0.0
    """When the lease ends, by `lease_clock`; 0 without a lease."""
    lost: bool = False
    """Whether another server has taken it: nothing of it may be written or sent any more."""
    position: int = 0
    """How many tokens of the transcript were submitted."""
    generations: int = 0
    """How many generations were submitted and have not been rewound since."""
    snapshots: frozenset[int] = frozenset()
    """The states that were submitted and are still valid."""
    stored_snapshots: frozenset[int] = frozenset()
    """The states that the store may have, valid or not."""
    durable_position: int = 0
    """How many tokens of the transcript have arrived."""
    events: int = 1
    """How many events tokens depend on there have been: its creation, generations begun, controls, rewinds."""
    submitted_events: int = 0
    durable_events: int = 0
    changed: bool = False
    """Whether something has changed that no token depends on: how a generation ended, when it was last used."""
    head_bytes: int = 0
    """The size of the head when it was last encoded or decoded; 0 before that."""
    cuts: int = 0
    """How many rewinds there have been: a write that was submitted before a rewind makes no position durable."""

    def cut(self, position: int, generations: int) -> None:
        """Records a rewind to `position` that left the first `generations` generations unchanged."""
        self.position = min(self.position, position)
        self.durable_position = min(self.durable_position, position)
        self.generations = min(self.generations, generations)
        self.snapshots = frozenset(at for at in self.snapshots if at < position)
        self.cuts += 1
        self.events += 1


@dataclasses.dataclass(slots=True, eq=False)
class Session:
    """One transcript with its state. A session without an id is in no table: it lives as long as its generation."""

    id: str
    model: str
    digest: str
    numerics_id: str
    idle_ttl_s: float
    created_s: float
    """Unix time."""
    used_s: float
    """Unix time of the last use."""
    tenant: str = DEFAULT_TENANT
    """Whose session it is; no other tenant's requests reach it."""
    transcript: array.array[int] = dataclasses.field(default_factory=lambda: array.array("H", (START_TOKEN,)))
    state: NDArray[np.float32] | None = None
    consumed: int = 0
    generations: list[Generation] = dataclasses.field(default_factory=list)
    tokenizer_digest: str = ""
    """Of the tokenizer of the transcript; empty while the transcript is the start token alone."""
    next_sampling: SamplingParameters | None = None
    """The parameters that the next generation inherits after a rewind or a fork; None for those of the last one."""
    snapshots: dict[int, NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    """Earlier states and `state`, by the number of tokens they have consumed."""
    in_use: bool = False
    pins: int = 0
    """How many requests are about to use it; a pinned session does not leave memory."""
    idle_bytes: int = 0
    """Its share of the memory budget while it is idle."""
    promised_bytes: int = 0
    """What it may come to take in the store until the generation that runs has ended; 0 while none runs."""
    store_progress: StoreProgress = dataclasses.field(default_factory=StoreProgress)
    prefix_hash: TokenHash | None = None
    """The hash of the transcript's first `prefix_hash.position` tokens, from the last receipt; None if there is none.
    It is not stored."""

    @property
    def position(self) -> int:
        """The transcript's length: the position of the next token."""
        return len(self.transcript)

    @property
    def is_idle(self) -> bool:
        """Whether no request uses it or is about to."""
        return not self.in_use and not self.pins

    @property
    def dirty(self) -> bool:
        """Whether the session has changes that the store does not have."""
        kept = self.store_progress
        return kept.durable_position < self.position or kept.durable_events < kept.events or kept.changed

    @property
    def sampling(self) -> SamplingParameters | None:
        """The parameters that the next generation inherits; None before the first one."""
        if self.next_sampling is not None:
            return self.next_sampling
        return self.generations[-1].last_sampling if self.generations else None

    def sampling_at(self, position: int) -> SamplingParameters | None:
        """The parameters of the token at `position`; at the end, those that the next generation inherits."""
        for generation in self.generations:
            if generation.next_position > position:
                return generation.sampling_at(position)
        return self.sampling

    def generation(self, generation_id: str) -> Generation | None:
        """The generation of that id, or None."""
        return next((g for g in reversed(self.generations) if g.id == generation_id), None)

    def state_before(self, position: int) -> tuple[NDArray[np.float32] | None, int]:
        """The furthest state that has consumed fewer than `position` tokens, and how many; (None, 0) without one."""
        if self.consumed < position:
            return self.state, self.consumed
        consumed = max((at for at in self.snapshots if at < position), default=0)
        return self.snapshots.get(consumed), consumed

    def advance(self, state: NDArray[np.float32], consumed: int) -> None:
        """Adds the state after `consumed` tokens to the snapshots; the one furthest on becomes the session's state."""
        if consumed >= self.consumed:
            self.state, self.consumed = state, consumed
        snapshots = {**self.snapshots, consumed: state}
        kept = thin_snapshots(snapshots, self.position)
        self.snapshots = {at: snapshot for at, snapshot in snapshots.items() if at in kept}

    def copy_from(self, other: Session) -> None:
        """Takes the contents of another session. The two share nothing mutable."""
        self.transcript = other.transcript[:]
        self.generations = [dataclasses.replace(g, changes=list(g.changes)) for g in other.generations]
        for generation in self.generations[-1:]:
            if not generation.finished:  # the call that streams it belongs to the other
                generation.finish_reason = generation.finish_reason or FinishReason.CANCELLED
        self.tokenizer_digest, self.next_sampling = other.tokenizer_digest, other.next_sampling
        self.state, self.consumed, self.snapshots = other.state, other.consumed, other.snapshots

    def cut_transcript(self, position: int) -> None:
        """Removes the tokens from `position` on."""
        del self.transcript[position:]
        if self.prefix_hash is not None and self.prefix_hash.position > position:
            self.prefix_hash = None

    def drop_states(self) -> None:
        """Drops all states: the next use rebuilds the state from the transcript."""
        self.state, self.consumed, self.snapshots = None, 0, {}
        self.store_progress.snapshots = frozenset()

    def memory_bytes(self) -> int:
        """Its share of the memory budget if it were idle."""
        states = {id(state): state.nbytes for state in (self.state, *self.snapshots.values()) if state is not None}
        generations = sum(generation.memory_bytes() for generation in self.generations)
        parameters = [g.sampling for g in self.generations] + [c.sampling for g in self.generations for c in g.changes]
        biases = sum({id(p.logit_bias): len(p.logit_bias) for p in parameters}.values())
        return (
            SESSION_OVERHEAD_BYTES + sum(states.values()) + 2 * len(self.transcript) + generations + BIAS_BYTES * biases
        )


def thin_snapshots(snapshots: Iterable[int], end: int) -> set[int]:
    """Chooses at most `MAX_SNAPSHOTS` snapshots to keep of those at `snapshots` in a transcript of `end` tokens.

    Snapshots become sparser with their distance from the end. Each round removes the one whose loss costs least for
    its distance; never the latest, and none whose removal leaves more than `SNAPSHOT_TOKENS` between two snapshots
    within `NEAR_TOKENS` of the end, as long as there are others.
    """
    kept = sorted(snapshots)
    while len(kept) > MAX_SNAPSHOTS:
        before = [0, *kept]
        gaps = [after - before[i] for i, after in enumerate(kept[1:])]
        near = [
            after > end - NEAR_TOKENS - 1 and gap > SNAPSHOT_TOKENS for after, gap in zip(kept[1:], gaps, strict=True)
        ]
        cost = [gap / max(end - at, SNAPSHOT_TOKENS) for at, gap in zip(kept, gaps, strict=False)]
        del kept[min(range(len(gaps)), key=lambda i: (near[i], cost[i]))]
    return set(kept)
