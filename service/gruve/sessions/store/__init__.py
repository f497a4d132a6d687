"""The session store interface and its record types. Knows bytes; nothing of tensors, requests or the wire.

A store holds for each session a head (its metadata), the transcript in chunks of `CHUNK_TOKENS`, one record for each
generation, and states by the number of tokens they have consumed. A write replaces every chunk and generation from a
given number on. So a write may be repeated, and it removes what a rewind took back.

If several servers share a store, a session is written under a lease: an owner, an expiry and a version that each
acquisition increments. A write whose owner or version is not the lease's is refused, however late it arrives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Protocol

CHUNK_TOKENS = 256
LEASE_S = 10.0
ALL_TENANTS = ""
"""Stands for every tenant where sessions are counted; no tenant has this name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Write:
    """What is new of one session."""

    id: str
    version: int
    """Of the lease; stores that are not shared ignore it."""
    model: str
    tenant: str
    """Whose session it is; it never changes."""
    created_s: float
    used_s: float
    ttl_s: float
    position: int
    """The transcript's length after this write."""
    content_bytes: int
    """The size of head, transcript, generations and states together after this write."""
    head: str
    """Empty if nothing has changed but the number of tokens."""
    first_chunk: int
    """The chunks from this number on are replaced."""
    chunks: tuple[bytes, ...]
    first_generation: int
    """The generations from this number on are replaced, if there is a head."""
    generations: tuple[str, ...]
    states: tuple[tuple[int, bytes], ...] = ()
    """States to add, each with the number of tokens it has consumed."""
    dropped_states: tuple[int, ...] = ()
    create: bool = False
    """Whether to create the session if the store does not have it; any other write of a missing session is refused."""
    release: bool = False
    """Whether this write ends the lease."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionSummary:
    """A stored session without its contents."""

    id: str
    head: str
    position: int
    created_s: float
    used_s: float
    owner: str
    """The server that has the lease; "" for none."""
    tenant: str
    """Whose session it is; `default` for one that was written before sessions had tenants."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredSession:
    """A stored session with its contents."""

    summary: SessionSummary
    transcript: bytes
    generations: tuple[str, ...]
    states: tuple[tuple[int, bytes], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class AcquiredLease:
    """A lease that was granted. `stored` is None if the caller's copy is current."""

    version: int
    stored: StoredSession | None


class Store(Protocol):
    """A session store. Every method may be called from any thread, takes a few seconds at most, and raises
    `StoreUnavailable` if the store fails; whether the operation took effect is then unknown.
    """

    name: str
    """For people: the kind of store and its location, without secrets."""
    shared: bool
    """Whether several servers may use it at the same time."""

    def key(self) -> bytes:
        """The key that authenticates the ids of this store's sessions. The first call creates it."""

    def acquire(self, session_id: str, owner: str, known_version: int | None, now_s: float) -> AcquiredLease | None:
        """Leases a session for `LEASE_S`; None if there is no such session.

        `known_version` is the version of the caller's own copy, None without one. Raises `SessionElsewhere` while
        another owner's lease lasts.
        """

    def read(self, session_id: str, now_s: float) -> StoredSession | None:
        """A session with its contents, whoever has its lease; None if there is no such session."""

    def write(self, owner: str, writes: Sequence[Write]) -> list[str]:
        """Writes what it may and returns the ids of the others: their lease is lost or the session is gone."""

    def renew(self, owner: str, leases: Sequence[tuple[str, int]]) -> list[str]:
        """Renews leases, each given by id and version, and returns the ids of those that are lost or released."""

    def delete(self, session_id: str, owner: str, version: int) -> bool:
        """Deletes a leased session; False if the lease is lost or the session is gone."""

    def page(
        self, tenant: str, model: str, before: tuple[float, str] | None, size: int, now_s: float
    ) -> list[SessionSummary]:
        """At most `size` of a tenant's sessions of a model, or of all models if it is "", the latest created first.

        `before` is a (creation time, id): only sessions that come after it in this order are listed.
        """

    def count(self) -> int:
        """The number of sessions, including expired ones that were not removed yet."""

    def count_live(self, tenant: str, now_s: float, exclude: Collection[str], enough: int) -> int:
        """How many sessions of a tenant, or of `ALL_TENANTS`, have not expired and are not in `exclude`.

        A store may return a number that is too high, up to `enough`, where the exact one takes longer.
        """

    def live_bytes(self, tenant: str, now_s: float, exclude: Collection[str]) -> int:
        """The `Write.content_bytes` of the sessions of a tenant, or of `ALL_TENANTS`, that have not expired and are
        not in `exclude`, together.
        """

    def expire(self, now_s: float, max_count: int, exclude: Collection[str]) -> int:
        """Removes at most `max_count` expired sessions that are not in `exclude`; returns how many it removed."""

    def close(self) -> None:
        """Closes files and connections."""
