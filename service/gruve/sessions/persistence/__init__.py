"""Persistence: what sessions in memory have to do with the session store, behind one object.

`async_store` calls the store on threads; `leases` brings a session into memory under a lease; `writer` writes what is
new, behind the tokens; `reader` shows sessions without leasing them; `sweeper` removes expired ones; `quota` counts
them. Everything here belongs to the event loop. Without a store, sessions live in the table alone.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence

from gruve.errors import SessionElsewhere, StoreUnavailable
from gruve.sessions.persistence.async_store import AsyncStore, StoreObserver
from gruve.sessions.persistence.leases import Leases
from gruve.sessions.persistence.quota import NEW_SESSION_BYTES, Quota, SessionBounds
from gruve.sessions.persistence.reader import Reader
from gruve.sessions.persistence.sweeper import Sweeper
from gruve.sessions.persistence.writer import Writer
from gruve.sessions.record import Session
from gruve.sessions.store import SessionSummary, Store
from gruve.sessions.table import SessionsConfig, SessionTable

__all__ = ["NEW_SESSION_BYTES", "Persistence", "SessionBounds", "StoreObserver"]

DURABLE_WAIT_S = 0.2
"""How long a message waits until what it depends on is durable."""
NEW_SESSION_WAIT_S = 2.0
"""How long the answer to a new session waits until the session is durable. Until then other servers answer that it has
expired."""
BEHIND_TOKENS = 64
"""How many tokens the store may be behind before messages report it."""
RELEASE_WAIT_S = 1.5
"""How long the end of a handed over stream waits until its session is written and released."""
UNWRITTEN_BUDGETS = 2
"""While the store fails, new sessions are accepted until idle sessions take this many times the memory budget."""


class Persistence:
    """The sessions of one server, in memory and in its store."""

    def __init__(self, table: SessionTable, store: Store | None, observer: StoreObserver | None = None) -> None:
        """`store` None keeps sessions in memory alone; `observer` receives the store's calls."""
        self.table = table
        self.store = store
        self.moves: collections.Counter[str] = collections.Counter()
        """Sessions that came into memory, were lost to another server, or were removed from the store, by reason."""
        self._async_store = None if store is None else AsyncStore(store, secrets.token_hex(8), observer)
        self._writer = Writer(table, self._async_store, self.moves)
        self._leases = Leases(table, self._async_store, self._writer, self.moves)
        self._reader = Reader(table, self._async_store, self._leases)
        self._sweeper = Sweeper(table, self.moves)
        self._quota = Quota(table, self._async_store, self._writer)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def config(self) -> SessionsConfig:
        """The limits of sessions."""
        return self.table.config

    @property
    def failing(self) -> bool:
        """See `AsyncStore.failing`."""
        return self._async_store is not None and self._async_store.failing

    @property
    def stored(self) -> int:
        """How many sessions the store had when they were last counted."""
        return self._sweeper.stored

    @property
    def behind(self) -> int:
        """How many sessions have something that is not in the store."""
        return self._writer.behind

    def on_failing(self, callback: Callable[[bool], None]) -> None:
        """Has `callback` called when the store begins and ceases to fail."""
        if self._async_store is not None:
            self._async_store.on_failing = callback

    def on_lost(self, callback: Callable[[Session], None]) -> None:
        """Has `callback` called with each session that another server has taken."""
        self._writer.on_lost = callback

    async def start(self) -> None:
        """Starts to write, to renew leases and to sweep."""
        if (store := self._async_store) is not None:
            work = (self._writer.run(), self._leases.run(store), self._sweeper.run(store))
            self._tasks = [asyncio.create_task(each) for each in work]

    async def close(self) -> None:
        """Writes what is left, unless the store fails, releases the leases and closes the store."""
        if self._async_store is None:
            return
        for session in self.table:
            self._writer.mark_dirty(session)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._writer.flush()
        self._async_store.close()

    async def check_quota(self, tenant: str, new: int, new_bytes: int, bounds: SessionBounds) -> None:
        """See `Quota.check`."""
        await self._quota.check(tenant, new, new_bytes, bounds)

    def create(self, model: str, digest: str, numerics_id: str, idle_ttl_s: float | None, tenant: str) -> Session:
        """A new session. Raises `StoreUnavailable` while the store fails and memory is full of unwritten sessions."""
        self._refuse_without_room()
        session = self.table.create(model, digest, numerics_id, idle_ttl_s, tenant)
        self._register(session)
        return session

    def fork(self, session: Session, seeds: Sequence[int]) -> list[Session]:
        """A copy of the session for each seed, which its next generation inherits. Raises as `create` does."""
        self._refuse_without_room()
        branches = [self.table.fork(session, seed) for seed in seeds]
        for branch in branches:
            self._register(branch)
        return branches

    def discard(self, session: Session) -> None:
        """Removes a session whose id no client has seen."""
        session.store_progress.lost = True
        self._writer.drop(session)

    async def delete(self, session_id: str, tenant: str) -> None:
        """Deletes a session. Raises what `pin` and `SessionTable.lease` raise."""
        while not await self._delete_leased(session_id, tenant):
            pass  # the lease was lost before the store was asked: now the session is elsewhere, gone or leased again
        self._quota.note_deleted(tenant)

    async def _delete_leased(self, session_id: str, tenant: str) -> bool:
        """Leases a session and deletes it; False if the lease was lost in between."""
        async with self.use(session_id, tenant) as session:
            store, progress = self._async_store, session.store_progress
            if store is not None and (progress.stored or self._writer.is_in_flight(session.id)):
                deleted = await asyncio.shield(asyncio.ensure_future(store.delete(session.id, progress.version)))
                if not deleted and progress.stored:  # one whose first write failed is in memory alone
                    self._writer.lose(session)
                    return False
            self.discard(session)
        return True

    @contextlib.asynccontextmanager
    async def pin(self, session_id: str, tenant: str) -> AsyncIterator[Session]:
        """The tenant's session, in memory and leased from the other servers, for as long as it is pinned or in use.

        Raises `SessionUnknown`, `SessionExpired`, `SessionElsewhere` or `StoreUnavailable`.
        """
        session = await self._leases.load(session_id, tenant)
        session.pins += 1
        try:
            yield session
        finally:
            session.pins -= 1
            self._writer.mark_dirty(session)

    @contextlib.asynccontextmanager
    async def use(self, session_id: str, tenant: str) -> AsyncIterator[Session]:
        """The session, pinned and used by nothing else meanwhile; also raises `SessionBusy`."""
        async with self.pin(session_id, tenant) as session:
            self.table.lease(session)
            try:
                yield session
            finally:
                self.table.release(session)

    async def read(self, session_id: str, tenant: str) -> tuple[Session, str]:
        """See `Reader.read`."""
        return await self._reader.read(session_id, tenant)

    async def page(
        self, model: str, before: tuple[float, str] | None, size: int, tenant: str
    ) -> list[tuple[SessionSummary | Session, str]]:
        """See `Reader.page`."""
        return await self._reader.page(model, before, size, tenant)

    def mark_dirty(self, session: Session) -> None:
        """See `Writer.mark_dirty`."""
        self._writer.mark_dirty(session)

    async def wait_durable(self, session: Session, within_s: float = DURABLE_WAIT_S) -> bool:
        """Waits until the store has what tokens depend on, at most `within_s`, and not at all while it fails."""
        progress, wanted = session.store_progress, session.store_progress.events
        if self.store is None or not session.id or progress.durable_events >= wanted:
            return True
        self._writer.mark_dirty(session)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while progress.durable_events < wanted and not progress.lost and not self.failing:
                    await self._writer.wait_written()
        return progress.durable_events >= wanted

    async def wait_before_send(self, session: Session, next_position: int) -> int | None:
        """Waits until what the tokens before `next_position` depend on is durable, before an answer has them.

        Returns the durable position if the store is behind or fails, which the message then reports; else None. Raises
        `SessionElsewhere` if another server has taken the session.
        """
        progress = session.store_progress
        if self.store is None or not session.id:
            return None
        if progress.durable_events < progress.events:
            await self.wait_durable(session)
        if not self.failing and self._leases.is_expired(session):
            with contextlib.suppress(StoreUnavailable):
                await self._leases.renew([session])
        if progress.lost:
            raise SessionElsewhere(f"another server has taken session {session.id!r} over")
        self._writer.mark_dirty(session)
        return max(0, progress.durable_position - 1) if self._is_behind(session, next_position) else None

    async def release(self, session: Session) -> None:
        """Waits until an idle session is written and its lease released, at most `RELEASE_WAIT_S`."""
        self._writer.mark_dirty(session)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_WAIT_S):
                while not self.failing and (self._writer.is_dirty(session.id) or self._writer.is_in_flight(session.id)):
                    await self._writer.wait_written()

    def is_behind(self, session: Session) -> bool:
        """Whether the store is so far behind the session that `GetSession` reports it."""
        return self.store is not None and session.dirty and self._is_behind(session, session.position)

    def _is_behind(self, session: Session, position: int) -> bool:
        behind = position - session.store_progress.durable_position
        return self._writer.is_overdue(session) or self.failing or behind > BEHIND_TOKENS

    def _register(self, session: Session) -> None:
        """Leases a new session and schedules its first write."""
        self._leases.begin(session)
        self._writer.mark_dirty(session)

    def _refuse_without_room(self) -> None:
        max_bytes = UNWRITTEN_BUDGETS * self.config.budget_bytes
        if self.failing and self.table.idle_bytes > max_bytes:
            raise StoreUnavailable(
                f"the session store fails and memory is full: idle sessions take {self.table.idle_bytes} bytes; "
                f"at most {max_bytes} are kept"
            )
