"""The session table: an LRU cache of session records with a memory budget and expiry.

Takes its clock as a parameter. Used from one thread.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import hmac
import secrets
import time
from collections.abc import Callable, Iterator

from gruve.engine.deadlines import Deadlines
from gruve.errors import SessionBusy, SessionExpired, SessionUnknown
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import DEFAULT_TENANT, Session
from gruve.sessions.store import ALL_TENANTS

NAME_BYTES = 15
"""Random bytes in a session id; a multiple of 5, so that base32 has one spelling of it."""
NAME_LETTERS = NAME_BYTES * 8 // 5
MAX_TRANSCRIPT_TOKENS = 1_048_576


@dataclasses.dataclass(frozen=True, slots=True)
class SessionsConfig:
    """How long sessions live and how much memory they may take."""

    idle_ttl_s: float = 3_600.0
    """How long a session may be idle before it expires; also the maximum that a client may request."""
    budget_bytes: int = 64 << 20
    """Memory for idle sessions. Beyond it the least recently used ones are evicted: to the store, or for good without
    one."""
    max_transcript_tokens: int = MAX_TRANSCRIPT_TOKENS
    """The maximum length of a transcript, the start token included."""


class SessionTable:
    """The sessions in memory, least recently used first."""

    def __init__(
        self,
        config: SessionsConfig,
        *,
        key: bytes | None = None,
        clock: Callable[[], float] = time.time,
        can_evict: Callable[[Session], bool] = lambda _: True,
    ) -> None:
        """`key` authenticates session ids; servers that share sessions share it. None draws a new one.

        `can_evict` decides whether an idle session may leave memory before it expires.
        """
        self.config = config
        self._key = key or secrets.token_bytes(32)
        self.clock = clock
        self._can_evict = can_evict
        self._table: collections.OrderedDict[str, Session] = collections.OrderedDict()
        self._expiries: Deadlines[str] = Deadlines(self._table)
        """When each session may have expired; it is later if the session is used in the meantime."""
        self._busy: dict[str, Session] = {}
        self._idle_bytes = 0
        self._idle_bytes_of: collections.Counter[str] = collections.Counter()
        """What each tenant's idle sessions take of the budget."""
        self._counts: collections.Counter[str] = collections.Counter()
        """How many sessions each tenant has in memory."""
        self.expired = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Session]:
        """All sessions that have not expired, least recently used first."""
        self.expire()
        return iter(list(self._table.values()))

    def ids(self) -> set[str]:
        """The ids of all sessions that have not expired."""
        self.expire()
        return set(self._table)

    def count(self, tenant: str = ALL_TENANTS) -> int:
        """How many sessions a tenant has, or all tenants, without those that have expired."""
        self.expire()
        return len(self._table) if tenant == ALL_TENANTS else self._counts[tenant]

    def memory_bytes(self, tenant: str = ALL_TENANTS) -> int:
        """The memory of the sessions of a tenant, or of all tenants; of those in use what they may come to take."""
        self.expire()
        idle = self._idle_bytes if tenant == ALL_TENANTS else self._idle_bytes_of[tenant]
        busy = [session for session in self._busy.values() if tenant in (ALL_TENANTS, session.tenant)]
        return idle + sum(max(session.promised_bytes, session.memory_bytes()) for session in busy)

    def busy(self) -> list[Session]:
        """The sessions in use."""
        return list(self._busy.values())

    @property
    def in_use(self) -> int:
        """How many sessions are in use."""
        return len(self._busy)

    @property
    def idle_bytes(self) -> int:
        """How many bytes of the budget idle sessions take."""
        return self._idle_bytes

    def create(
        self,
        model: str,
        digest: str,
        numerics_id: str,
        idle_ttl_s: float | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> Session:
        """A new, empty, idle session under a freshly minted id, which is valid for its tenant alone."""
        now = self.clock()
        ttl = self.config.idle_ttl_s if idle_ttl_s is None else idle_ttl_s
        session = Session(self._mint(tenant), model, digest, numerics_id, ttl, now, now, tenant)
        self.insert(session)
        return session

    def fork(self, session: Session, seed: int) -> Session:
        """A copy of a session under a new id. Its next generation inherits `seed`."""
        branch = self.create(session.model, session.digest, session.numerics_id, session.idle_ttl_s, session.tenant)
        self.fill(branch, session)
        branch.next_sampling = dataclasses.replace(session.sampling or SamplingParameters(), seed=seed)
        return branch

    def fill(self, session: Session, contents: Session) -> None:
        """Copies the contents of another session into a new one, and counts them against the budget."""
        session.copy_from(contents)
        self._account(session)

    def insert(self, session: Session) -> None:
        """Adds a session; one with the same id is replaced."""
        if session.id in self._table:
            self.remove(self._table[session.id])
        self._table[session.id] = session
        self._counts[session.tenant] += 1
        self._expiries.add(session.used_s + session.idle_ttl_s, session.id)
        self._account(session)

    def get(self, session_id: str, tenant: str = DEFAULT_TENANT) -> Session:
        """The session. Raises what `find` raises, and `SessionExpired` if the session is gone."""
        session = self.find(session_id, tenant)
        if session is None:
            raise SessionExpired(session_id)
        return session

    def find(self, session_id: str, tenant: str = DEFAULT_TENANT) -> Session | None:
        """The session, or None if it is not in memory.

        Raises `SessionUnknown` for an id that this key did not mint for the tenant, whether another tenant has it or
        nobody.
        """
        self.expire()
        session = self._table.get(session_id)
        if session is not None and session.tenant == tenant:  # its id was authenticated before it came into memory
            return session
        if not self._authentic(session_id, tenant):
            raise SessionUnknown(
                f"this server knows no session {session_id[:64]!r}; the id is wrong, or of another server or tenant"
            )
        return session

    def peek(self, session_id: str) -> Session | None:
        """The session of whatever tenant, or None if it is not in memory; for the server's own bookkeeping."""
        return self._table.get(session_id)

    def lease(self, session: Session) -> None:
        """Marks the session as in use by one request.

        Raises `SessionBusy` while another uses it, `SessionExpired` if it has left the table.
        """
        if session.in_use:
            raise SessionBusy(f"session {session.id!r} is being used by another request")
        if session.id and self._table.get(session.id) is not session:
            raise SessionExpired(session.id)
        session.in_use = True
        if session.id:
            self._busy[session.id] = session
            self._table.move_to_end(session.id)
            self._account(session)

    def release(self, session: Session) -> None:
        """Ends the use of a session and restarts its time to live."""
        session.in_use = False
        session.used_s = self.clock()
        session.store_progress.changed = True
        if self._busy.get(session.id) is session:
            del self._busy[session.id]
        if self._table.get(session.id) is session:
            self._table.move_to_end(session.id)
            self._account(session)

    def delete(self, session: Session) -> None:
        """Removes a session. Raises `SessionBusy` while it is in use."""
        if session.in_use:
            raise SessionBusy(f"session {session.id!r} is being used by another request")
        self.remove(session)

    def remove(self, session: Session) -> None:
        """Removes a session, in use or not. Does nothing if it is not in the table."""
        if self._table.get(session.id) is session:
            self._drop(session)

    def expire(self) -> None:
        """Removes the sessions whose time to live has passed. Looks at no others."""
        now = self.clock()
        for session in filter(None, map(self._table.get, self._expiries.pop_overdue(now))):
            busy = not session.is_idle
            used_s = now if busy else session.used_s
            if used_s + session.idle_ttl_s <= now and not busy:
                self._drop(session)
                self.expired += 1
            else:  # used in the meantime: look again when it may have expired
                self._expiries.add(used_s + session.idle_ttl_s, session.id)

    def _account(self, session: Session) -> None:
        """Updates what a session takes of the budget, nothing while it is in use, and evicts others if need be."""
        self._set_idle_bytes(session, 0 if session.in_use else session.memory_bytes())
        self.evict_to_fit(keep=session)

    def evict_to_fit(self, keep: Session | None = None) -> None:
        """Evicts idle sessions other than `keep`, least recently used first, until the rest fit into the budget."""
        if self._idle_bytes <= self.config.budget_bytes:
            return
        self.expire()
        while self._idle_bytes > self.config.budget_bytes:
            victim = next((s for s in self._table.values() if s is not keep and self._is_evictable(s)), None)
            if victim is None:
                return
            self._drop(victim)
            self.evicted += 1

    def _is_evictable(self, session: Session) -> bool:
        return session.is_idle and self._can_evict(session)

    def _set_idle_bytes(self, session: Session, idle_bytes: int) -> None:
        self._idle_bytes += idle_bytes - session.idle_bytes
        self._idle_bytes_of[session.tenant] += idle_bytes - session.idle_bytes
        session.idle_bytes = idle_bytes

    def _drop(self, session: Session) -> None:
        del self._table[session.id]
        self._set_idle_bytes(session, 0)
        self._counts[session.tenant] -= 1
        if not self._counts[session.tenant]:
            del self._counts[session.tenant], self._idle_bytes_of[session.tenant]
        self._busy.pop(session.id, None)  # a session is deleted while it is leased

    def _mint(self, tenant: str) -> str:
        return self._id(secrets.token_bytes(NAME_BYTES), tenant)

    def _authentic(self, session_id: str, tenant: str) -> bool:
        """Whether this key minted the id for the tenant."""
        try:
            name = base64.b32decode(session_id[:NAME_LETTERS], casefold=True)
        except ValueError:
            return False
        return hmac.compare_digest(self._id(name, tenant).encode(), session_id.encode(errors="replace"))

    def _id(self, name: bytes, tenant: str) -> str:
        """The name and its authentication tag, 15 bytes each, in base32: 48 letters and digits.

        The tag covers the tenant, so an id of another tenant is not authentic and no lookup is needed to refuse it.
        Ids of the default tenant are those that were minted before there were tenants.
        """
        whose = b"gruve session" if tenant == DEFAULT_TENANT else b"gruve session of " + tenant.encode() + b"\0"
        tag = hmac.digest(self._key, whose + name, "sha256")[:NAME_BYTES]
        return base64.b32encode(name + tag).decode().lower()
