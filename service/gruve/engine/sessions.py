"""Sessions: what a client may come back to. Kept in memory, by the rule of least recent use, until they expire.

Knows the clock it is given; nothing of requests, tensors or the wire. Used from one thread.

A session's state has consumed the first `consumed` tokens of its transcript. After an orderly end that is all but the
last, the pending one; after a cut in the middle of a prompt, fewer; and 0, with no state, when it must be rebuilt.
Whatever is missing is caught up by forcing the transcript's rest before anything else: the state is a cache of the
transcript, never the other way round.
"""

from __future__ import annotations

import array
import base64
import bisect
import collections
import dataclasses
import heapq
import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from gruve.engine.sequence import FinishReason
from gruve.errors import SessionBusy, SessionExpired, SessionUnknown
from gruve.model.sampling import SamplingParameters

START_TOKEN = 0
NAME_BYTES = 15
"""Of randomness in a session id; a multiple of 5, so that base32 has one spelling of it."""
NAME_LETTERS = NAME_BYTES * 8 // 5
MAX_TRANSCRIPT_TOKENS = 1_048_576
SESSION_OVERHEAD_BYTES = 1_024
"""What a session costs beside state, transcript and generations: objects, the table's entry, the queue's."""
GENERATION_OVERHEAD_BYTES = 768
BIAS_BYTES = 128
"""One entry of a logit bias: a tuple and two numbers."""
CHANGE_BYTES = 96
STALE_EXPIRIES = 1_024
"""So many entries of sessions that are gone may stand in the queue of expiries, and as many as there are sessions."""
SNAPSHOT_TOKENS = 256
"""Reading forward from the nearest snapshot takes at most so many steps, `NEAR_TOKENS` back."""
NEAR_TOKENS = 1_000
MOST_SNAPSHOTS = 16


