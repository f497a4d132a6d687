"""Keeps sessions in the store: brings them into memory when they are used, writes what is new of them, lets them go.

Writing never stands in a token's way. What has changed is noted, and one task writes it, for all sessions together, on
a thread of its own: at once what tokens depend on, after some tokens or some time what could be generated again. Only
the first message that depends on something new waits until that is durable, and not for long: a store that is slow or
gone stops nobody, its writes are repeated until they arrive, and messages say how far it has come.

All that is here belongs to the event loop; only the store's own calls run elsewhere. Without a store nothing is done.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gruve.errors import GruveError, SessionElsewhere, SessionExpired, StoreUnavailable
from gruve.sessions.encoding import PendingWrite, prepare_write, unpack_session
from gruve.sessions.record import Session
from gruve.sessions.store import LEASE_S, SessionSummary, Store
from gruve.sessions.table import SessionTable

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_S = 0.2
"""How long a message waits for what it depends on to become durable."""
NEW_S = 2.0
"""How long a new session waits to be durable before its id is told: to other servers it is one that has expired."""
BEHIND_TOKENS, BEHIND_S = 64, 0.2
"""How far the store may be behind before messages say so."""
WRITE_TOKENS, WRITE_S = 48, 0.1
"""After so many tokens, or after so long, what could be generated again is written."""
FEWEST_TOKENS = 32
"""A session with fewer new ones is left out of a write that others have asked for."""
PAUSE_S = 0.02
"""Between two writes that only tokens have asked for."""
PAUSE_EACH_S = 0.0003
"""Between any two writes, for each session in use, up to `PAUSE_S`: a write for many costs little more than for one."""
RETRY_S, LONGEST_RETRY_S = 0.05, 2.0
MOST_AT_ONCE = 256
"""Sessions in one write."""
RENEW_S = 3.0
SWEEP_S, SWEEP_SESSIONS = 10.0, 200
UNWRITTEN_BUDGETS = 2
"""While the store is down, new sessions are taken in until memory holds this many times its budget."""
HAND_OVER_S = 1.5
"""How long the end of a stream that is handed over waits for its session to be written and let go."""


def lease_clock() -> float:
    """Seconds that pass while the machine sleeps as well, for a lease does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclasses.dataclass(frozen=True, slots=True)
class StoreObserver:
    """Callbacks that hear about each call of the store, for metrics."""

    on_call: Callable[[str, float], None] = lambda _operation, _seconds: None
    """Called with the operation and its duration in seconds, whether it failed or not."""
    on_error: Callable[[str], None] = lambda _operation: None
    """Called with the operation that failed."""


