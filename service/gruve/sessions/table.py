"""The session table: an LRU cache of session records with a memory budget and expiry.

Takes its clock as a parameter. Used from one thread.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import heapq
import hmac
import secrets
import time
from collections.abc import Callable, Iterator

from gruve.errors import SessionBusy, SessionExpired, SessionUnknown
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import Session

NAME_BYTES = 15
"""Random bytes in a session id; a multiple of 5, so that base32 has one spelling of it."""
NAME_LETTERS = NAME_BYTES * 8 // 5
MAX_TRANSCRIPT_TOKENS = 1_048_576
STALE_EXPIRIES = 1_024
"""The expiry queue may hold as many entries of removed sessions as there are sessions, and this many more."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionsConfig:
    """How long sessions are kept and how much memory they may take."""

    idle_ttl_s: float = 3_600.0
    """How long a session may lie idle before it expires; also the longest a client may ask for."""
    budget_bytes: int = 64 << 20
    """Memory for idle sessions; beyond it the least recently used ones leave, for the store or for good."""
    max_transcript_tokens: int = MAX_TRANSCRIPT_TOKENS
    """A transcript's longest length, the start token included."""


class SessionTable:
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
        branch.next_sampling = dataclasses.replace(session.sampling or SamplingParameters(), seed=seed)
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
        session.store_progress.changed = True
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