@dataclasses.dataclass(frozen=True, slots=True)
class SessionsConfig:
    """How long sessions are kept and how much memory they may take."""

    idle_ttl_s: float = 3_600.0
    """How long a session may lie idle before it expires; also the longest a client may ask for."""
    budget_bytes: int = 64 << 20
    """Memory for idle sessions; beyond it the least recently used ones leave, for the store or for good."""
    max_transcript_tokens: int = MAX_TRANSCRIPT_TOKENS
    """A transcript's longest length, the start token included."""


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
class Kept:
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
    handed_events: int = 0
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
    given: SamplingParameters | None = None
    """What the next generation inherits where that is not what the last one had: after a rewind or a fork."""
    snapshots: dict[int, NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    """Earlier states, and `state`, by how many tokens they have consumed."""
    in_use: bool = False
    holds: int = 0
    """How many requests have it in hand and are about to use it."""
    idle_bytes: int = 0
    """What it is counted as in the budget while it lies idle."""
    kept: Kept = dataclasses.field(default_factory=Kept)

    @property
    def position(self) -> int:
        """The transcript's length: the position of the token that comes next."""
        return len(self.transcript)

    @property
    def unsaved(self) -> bool:
        """Whether there is anything that has not arrived in the store."""
        kept = self.kept
        return kept.durable_position < self.position or kept.durable_events < kept.events or kept.changed

    @property
    def sampling(self) -> SamplingParameters | None:
        """What the next generation inherits, or None before the first."""
        if self.given is not None:
            return self.given
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

    def move(self, state: NDArray[np.float32], consumed: int) -> None:
        """Keeps a state that has consumed so many tokens among the snapshots; the furthest is the session's own."""
        if consumed >= self.consumed:
            self.state, self.consumed = state, consumed
        snapshots = {**self.snapshots, consumed: state}
        kept = thin(snapshots, self.position)
        self.snapshots = {at: snapshot for at, snapshot in snapshots.items() if at in kept}

    def copy(self, other: Session) -> None:
        """Takes another session's contents; both may go on by themselves."""
        self.transcript = other.transcript[:]
        self.generations = [dataclasses.replace(g, changes=list(g.changes)) for g in other.generations]
        for generation in self.generations[-1:]:
            if not generation.finished:  # its call is the other's
                generation.finish_reason = generation.finish_reason or FinishReason.CANCELLED
        self.tokenizer_digest, self.given = other.tokenizer_digest, other.given
        self.state, self.consumed, self.snapshots = other.state, other.consumed, other.snapshots

    def forget_states(self) -> None:
        """Has the state rebuilt from the transcript when the session is next used."""
        self.state, self.consumed, self.snapshots = None, 0, {}
        self.kept.snapshots = frozenset()

    def memory_bytes(self) -> int:
        """What it would be counted as in the budget."""
        states = {id(state): state.nbytes for state in (self.state, *self.snapshots.values()) if state is not None}
        generations = sum(generation.memory_bytes() for generation in self.generations)
        parameters = [g.sampling for g in self.generations] + [c.sampling for g in self.generations for c in g.changes]
        biases = sum({id(p.logit_bias): len(p.logit_bias) for p in parameters}.values())
        return (
            SESSION_OVERHEAD_BYTES + sum(states.values()) + 2 * len(self.transcript) + generations + BIAS_BYTES * biases
        )


def rewind(session: Session, to_position: int, seed: int | None = None, *, within: Generation | None = None) -> None:
    """Takes back the tokens from `to_position` on, 1 to the session's position.

    Parameters are then those that were in force there, with `seed` where it is given. A generation that is taken back
    in part is finished with CANCELLED, as is one that was unfinished; one taken back as a whole is forgotten. `within`
    names the last generation where it is to go on instead; then `to_position` is at least its start, and `seed` becomes
    a change of it. The state is the nearest that was kept, so `consumed` may lie before the pending token.
    """
    sampling = session.sampling_at(to_position)
    if seed is not None:
        sampling = SamplingParameters(seed=seed) if sampling is None else dataclasses.replace(sampling, seed=seed)
    cut = [i for i, g in enumerate(session.generations) if g.next_position > to_position]
    unchanged = min([*cut, len(session.generations) - 1]) if session.generations else 0
    session.kept.cut(to_position, unchanged)
    session.generations = [
        g
        for g in session.generations
        if g is within or g.next_position <= to_position or g.prompt_position < to_position
    ]
    del session.transcript[to_position:]
    for generation in session.generations[unchanged:]:
        was_cut = generation.next_position > to_position
        if was_cut:
            generation.cut(to_position)
        if generation is within:
            generation.finish_reason, generation.finished = None, False
            if seed is not None and sampling is not None:
                generation.changes.append(Change(to_position, sampling))
        elif was_cut or not generation.finished:
            generation.finish(FinishReason.CANCELLED)
    session.given = None if within is not None else sampling
    session.snapshots = {at: state for at, state in session.snapshots.items() if at < to_position}
    if session.consumed >= to_position:
        session.consumed = max(session.snapshots, default=0)
        session.state = session.snapshots.get(session.consumed)


def thin(snapshots: Iterable[int], end: int, most: int = MOST_SNAPSHOTS) -> set[int]:
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


class Sessions:
    """The table of sessions, least recently used first."""

    def __init__(
        self,
        config: SessionsConfig | None = None,
        *,
        key: bytes | None = None,
        clock: Callable[[], float] = time.time,
        may_leave: Callable[[Session], bool] = lambda _: True,
    ) -> None:
        """`key` authenticates session ids; servers that share sessions share it. Absent, it is drawn afresh.

        `may_leave` says whether an idle session may leave memory before it expires.
        """
        self.config = config or SessionsConfig()
        self._key = key or secrets.token_bytes(32)
        self.clock = clock
        self._may_leave = may_leave
        self._table: collections.OrderedDict[str, Session] = collections.OrderedDict()
        self._expiries: list[tuple[float, str]] = []
        self._busy: dict[str, Session] = {}
        self._idle_bytes = 0
        self.expired = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Session]:
        """All sessions that have not expired, least recently used first."""
        self.expire()
        return iter(list(self._table.values()))

    def busy(self) -> list[Session]:
        """Those in use."""
        return list(self._busy.values())

    @property
    def in_use(self) -> int:
        """How many are in use."""
        return len(self._busy)

    @property
    def idle_bytes(self) -> int:
        """What idle sessions take of the budget."""
        return self._idle_bytes

    def create(self, model: str, digest: str, numerics_id: str, idle_ttl_s: float | None = None) -> Session:
        """A new, empty, idle session under a freshly minted id."""
        now = self.clock()
        ttl = self.config.idle_ttl_s if idle_ttl_s is None else idle_ttl_s
        session = Session(self._mint(), model, digest, numerics_id, ttl, now, now)
        self.take_in(session)
        return session

    def fork(self, session: Session, seed: int) -> Session:
        """A copy of a session under a new id, whose next generation inherits `seed`; it shares nothing that changes."""
        branch = self.create(session.model, session.digest, session.numerics_id, session.idle_ttl_s)
        branch.copy(session)
        branch.given = dataclasses.replace(session.sampling or SamplingParameters(), seed=seed)
        self._count(branch)
        return branch

    def take_in(self, session: Session) -> None:
        """Keeps a session that comes from elsewhere, in the place of whatever is kept under its id."""
        if session.id in self._table:
            self.forget(self._table[session.id])
        self._table[session.id] = session
        heapq.heappush(self._expiries, (session.used_s + session.idle_ttl_s, session.id))
        self._count(session)

    def get(self, session_id: str) -> Session:
        """The session; raises `SessionUnknown` for an id not minted under this key, `SessionExpired` for one gone."""
        session = self.find(session_id)
        if session is None:
            raise SessionExpired(f"session {session_id!r} has expired or was deleted")
        return session

    def find(self, session_id: str) -> Session | None:
        """The session if it is in memory; raises `SessionUnknown` for an id not minted under this key."""
        if not self._authentic(session_id):
            raise SessionUnknown(f"session {session_id[:64]!r} was not minted by this server")
        self.expire()
        return self._table.get(session_id)

    def lease(self, session: Session) -> None:
        """Marks the session as used by one sequence.

        Raises `SessionBusy` while another uses it, `SessionExpired` if it has gone since it was got.
        """
        if session.in_use:
            raise SessionBusy(f"session {session.id!r} is being used by another request")
        if session.id and self._table.get(session.id) is not session:
            raise SessionExpired(f"session {session.id!r} has expired or was deleted")
        session.in_use = True
        if session.id:
            self._busy[session.id] = session
            self._table.move_to_end(session.id)
            self._count(session)

    def release(self, session: Session) -> None:
        """Ends a lease; the time to live begins anew."""
        session.in_use = False
        session.used_s = self.clock()
        session.kept.changed = True
        if self._busy.get(session.id) is session:
            del self._busy[session.id]
        if self._table.get(session.id) is session:
            self._table.move_to_end(session.id)
            self._count(session)

    def delete(self, session: Session) -> None:
        """Forgets a session; raises `SessionBusy` while a sequence uses it."""
        if session.in_use:
            raise SessionBusy(f"session {session.id!r} is being used by another request")
        self.forget(session)

    def forget(self, session: Session) -> None:
        """Has nothing more of a session, in use or not; nothing happens to one that has gone."""
        if self._table.get(session.id) is session:
            self._drop(session)

    def trim(self) -> None:
        """Lets idle sessions leave until those that are left keep the budget, the least recently used first."""
        self._keep_budget(None)

    def expire(self) -> None:
        """Drops idle sessions whose time to live has passed. Costs nothing for those whose time has not come."""
        now = self.clock()
        due = []
        while self._expiries and self._expiries[0][0] <= now:
            due.append(heapq.heappop(self._expiries)[1])
        for session in filter(None, map(self._table.get, due)):
            busy = session.in_use or session.holds > 0
            used_s = now if busy else session.used_s
            if used_s + session.idle_ttl_s <= now and not busy:
                self._drop(session)
                self.expired += 1
            else:  # used in the meantime: look again when it may have expired
                heapq.heappush(self._expiries, (used_s + session.idle_ttl_s, session.id))

    def _count(self, session: Session) -> None:
        """Counts a session for what it takes now, nothing while it is in use, and keeps the budget."""
        self._idle_bytes -= session.idle_bytes
        session.idle_bytes = 0 if session.in_use else session.memory_bytes()
        self._idle_bytes += session.idle_bytes
        self._keep_budget(session)

    def _keep_budget(self, spared: Session | None) -> None:
        if self._idle_bytes <= self.config.budget_bytes:
            return
        self.expire()
        while self._idle_bytes > self.config.budget_bytes:
            victim = next((s for s in self._table.values() if s is not spared and self._is_free(s)), None)
            if victim is None:
                return
            self._drop(victim)
            self.evicted += 1

    def _is_free(self, session: Session) -> bool:
        return not session.in_use and not session.holds and self._may_leave(session)

    def _drop(self, session: Session) -> None:
        del self._table[session.id]
        self._busy.pop(session.id, None)  # one that is deleted was leased for it
        self._idle_bytes -= session.idle_bytes
        if len(self._expiries) > 2 * len(self._table) + STALE_EXPIRIES:
            self._expiries = [entry for entry in self._expiries if entry[1] in self._table]
            heapq.heapify(self._expiries)

    def _mint(self) -> str:
        return self._id(secrets.token_bytes(NAME_BYTES))

    def _authentic(self, session_id: str) -> bool:
        """Whether the id is, letter by letter, what this key makes of the name in it."""
        try:
            name = base64.b32decode(session_id[:NAME_LETTERS], casefold=True)
        except ValueError:
            return False
        return hmac.compare_digest(self._id(name).encode(), session_id.encode(errors="replace"))

    def _id(self, name: bytes) -> str:
        """A name and its authentication, 15 bytes each, as 48 letters and digits."""
        tag = hmac.digest(self._key, b"gruve session" + name, "sha256")[:NAME_BYTES]
        return base64.b32encode(name + tag).decode().lower()
