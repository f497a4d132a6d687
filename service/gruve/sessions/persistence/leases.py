"""Leases: which sessions this server may use, how it gets one into memory, and how it keeps the lease."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Sequence

from gruve.errors import SessionExpired, StoreUnavailable
from gruve.sessions.persistence.async_store import AsyncStore
from gruve.sessions.persistence.writer import Writer
from gruve.sessions.record import Session
from gruve.sessions.store import LEASE_S
from gruve.sessions.table import SessionTable

RENEW_S = 3.0


def lease_clock() -> float:
    """Seconds on a clock that also runs while the machine sleeps, as the store's does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Leases:
    """The leases of this server. Without a store, or with one that is not shared, every session is its own."""

    def __init__(
        self, table: SessionTable, store: AsyncStore | None, writer: Writer, moves: collections.Counter[str]
    ) -> None:
        """`moves` counts, under "returned", the sessions that came back into memory."""
        self._table = table
        self._store = store
        self._writer = writer
        self._moves = moves
        self._loading: dict[str, asyncio.Task[Session]] = {}

    def is_held(self, session: Session) -> bool:
        """Whether no other server can have the session, as far as this one knows."""
        return self._store is None or not self._store.shared or session.store_progress.lease_until_s > 0.0

    def is_expired(self, session: Session) -> bool:
        """Whether the session is in use under a lease whose time has passed."""
        if self._store is None or not self._store.shared or not session.in_use:
            return False
        return lease_clock() >= session.store_progress.lease_until_s

    def begin(self, session: Session) -> None:
        """Starts the lease of a new session, which the store grants with the first write."""
        session.store_progress.lease_until_s = lease_clock() + LEASE_S

    async def load(self, session_id: str, tenant: str) -> Session:
        """The tenant's session, in memory and leased.

        Raises `SessionUnknown`, `SessionExpired`, `SessionElsewhere` or `StoreUnavailable`.
        """
        session = self._table.find(session_id, tenant)
        if session is not None and self.is_held(session):
            return session
        if self._store is None:
            raise SessionExpired(session_id)
        # Requests for the same session share one load, and a request that is cancelled does not cancel it.
        loading = self._loading.get(session_id)
        if loading is None:
            loading = self._loading[session_id] = asyncio.create_task(self._load_once(self._store, session_id, tenant))
            loading.add_done_callback(_retrieve_exception)
        try:
            session = await asyncio.shield(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(self._release_if_idle)
            raise
        if self._table.find(session_id, tenant) is session and self.is_held(session):
            return session
        return await self.load(session_id, tenant)  # it was released in the meantime

    async def _load_once(self, store: AsyncStore, session_id: str, tenant: str) -> Session:
        """Loads a session. A request that comes after its end begins another load."""
        try:
            return await self._load(store, session_id, tenant)
        finally:
            del self._loading[session_id]

    async def _load(self, store: AsyncStore, session_id: str, tenant: str) -> Session:
        """Leases a session, and reads it unless the copy in memory is current."""
        while self._writer.is_in_flight(session_id) or (self._writer.is_dirty(session_id) and not store.failing):
            await self._writer.wait_written()  # its lease is being released
        session = self._table.find(session_id, tenant)
        if session is not None and self.is_held(session):
            return session
        known_version = None if session is None else session.store_progress.version
        until_s = lease_clock() + LEASE_S
        acquired = await store.acquire(session_id, known_version, self._table.clock())
        if acquired is None:
            if session is not None and not session.store_progress.stored:
                session.store_progress.lease_until_s = until_s
                return session  # it has not reached the store yet
            if session is not None:
                self._writer.drop(session)
            raise SessionExpired(session_id)
        version, loaded = acquired
        if loaded is not None:
            self._writer.forget(session_id)
            self._table.insert(loaded)
            self._moves["returned"] += 1
            session = loaded
        if session is None:
            raise StoreUnavailable("the session store granted a lease without the session")
        session.store_progress.version, session.store_progress.lease_until_s = version, until_s
        return session

    def _release_if_idle(self, loading: asyncio.Task[Session]) -> None:
        """Releases a session that was loaded for a request that did not wait for it."""
        if not loading.cancelled() and loading.exception() is None:
            self._writer.mark_dirty(loading.result())

    async def run(self, store: AsyncStore) -> None:
        """Renews, every `RENEW_S`, the leases of the sessions in use, until it is cancelled."""
        while store.shared:
            await asyncio.sleep(RENEW_S)
            leased = [
                session
                for session in self._table.busy()
                if session.store_progress.stored and not self._writer.is_in_flight(session.id)
            ]
            if leased:
                with contextlib.suppress(StoreUnavailable):
                    await self.renew(leased)

    async def renew(self, sessions: Sequence[Session]) -> None:
        """Renews leases; sessions whose lease another server has taken are lost. Raises `StoreUnavailable`."""
        if self._store is None:
            return
        until_s = lease_clock() + LEASE_S
        leases = [(session.id, session.store_progress.version) for session in sessions]
        lost = await self._store.renew(leases)
        for session, (_, version) in zip(sessions, leases, strict=True):
            progress = session.store_progress
            if progress.version != version or not progress.lease_until_s:
                continue  # released in the meantime, and perhaps leased again
            if session.id in lost:
                self._writer.lose(session)
            elif not session.is_idle:
                progress.lease_until_s = until_s


def _retrieve_exception(task: asyncio.Task[Session]) -> None:
    """Marks a task's exception as retrieved, in case nobody waits for the task any more."""
    if not task.cancelled():
        task.exception()
