"""The plain session store, in the memory of a process: the other stores are checked against it, and servers share it.

`--store memory` is something else: such a server has no store at all.
"""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence

from gruve.errors import SessionElsewhere
from gruve.sessions.store import ALL_TENANTS, CHUNK_TOKENS, LEASE_S, AcquiredLease, SessionSummary, StoredSession, Write

CHUNK_BYTES = 2 * CHUNK_TOKENS


@dataclasses.dataclass(slots=True)
class _Entry:
    model: str
    tenant: str
    created_s: float
    used_s: float = 0.0
    ttl_s: float = 0.0
    content_bytes: int = 0
    head: str = ""
    transcript: bytes = b""
    generations: list[str] = dataclasses.field(default_factory=list)
    states: dict[int, bytes] = dataclasses.field(default_factory=dict)
    owner: str = ""
    version: int = 0
    until_s: float = 0.0

    def stored(self, session_id: str, holder: str) -> StoredSession:
        position = len(self.transcript) // 2
        summary = SessionSummary(session_id, self.head, position, self.created_s, self.used_s, holder, self.tenant)
        return StoredSession(summary, self.transcript, tuple(self.generations), tuple(self.states.items()))


class MemoryStore:
    """See `Store`. `clock` measures leases, in seconds."""

    name = "memory"
    shared = True

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()

    def key(self) -> bytes:
        """See `Store`."""
        return self._key

    def acquire(self, session_id: str, owner: str, known_version: int | None, now_s: float) -> AcquiredLease | None:
        """See `Store`."""
        with self._lock:
            entry = self._entry(session_id, now_s)
            if entry is None:
                return None
            if self._holder(entry) not in ("", owner):
                raise SessionElsewhere(f"another server is using session {session_id!r}")
            stored = None if known_version == entry.version else entry.stored(session_id, owner)
            entry.owner, entry.version, entry.until_s = owner, entry.version + 1, self._clock() + LEASE_S
            return AcquiredLease(entry.version, stored)

    def read(self, session_id: str, now_s: float) -> StoredSession | None:
        """See `Store`."""
        with self._lock:
            entry = self._entry(session_id, now_s)
            return None if entry is None else entry.stored(session_id, self._holder(entry))

    def write(self, owner: str, writes: Sequence[Write]) -> list[str]:
        """See `Store`."""
        with self._lock:
            return [write.id for write in writes if not self._write(owner, write)]

    def _write(self, owner: str, write: Write) -> bool:
        entry = self._entries.get(write.id)
        if entry is None and write.create:
            entry = self._entries[write.id] = _Entry(
                write.model, write.tenant, write.created_s, owner=owner, version=write.version
            )
        if entry is None or (entry.owner, entry.version) != (owner, write.version):
            return False
        entry.used_s, entry.ttl_s, entry.head = write.used_s, write.ttl_s, write.head or entry.head
        entry.content_bytes = write.content_bytes
        entry.transcript = entry.transcript[: write.first_chunk * CHUNK_BYTES] + b"".join(write.chunks)
        if write.head:
            entry.generations[write.first_generation :] = write.generations
        entry.states |= dict(write.states)
        for at in write.dropped_states:
            entry.states.pop(at, None)
        entry.until_s = 0.0 if write.release else self._clock() + LEASE_S
        return True

    def renew(self, owner: str, leases: Sequence[tuple[str, int]]) -> list[str]:
        """See `Store`."""
        lost = []
        with self._lock:
            for session_id, version in leases:
                entry = self._entries.get(session_id)
                if entry is None or (entry.owner, entry.version) != (owner, version) or not entry.until_s:
                    lost.append(session_id)
                else:
                    entry.until_s = self._clock() + LEASE_S
        return lost

    def delete(self, session_id: str, owner: str, version: int) -> bool:
        """See `Store`."""
        with self._lock:
            entry = self._entries.get(session_id)
            if entry is None or (entry.owner, entry.version) != (owner, version):
                return False
            del self._entries[session_id]
            return True

    def page(
        self, tenant: str, model: str, before: tuple[float, str] | None, size: int, now_s: float
    ) -> list[SessionSummary]:
        """See `Store`."""
        with self._lock:
            found = [
                (entry.created_s, session_id)
                for session_id, entry in self._entries.items()
                if entry.tenant == tenant
                and model in ("", entry.model)
                and (before is None or (entry.created_s, session_id) < before)
                and self._entry(session_id, now_s)
            ]
            entries = [(i, self._entries[i]) for _, i in sorted(found, reverse=True)[:size]]
            return [entry.stored(i, self._holder(entry)).summary for i, entry in entries]

    def count(self) -> int:
        """See `Store`."""
        return len(self._entries)

    def count_live(self, tenant: str, now_s: float, exclude: Collection[str], enough: int) -> int:
        """See `Store`; the number is always exact."""
        with self._lock:
            return len(self._live(tenant, now_s, exclude))

    def live_bytes(self, tenant: str, now_s: float, exclude: Collection[str]) -> int:
        """See `Store`."""
        with self._lock:
            return sum(entry.content_bytes for entry in self._live(tenant, now_s, exclude))

    def _live(self, tenant: str, now_s: float, exclude: Collection[str]) -> list[_Entry]:
        return [
            entry
            for session_id, entry in self._entries.items()
            if tenant in (ALL_TENANTS, entry.tenant)
            if session_id not in exclude and self._entry(session_id, now_s) is not None
        ]

    def expire(self, now_s: float, max_count: int, exclude: Collection[str]) -> int:
        """See `Store`."""
        with self._lock:
            gone = [i for i in self._entries if i not in exclude and self._entry(i, now_s) is None][:max_count]
            for session_id in gone:
                del self._entries[session_id]
            return len(gone)

    def close(self) -> None:
        """See `Store`."""

    def _entry(self, session_id: str, now_s: float) -> _Entry | None:
        """The entry unless it has expired; an entry does not expire while it is leased."""
        entry = self._entries.get(session_id)
        return entry if entry and (self._holder(entry) or entry.used_s + entry.ttl_s > now_s) else None

    def _holder(self, entry: _Entry) -> str:
        return entry.owner if entry.until_s > self._clock() else ""
