"""Where sessions outlive memory: one small interface, and what passes through it. Knows bytes; nothing of tensors,
requests or the wire.

A store holds for each session a head, the transcript in chunks of `CHUNK_TOKENS`, one record a generation, and states
by how many tokens they have consumed. A write says from which chunk and which generation on everything is replaced, so
it may be repeated and cuts what a rewind took back.

Where several servers share a store, a session is written under a lease: an owner, a time and a version that every use
begins anew. A write whose owner or version is not the lease's is refused, however late it comes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Protocol

CHUNK_TOKENS = 256
LEASE_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Write:
    """What is new of one session."""

    id: str
    version: int
    """Of the lease; stores that are not shared do not look at it."""
    model: str
    created_s: float
    used_s: float
    ttl_s: float
    position: int
    """The transcript's length with this write."""
    head: str
    """Empty where nothing has changed but that there are more tokens."""
    first_chunk: int
    """The chunks from here on are replaced."""
    chunks: tuple[bytes, ...]
    first_generation: int
    """The generations from here on are replaced, if there is a head."""
    generations: tuple[str, ...]
    states: tuple[tuple[int, bytes], ...] = ()
    """To be added: how many tokens it has consumed, and the state."""
    dropped_states: tuple[int, ...] = ()
    create: bool = False
    """Whether the store has yet to hear of the session; one that it does not have cannot be written otherwise."""
    release: bool = False
    """Whether the lease ends with this write."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionSummary:
    """What a store says of a session without its contents."""

    id: str
    head: str
    position: int
    created_s: float
    used_s: float
    owner: str
    """Who holds its lease; empty for nobody."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredSession:
    """All of a session."""

    listed: SessionSummary
    transcript: bytes
    generations: tuple[str, ...]
    states: tuple[tuple[int, bytes], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class AcquiredLease:
    """A lease that was granted. `stored` is None where the caller's copy, of the version it named, is still true."""

    version: int
    stored: StoredSession | None


class Store(Protocol):
    """Keeps sessions. Every method may be called from any thread, lasts a few seconds at most, and raises
    `StoreUnavailable` where the store does not do its part; whether it was done is then not known.
    """

    name: str
    """For people: what and where, without secrets."""
    shared: bool
    """Whether other servers may use it at the same time."""

    def key(self) -> bytes:
        """The key that authenticates the ids of this store's sessions; made when it is first asked for."""

    def acquire(self, session_id: str, owner: str, known: int | None, now_s: float) -> AcquiredLease | None:
        """Leases a session for `LEASE_S`, or returns None if there is none of that id.

        `known` is the version that the caller's own copy is of. Raises `SessionElsewhere` while another owner's lease
        lasts.
        """

    def read(self, session_id: str, now_s: float) -> StoredSession | None:
        """All of a session, whoever has its lease."""

    def write(self, owner: str, writes: Sequence[Write]) -> list[str]:
        """Writes all that it may and returns the ids of the others: their leases are lost, or they are gone."""

    def renew(self, owner: str, leases: Sequence[tuple[str, int]]) -> list[str]:
        """Lets leases, each by id and version, begin anew, and returns the ids of those that are lost or released."""

    def delete(self, session_id: str, owner: str, version: int) -> bool:
        """Deletes a leased session; False if the lease is lost or the session gone."""

    def page(self, model: str, before: tuple[float, str] | None, size: int, now_s: float) -> list[SessionSummary]:
        """Sessions of a model, or of all if it is empty, the latest created first, from before (created, id) on."""

    def count(self) -> int:
        """How many sessions it has, those that have expired and were not yet seen to included."""

    def expire(self, now_s: float, most: int, spared: Collection[str]) -> int:
        """Removes at most so many sessions whose time has passed, but none of `spared`; returns how many it removed."""

    def close(self) -> None:
        """Lets go of files and connections."""
