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
import collections
import dataclasses
import hashlib
import heapq
import hmac
import secrets
import time
from collections.abc import Callable, Iterator

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
STALE_EXPIRIES = 1_024
"""So many entries of sessions that are gone may stand in the queue of expiries, and as many as there are sessions."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionsConfig:
    """How long sessions are kept and how much memory they may take."""

    idle_ttl_s: float = 3_600.0
    """How long a session may lie idle before it expires; also the longest a client may ask for."""
    budget_bytes: int = 64 << 20
    """Memory for idle sessions; beyond it the least recently used ones expire."""
    max_transcript_tokens: int = MAX_TRANSCRIPT_TOKENS
    """A transcript's longest length, the start token included."""


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

    @property
    def drawn(self) -> int:
        """How many tokens it has drawn."""
        return self.next_position - self.start_position

    def memory_bytes(self) -> int:
        """What it is counted as in the budget, its logit bias apart, which generations that inherit it share."""
        return GENERATION_OVERHEAD_BYTES + 4 * (len(self.id) + sum(map(len, self.stop)))


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
    in_use: bool = False
    idle_bytes: int = 0
    """What it is counted as in the budget while it lies idle."""

    @property
    def position(self) -> int:
        """The transcript's length: the position of the token that comes next."""
        return len(self.transcript)

    @property
    def sampling(self) -> SamplingParameters | None:
        """What the next generation inherits, or None before the first."""
        return self.generations[-1].sampling if self.generations else None

    def generation(self, generation_id: str) -> Generation | None:
        """The generation of that id, or None."""
        return next((g for g in reversed(self.generations) if g.id == generation_id), None)

    def memory_bytes(self) -> int:
        """What it would be counted as in the budget."""
        state = 0 if self.state is None else self.state.nbytes
        generations = sum(generation.memory_bytes() for generation in self.generations)
        biases = {id(g.sampling.logit_bias): len(g.sampling.logit_bias) for g in self.generations}
        return (
            SESSION_OVERHEAD_BYTES + state + 2 * len(self.transcript) + generations + BIAS_BYTES * sum(biases.values())
        )


class Sessions:
    """The table of sessions, least recently used first."""

    def __init__(
        self,
        config: SessionsConfig | None = None,
        *,
        key: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`key` authenticates session ids; servers that share sessions share it. Absent, it is drawn afresh."""
        self.config = config or SessionsConfig()
        self._key = key or secrets.token_bytes(32)
        self._clock = clock
        self._table: collections.OrderedDict[str, Session] = collections.OrderedDict()
        self._expiries: list[tuple[float, str]] = []
        self._idle_bytes = 0
        self.expired = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Session]:
        """All sessions that have not expired, least recently used first."""
        self.expire()
        return iter(list(self._table.values()))

    @property
    def idle_bytes(self) -> int:
        """What idle sessions take of the budget."""
        return self._idle_bytes

    def create(self, model: str, digest: str, numerics_id: str, idle_ttl_s: float | None = None) -> Session:
        """A new, empty, idle session under a freshly minted id."""
        now = self._clock()
        ttl = self.config.idle_ttl_s if idle_ttl_s is None else idle_ttl_s
        session = Session(self._mint(), model, digest, numerics_id, ttl, now, now)
        self._table[session.id] = session
        heapq.heappush(self._expiries, (now + ttl, session.id))
        self._count(session)
        return session

    def get(self, session_id: str) -> Session:
        """The session; raises `SessionUnknown` for an id not minted under this key, `SessionExpired` for one gone."""
        if not self._authentic(session_id):
            raise SessionUnknown(f"session {session_id[:64]!r} was not minted by this server")
        self.expire()
        session = self._table.get(session_id)
        if session is None:
            raise SessionExpired(f"session {session_id!r} has expired or was deleted")
        return session

    def lease(self, session: Session) -> None:
        """Marks the session as used by one sequence.

        Raises `SessionBusy` while another uses it, `SessionExpired` if it has gone since it was got.
        """
        if session.in_use:
            raise SessionBusy(f"session {session.id!r} is being used by another request")
        if session.id and session.id not in self._table:
            raise SessionExpired(f"session {session.id!r} has expired or was deleted")
        session.in_use = True
        if session.id:
            self._table.move_to_end(session.id)
            self._count(session)

    def release(self, session: Session) -> None:
        """Ends a lease; the time to live begins anew."""
        session.in_use = False
        session.used_s = self._clock()
        if session.id:
            self._table.move_to_end(session.id)
            self._count(session)

    def delete(self, session: Session) -> None:
        """Forgets a session; raises `SessionBusy` while a sequence uses it."""
        if session.in_use:
            raise SessionBusy(f"session {session.id!r} is being used by another request")
        self._drop(session)

    def expire(self) -> None:
        """Drops idle sessions whose time to live has passed. Costs nothing for those whose time has not come."""
        now = self._clock()
        due = []
        while self._expiries and self._expiries[0][0] <= now:
            due.append(heapq.heappop(self._expiries)[1])
        for session in filter(None, map(self._table.get, due)):
            used_s = now if session.in_use else session.used_s
            if used_s + session.idle_ttl_s <= now and not session.in_use:
                self._drop(session)
                self.expired += 1
            else:  # used in the meantime: look again when it may have expired
                heapq.heappush(self._expiries, (used_s + session.idle_ttl_s, session.id))

    def _count(self, session: Session) -> None:
        """Counts a session for what it takes now, nothing while it is in use, and keeps the budget."""
        self._idle_bytes -= session.idle_bytes
        session.idle_bytes = 0 if session.in_use else session.memory_bytes()
        self._idle_bytes += session.idle_bytes
        if self._idle_bytes > self.config.budget_bytes:
            self.expire()
        while self._idle_bytes > self.config.budget_bytes:
            # The least recently used goes first, this one last of all.
            victim = next((s for s in self._table.values() if not s.in_use and s is not session), None)
            if victim is None:
                return
            self._drop(victim)
            self.evicted += 1

    def _drop(self, session: Session) -> None:
        del self._table[session.id]
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
        tag = hmac.new(self._key, b"gruve session" + name, hashlib.sha256).digest()[:NAME_BYTES]
        return base64.b32encode(name + tag).decode().lower()
