"""The write-behind writer: writes what is new of sessions to the store, for all sessions together, off the token path.

What tokens depend on (a session's creation, a generation's beginning, a control, a rewind) is written at once.
Generated tokens can be generated again, so they are written after `WRITE_TOKENS` tokens or `WRITE_S` seconds. A failed
write is repeated until it succeeds.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import math
import time
from collections.abc import Callable

from gruve.errors import StoreUnavailable
from gruve.sessions.encoding import PendingWrite, prepare_write
from gruve.sessions.persistence.async_store import AsyncStore
from gruve.sessions.record import Session
from gruve.sessions.table import SessionTable

log = logging.getLogger(__name__)

WRITE_TOKENS, WRITE_S = 48, 0.1
"""Generated tokens are written once there are this many of a session, or after this long."""
MIN_TOKENS = 32
"""A session with fewer new tokens, which is not due by time, is left out of a write that others are due for."""
PAUSE_S = 0.02
"""The pause before a write that contains nothing but generated tokens."""
PAUSE_PER_SESSION_S = 0.0003
"""The pause between any two writes, for each session in use, up to `PAUSE_S`: one write of many sessions costs little
more than a write of one."""
RETRY_S, MAX_RETRY_S = 0.05, 2.0
"""The pause after a write that failed, and the longest to which it doubles while writes fail."""
MAX_SESSIONS_PER_WRITE = 256
OVERDUE_S = 0.2
"""A session that has waited longer than this for the store is reported as behind."""


class Writer:
    """Writes dirty sessions to the store. Without a store nothing is ever dirty."""

    def __init__(self, table: SessionTable, store: AsyncStore | None, moves: collections.Counter[str]) -> None:
        """`moves` counts, under "lost", the sessions that another server has taken."""
        self.on_lost: Callable[[Session], None] = lambda _: None
        """Called when another server has taken a session."""
        self._table = table
        self._store = store
        self._moves = moves
        self._dirty: dict[str, tuple[Session, float]] = {}
        """Sessions with something to write, and since when."""
        self._in_flight: dict[str, float] = {}
        """Sessions that are being written, and since when what is being written was dirty."""
        self._due, self._urgent, self._written = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def behind(self) -> int:
        """How many sessions have something that is not in the store."""
        return len(self.unwritten())  # scrapes ask on another thread

    def is_dirty(self, session_id: str) -> bool:
        """Whether a session waits to be written."""
        return session_id in self._dirty

    def is_in_flight(self, session_id: str) -> bool:
        """Whether a session is being written."""
        return session_id in self._in_flight

    def unwritten(self) -> set[str]:
        """The sessions that wait to be written or are being written; some do both."""
        return {*self._dirty, *self._in_flight}

    def is_overdue(self, session: Session) -> bool:
        """Whether something of the session has waited for the store longer than `OVERDUE_S`."""
        _, since_s = self._dirty.get(session.id, (session, math.inf))
        return time.monotonic() - min(since_s, self._in_flight.get(session.id, math.inf)) > OVERDUE_S

    def mark_dirty(self, session: Session) -> None:
        """Schedules a write of whatever has changed in the session, and of the release of its lease if it is idle."""
        if self._store is None or not session.id or session.store_progress.lost:
            return
        progress = session.store_progress
        releasing = session.is_idle and self._store.shared and progress.lease_until_s > 0.0
        if not session.dirty and not releasing:
            return
        if session.id not in self._dirty:
            self._dirty[session.id] = (session, time.monotonic())
        if progress.submitted_events < progress.events or releasing:
            self._urgent.set()
            self._due.set()
        elif session.position - progress.position >= WRITE_TOKENS:
            self._due.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_S, self._time_is_up)

    async def wait_written(self) -> None:
        """Waits until the next write has ended, whether it succeeded or not."""
        await self._written.wait()

    async def run(self) -> None:
        """Writes what is due, one write after the other, until it is cancelled."""
        retry_s = RETRY_S
        while True:
            await self._due.wait()
            self._due.clear()
            self._urgent.clear()
            try:
                await self._write_due()
                retry_s = RETRY_S
                await self._pause()
            except StoreUnavailable:
                self._due.set()
                await asyncio.sleep(retry_s)
                retry_s = min(MAX_RETRY_S, 2.0 * retry_s)
            except Exception:  # the next write may succeed
                log.exception("sessions could not be written")

    async def flush(self) -> None:
        """Writes everything, unless the store fails."""
        with contextlib.suppress(StoreUnavailable):
            while self._dirty:
                await self._write_due(everything=True)
        if self._dirty:
            log.error("sessions were not stored", extra={"sessions": len(self._dirty)})

    def lose(self, session: Session) -> None:
        """Drops a session that another server has taken, or that has expired in the store, and calls `on_lost`."""
        if session.store_progress.lost:
            return
        session.store_progress.lost = True
        log.warning("a session is elsewhere", extra={"session": session.id[:8]})
        self._moves["lost"] += 1
        self.drop(session)
        self.on_lost(session)

    def drop(self, session: Session) -> None:
        """Removes a session from memory and forgets what of it was to be written."""
        if self._dirty.get(session.id, (None,))[0] is session:
            del self._dirty[session.id]
        self._table.remove(session)

    def forget(self, session_id: str) -> None:
        """Forgets what was to be written of a session whose copy in memory is out of date."""
        self._dirty.pop(session_id, None)

    def _time_is_up(self) -> None:
        self._timer = None
        self._due.set()

    async def _pause(self) -> None:
        pause_s = min(PAUSE_S, PAUSE_PER_SESSION_S * self._table.in_use)
        await asyncio.sleep(pause_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_S - pause_s):
                await self._urgent.wait()

    async def _write_due(self, *, everything: bool = False) -> None:
        """Does one write of what is due. Raises `StoreUnavailable`; then everything in it is dirty again."""
        now = time.monotonic()
        pending: list[PendingWrite] = []
        for session, since_s in list(self._dirty.values()):
            progress = session.store_progress
            enough = session.position - progress.position >= MIN_TOKENS or now - since_s >= WRITE_S
            if progress.lost:
                del self._dirty[session.id]
            elif everything or session.is_idle or enough or progress.submitted_events < progress.events:
                del self._dirty[session.id]
                try:
                    pending.append(prepare_write(session, release=session.is_idle))
                except Exception:  # it is tried again when it changes; the others must not wait for it
                    log.exception("a session could not be encoded", extra={"session": session.id[:8]})
                    continue
                self._in_flight[session.id] = since_s
                if session.is_idle:
                    progress.lease_until_s = 0.0
            if len(pending) == MAX_SESSIONS_PER_WRITE:
                self._due.set()
                break
        if self._dirty and self._timer is None and not everything:
            due_s = min(since_s for _, since_s in self._dirty.values()) + WRITE_S
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due_s - now), self._time_is_up)
        if pending:
            await self._write(pending)

    async def _write(self, pending: list[PendingWrite]) -> None:
        assert self._store is not None  # noqa: S101 - without a store nothing is dirty
        lost: set[str] | None = None
        try:
            lost = await self._store.write([each.write for each in pending])
        finally:
            for each in pending:
                session = each.session
                since_s = self._in_flight.pop(session.id)
                if lost is None:
                    each.fail()
                    self._dirty[session.id] = (session, since_s)
                elif session.id in lost:
                    self.lose(session)
                else:
                    each.succeed()
            self._written.set()
            self._written = asyncio.Event()
            self._table.evict_to_fit()