class Persistence:
    """Between the table of sessions and their store."""

    def __init__(self, sessions: SessionTable, store: Store | None, observer: StoreObserver | None = None) -> None:
        self.sessions = sessions
        self.store = store
        self.owner = secrets.token_hex(8)
        self.moves: collections.Counter[str] = collections.Counter()
        """Sessions that went somewhere, by reason."""
        self.stored = 0
        """How many sessions the store has, counted now and then."""
        self.on_lost: Callable[[Session], None] = lambda _: None
        """Called when another server has taken a session."""
        self.on_failing: Callable[[bool], None] = lambda _: None
        """Called when the store begins and ceases to fail."""
        self._observer = observer or StoreObserver()
        self._failures: set[str] = set()
        """What the store failed to do when it was last asked: to read, to write."""
        # Two threads, so that who reads does not wait for who writes.
        self._reading, self._writing = (ThreadPoolExecutor(1, f"gruve-store-{name}") for name in ("read", "write"))
        self._unwritten: dict[str, tuple[Session, float]] = {}
        """Sessions with something to write, and since when."""
        self._flying: dict[str, float] = {}
        """Sessions being written, and since when what is being written was waiting."""
        self._bringing: dict[str, asyncio.Task[Session]] = {}
        self._wanted, self._urgent, self._written = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def failing(self) -> bool:
        """Whether the store did not do its part when it was last asked."""
        return bool(self._failures)

    async def start(self) -> None:
        """Begins to write, to renew leases and to sweep."""
        if self.store is not None:
            self._tasks = [asyncio.create_task(work()) for work in (self._write, self._renew, self._sweep)]

    async def close(self) -> None:
        """Writes what is left, if the store takes it, and lets go of the leases and of the store."""
        if self.store is None:
            return
        for session in self.sessions:
            self.note(session)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable):
            while self._unwritten:
                await self._write_some(everything=True)
        if self._unwritten:
            log.error("sessions were not stored", extra={"sessions": len(self._unwritten)})
        for executor in (self._reading, self._writing):
            executor.shutdown()
        self.store.close()

    def create(self, model: str, digest: str, numerics_id: str, ttl_s: float | None) -> Session:
        """A new session; while the store is down it begins in memory, so far as there is room."""
        self.refuse_without_room()
        session = self.sessions.create(model, digest, numerics_id, ttl_s)
        self.begin(session)
        return session

    def discard(self, session: Session) -> None:
        """Has nothing more of a session that nobody has been told of."""
        session.store_progress.lost = True
        self._forget(session)

    def refuse_without_room(self) -> None:
        """Raises `StoreUnavailable` when memory is full of sessions that the store does not take."""
        most = UNWRITTEN_BUDGETS * self.sessions.config.budget_bytes
        if self.failing and self.sessions.idle_bytes > most:
            raise StoreUnavailable(
                f"the session store does not answer, and memory is full: sessions that wait for it take "
                f"{self.sessions.idle_bytes} bytes, at most {most} are kept"
            )

    def begin(self, session: Session) -> None:
        """Takes note of a session that is new to the store."""
        session.store_progress.lease_until_s = lease_clock() + LEASE_S
        self.note(session)

    @contextlib.asynccontextmanager
    async def hold(self, session_id: str) -> AsyncIterator[Session]:
        """The session, in memory and leased from the other servers, as long as it is held or in use.

        Raises `SessionUnknown`, `SessionExpired`, `SessionElsewhere` or `StoreUnavailable`.
        """
        session = await self._bring(session_id)
        session.holds += 1
        try:
            yield session
        finally:
            session.holds -= 1
            self.note(session)

    async def _bring(self, session_id: str) -> Session:
        session = self.sessions.find(session_id)
        if session is not None and (self.store is None or self._is_ours(session)):
            return session
        if self.store is None:
            raise SessionExpired(f"session {session_id!r} has expired or was deleted")
        # Whoever else asks for it meanwhile waits for the same answer, and one who leaves does not take it along.
        bringing = self._bringing.get(session_id)
        if bringing is None:
            bringing = self._bringing[session_id] = asyncio.create_task(self._acquire(session_id))
            bringing.add_done_callback(lambda _: self._bringing.pop(session_id, None))
            bringing.add_done_callback(_look)
        try:
            session = await asyncio.shield(bringing)
        except asyncio.CancelledError:
            bringing.add_done_callback(self._let_go_unless_held)
            raise
        if self.sessions.find(session_id) is session and self._is_ours(session):
            return session
        return await self._bring(session_id)  # it has been let go of meanwhile

    def _let_go_unless_held(self, bringing: asyncio.Task[Session]) -> None:
        """Others may have a session that was brought for one who did not wait for it."""
        if not bringing.cancelled() and bringing.exception() is None:
            self.note(bringing.result())

    def _is_ours(self, session: Session) -> bool:
        """Whether nobody else can have the session, as far as is known here."""
        return self.store is None or not self.store.shared or session.store_progress.lease_until_s > 0.0

    async def _acquire(self, session_id: str) -> Session:
        """Leases a session and brings it into memory, unless what memory has of it is still true."""
        while session_id in self._flying or (session_id in self._unwritten and not self.failing):
            await self._written.wait()  # it is being let go of
        session = self.sessions.find(session_id)
        if session is not None and self._is_ours(session):
            return session
        known = None if session is None else session.store_progress.version
        until_s = lease_clock() + LEASE_S
        assert self.store is not None  # noqa: S101 - or there would be nothing to acquire from
        acquired = await self._ask("acquire", self._fetch, session_id, known, self.sessions.clock())
        if acquired is None:
            if session is not None and not session.store_progress.stored:
                session.store_progress.lease_until_s = until_s
                return session  # the store has yet to hear of it
            if session is not None:
                self._forget(session)
            raise SessionExpired(f"session {session_id!r} has expired or was deleted")
        version, fetched = acquired
        if fetched is not None:
            self._unwritten.pop(session_id, None)
            self.sessions.take_in(fetched)
            self.moves["returned"] += 1
            session = fetched
        if session is None:
            raise StoreUnavailable("the session store has not told what it was asked for")
        session.store_progress.version, session.store_progress.lease_until_s = version, until_s
        return session

    def _fetch(self, session_id: str, known: int | None, now_s: float) -> tuple[int, Session | None] | None:
        """On another thread: a lease, and the session where memory has nothing that is still true."""
        assert self.store is not None  # noqa: S101 - `_acquire` has looked
        acquired = self.store.acquire(session_id, self.owner, known, now_s)
        if acquired is None:
            return None
        fetched = None if acquired.stored is None else unpack_session(acquired.stored, acquired.version)
        return acquired.version, fetched

    async def look(self, session_id: str) -> tuple[Session, str]:
        """A session to be read, not used, and who has it: "" for this server's memory, "store", or an owner."""
        session = self.sessions.find(session_id)
        if session is not None and (self._is_ours(session) or session.dirty):
            return session, ""
        if self.store is None:
            raise SessionExpired(f"session {session_id!r} has expired or was deleted")
        stored = await self._ask("read", self.store.read, session_id, self.sessions.clock())
        if stored is None:
            raise SessionExpired(f"session {session_id!r} has expired or was deleted")
        return unpack_session(stored, 0), self._location(stored.listed, session)

    def _location(self, listed: SessionSummary, session: Session | None) -> str:
        if listed.owner not in ("", self.owner):
            return listed.owner
        return "" if session is not None and session.position == listed.position else "store"

    async def page(
        self, model: str, before: tuple[float, str] | None, size: int
    ) -> list[tuple[SessionSummary | Session, str]]:
        """Sessions of memory and store, the latest created first, each with its location as in `look`."""
        matching = {
            s.id: s
            for s in self.sessions
            if model in ("", s.model) and (before is None or (s.created_s, s.id) < before)
        }
        found: list[tuple[tuple[float, str], SessionSummary | Session, str]] = []
        ours = {i: s for i, s in matching.items() if self._is_ours(s) or s.dirty}
        if self.store is not None:
            for listed in await self._ask("page", self.store.page, model, before, size, self.sessions.clock()):
                if listed.id not in ours:
                    place = self._location(listed, matching.get(listed.id))
                    found.append(((listed.created_s, listed.id), listed, place))
        found += [((s.created_s, s.id), s, "") for s in ours.values()]
        found.sort(key=lambda entry: entry[0], reverse=True)
        return [(entry, place) for _, entry, place in found[:size]]

    async def delete(self, session: Session) -> None:
        """Deletes a session that is held; raises `SessionBusy` or `StoreUnavailable`."""
        self.sessions.lease(session)
        try:
            if self.store is not None and (session.store_progress.stored or session.id in self._flying):
                version = session.store_progress.version
                deleted = self._ask(
                    "delete", self.store.delete, session.id, self.owner, version, executor=self._writing
                )
                await asyncio.shield(asyncio.ensure_future(deleted))
        except BaseException:
            self.sessions.release(session)
            raise
        session.store_progress.lost = True  # nothing of it may be written any more
        self._forget(session)

    def note(self, session: Session) -> None:
        """Takes note of what may have changed of a session, so that it is written in good time."""
        if self.store is None or not session.id or session.store_progress.lost:
            return
        kept = session.store_progress
        idle = not session.in_use and not session.holds
        leaving = idle and self.store.shared and kept.lease_until_s > 0.0
        if not session.dirty and not leaving:
            return
        if session.id not in self._unwritten:
            self._unwritten[session.id] = (session, time.monotonic())
        if kept.submitted_events < kept.events or leaving:
            self._urgent.set()
            self._wanted.set()
        elif session.position - kept.position >= WRITE_TOKENS:
            self._wanted.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_S, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._wanted.set()

    async def saved(self, session: Session, within_s: float = PATIENCE_S) -> bool:
        """Waits until what tokens depend on is durable: not longer than `within_s`, not at all for a failing store."""
        kept, wanted = session.store_progress, session.store_progress.events
        if self.store is None or not session.id or kept.durable_events >= wanted:
            return True
        self.note(session)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while kept.durable_events < wanted and not kept.lost and not self.failing:
                    await self._written.wait()
        return kept.durable_events >= wanted

    async def allow(self, session: Session, next_position: int) -> int | None:
        """Called before tokens up to before `next_position` are sent: waits for what they depend on.

        Returns the durable position where the message must say it, and raises `SessionElsewhere` where another server
        has the session by now.
        """
        kept = session.store_progress
        if self.store is None or not session.id:
            return None
        if kept.durable_events < kept.events:
            await self.saved(session)
        if self.store.shared and session.in_use and lease_clock() >= kept.lease_until_s and not self.failing:
            with contextlib.suppress(StoreUnavailable):
                await self._renew_all([session])
        if kept.lost:
            raise SessionElsewhere(f"another server has taken session {session.id!r} over")
        self.note(session)
        if self._is_overdue(session) or self.failing or next_position - kept.durable_position > BEHIND_TOKENS:
            return max(0, kept.durable_position - 1)
        return None

    async def let_go(self, session: Session) -> None:
        """Waits until a session that nobody uses is written and another server may have it; not for long."""
        self.note(session)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_S):
                while (session.id in self._unwritten or session.id in self._flying) and not self.failing:
                    await self._written.wait()

    def is_behind(self, session: Session) -> bool:
        """Whether the store is behind with a session that is looked at."""
        if self.store is None or not session.dirty:
            return False
        behind = session.position - session.store_progress.durable_position
        return self._is_overdue(session) or self.failing or behind > BEHIND_TOKENS

    def _is_overdue(self, session: Session) -> bool:
        """Whether something of the session has waited for the store too long."""
        _, since_s = self._unwritten.get(session.id, (session, math.inf))
        return time.monotonic() - min(since_s, self._flying.get(session.id, math.inf)) > BEHIND_S

    async def _write(self) -> None:
        """Writes what is wanted, one write after the other, as long as the server runs."""
        retry_s = RETRY_S
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._urgent.clear()
            try:
                await self._write_some()
                retry_s = RETRY_S
                pause_s = min(PAUSE_S, PAUSE_EACH_S * self.sessions.in_use)
                await asyncio.sleep(pause_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PAUSE_S - pause_s):
                        await self._urgent.wait()
            except StoreUnavailable:
                self._wanted.set()
                await asyncio.sleep(retry_s)
                retry_s = min(LONGEST_RETRY_S, 2.0 * retry_s)
            except Exception:  # what is wrong with one session must not keep the others from being stored
                log.exception("sessions could not be written")

    async def _write_some(self, *, everything: bool = False) -> None:
        """One write of what is due; raises `StoreUnavailable` and then has taken it back."""
        now = time.monotonic()
        handed: list[PendingWrite] = []
        for session, since_s in list(self._unwritten.values()):
            kept, idle = session.store_progress, not session.in_use and not session.holds
            enough = session.position - kept.position >= FEWEST_TOKENS or now - since_s >= WRITE_S
            if kept.lost:
                del self._unwritten[session.id]
            elif everything or idle or enough or kept.submitted_events < kept.events:
                del self._unwritten[session.id]
                self._flying[session.id] = since_s
                handed.append(prepare_write(session, release=idle))
                if idle:
                    kept.lease_until_s = 0.0
            if len(handed) == MOST_AT_ONCE:
                self._wanted.set()
                break
        if self._unwritten and self._timer is None and not everything:
            due_s = min(since_s for _, since_s in self._unwritten.values()) + WRITE_S
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due_s - now), self._time_is_up)
        if handed:
            await self._write_handed(handed)

    async def _write_handed(self, handed: list[PendingWrite]) -> None:
        assert self.store is not None  # noqa: S101 - or nothing would be handed over
        lost: Iterable[str] | None = None
        try:
            writes = [each.write for each in handed]
            lost = set(await self._ask("write", self.store.write, self.owner, writes, executor=self._writing))
        finally:
            for each in handed:
                session = each.session
                since_s = self._flying.pop(session.id)
                if lost is None:
                    each.fail()
                    self._unwritten[session.id] = (session, since_s)
                elif session.id in lost:
                    self._lose(session)
                else:
                    each.succeed()
            self._written.set()
            self._written = asyncio.Event()
            self.sessions.trim()

    def _lose(self, session: Session) -> None:
        """Another server has it, or it has expired in the store."""
        if session.store_progress.lost:
            return
        session.store_progress.lost = True
        log.warning("a session is elsewhere", extra={"session": session.id[:8]})
        self.moves["lost"] += 1
        self._forget(session)
        self.on_lost(session)

    def _forget(self, session: Session) -> None:
        if self._unwritten.get(session.id, (None,))[0] is session:
            del self._unwritten[session.id]
        self.sessions.forget(session)

    async def _renew(self) -> None:
        """Lets the leases of what is held or in use begin anew, all in one."""
        assert self.store is not None  # noqa: S101 - `start` has looked
        while self.store.shared:
            await asyncio.sleep(RENEW_S)
            leased = [s for s in self.sessions.busy() if s.store_progress.stored and s.id not in self._flying]
            if leased:
                with contextlib.suppress(StoreUnavailable):
                    await self._renew_all(leased)

    async def _renew_all(self, sessions: Sequence[Session]) -> None:
        assert self.store is not None  # noqa: S101 - who calls it has looked
        until_s = lease_clock() + LEASE_S
        leases = [(session.id, session.store_progress.version) for session in sessions]
        lost = set(await self._ask("renew", self.store.renew, self.owner, leases))
        for session, (_, version) in zip(sessions, leases, strict=True):
            if session.store_progress.version != version or not session.store_progress.lease_until_s:
                continue  # let go of in the meantime, and maybe leased anew
            if session.id in lost:
                self._lose(session)
            elif session.in_use or session.holds:
                session.store_progress.lease_until_s = until_s

    async def _sweep(self) -> None:
        """Removes what has expired from the store, so many a pass, and counts what it has."""
        assert self.store is not None  # noqa: S101 - `start` has looked
        while True:
            with contextlib.suppress(StoreUnavailable):
                removed = SWEEP_SESSIONS
                while removed == SWEEP_SESSIONS:
                    busy = {session.id for session in self.sessions.busy()}
                    now_s = self.sessions.clock()
                    removed = await self._ask("expire", self.store.expire, now_s, SWEEP_SESSIONS, busy)
                    self.moves["expired_in_store"] += removed
                self.stored = await self._ask("count", self.store.count)
            await asyncio.sleep(SWEEP_S)

    async def _ask(
        self, operation: str, function: Callable[..., T], *args: object, executor: ThreadPoolExecutor | None = None
    ) -> T:
        """Calls the store on another thread; times it, and takes note of whether it did its part."""
        started_s = time.monotonic()
        kind = "write" if executor is self._writing else "read"
        try:
            answer = await asyncio.get_running_loop().run_in_executor(executor or self._reading, function, *args)
        except StoreUnavailable as error:
            self._note_failure(kind, operation, error.__cause__ or error)
            raise
        except GruveError:
            self._note_success(kind)
            raise
        except Exception as error:
            self._note_failure(kind, operation, error)
            raise StoreUnavailable("the session store holds what cannot be read, or failed in its own way") from error
        finally:
            self._observer.on_call(operation, time.monotonic() - started_s)
        self._note_success(kind)
        return answer

    def _note_failure(self, kind: str, operation: str, error: BaseException) -> None:
        self._observer.on_error(operation)
        if kind not in self._failures:
            name = self.store.name if self.store else ""
            log.error("the session store is failing", extra={"store": name, "operation": operation, "why": str(error)})
            self._failures.add(kind)
            self.on_failing(True)

    def _note_success(self, kind: str) -> None:
        if kind in self._failures:
            self._failures.discard(kind)
            log.info("the session store answers again", extra={"operation": kind, "behind": self.behind})
            self.on_failing(self.failing)

    @property
    def behind(self) -> int:
        """How many sessions have something that has not arrived in the store."""
        return len(self._unwritten) + len(self._flying)


def _look(task: asyncio.Task[Session]) -> None:
    """Takes an exception that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
