"""The session store for the event loop: runs each call on a thread, times it, and tracks whether the store works."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gruve.errors import GruveError, StoreUnavailable
from gruve.sessions.encoding import unpack_session
from gruve.sessions.record import Session
from gruve.sessions.store import SessionSummary, Store, StoredSession, Write

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class StoreObserver:
    """Callbacks that receive each call of the store, for metrics."""

    on_call: Callable[[str, float], None] = lambda _operation, _seconds: None
    """Called with the operation and its duration in seconds, whether it failed or not."""
    on_error: Callable[[str], None] = lambda _operation: None
    """Called with the operation that failed."""


class AsyncStore:
    """The methods of `Store` as coroutines. All of them raise `StoreUnavailable` if the store fails.

    Reads and writes have one thread each, so that a read does not wait for a write.
    """

    def __init__(self, store: Store, owner: str, observer: StoreObserver | None = None) -> None:
        """`owner` is this server's name in leases."""
        self.store = store
        self.owner = owner
        self.shared = store.shared
        self.on_failing: Callable[[bool], None] = lambda _: None
        """Called with True when the store begins to fail, and with False when it works again."""
        self._observer = observer or StoreObserver()
        self._failures: set[str] = set()
        """The kinds of call, "read", "lease" and "write", whose last one failed."""
        reading, writing = (ThreadPoolExecutor(1, f"gruve-store-{name}") for name in ("read", "write"))
        self._threads = {"read": reading, "lease": reading, "write": writing}

    @property
    def failing(self) -> bool:
        """Whether the last call of a kind failed. A store that only answers, such as a replica of Redis, fails too."""
        return bool(self._failures)

    def close(self) -> None:
        """Waits for the calls that run, then closes the store."""
        for threads in self._threads.values():
            threads.shutdown()
        self.store.close()

    async def acquire(
        self, session_id: str, known_version: int | None, now_s: float
    ) -> tuple[int, Session | None] | None:
        """Leases a session: the lease's version, and the session unless the version `known_version` is still current.

        Returns None if the store has no such session. Raises `SessionElsewhere` while another server has the lease.
        """
        return await self._run("lease", "acquire", self._acquire, session_id, known_version, now_s)

    def _acquire(self, session_id: str, known_version: int | None, now_s: float) -> tuple[int, Session | None] | None:
        acquired = self.store.acquire(session_id, self.owner, known_version, now_s)
        if acquired is None:
            return None
        stored = acquired.stored
        return acquired.version, None if stored is None else unpack_session(stored, acquired.version)

    async def read(self, session_id: str, now_s: float) -> StoredSession | None:
        """See `Store.read`."""
        return await self._run("read", "read", self.store.read, session_id, now_s)

    async def page(
        self, tenant: str, model: str, before: tuple[float, str] | None, size: int, now_s: float
    ) -> list[SessionSummary]:
        """See `Store.page`."""
        return await self._run("read", "page", self.store.page, tenant, model, before, size, now_s)

    async def write(self, writes: Sequence[Write]) -> set[str]:
        """See `Store.write`."""
        return set(await self._run("write", "write", self.store.write, self.owner, writes))

    async def delete(self, session_id: str, version: int) -> bool:
        """See `Store.delete`. It is ordered after the writes before it."""
        return await self._run("write", "delete", self.store.delete, session_id, self.owner, version)

    async def renew(self, leases: Sequence[tuple[str, int]]) -> set[str]:
        """See `Store.renew`."""
        return set(await self._run("lease", "renew", self.store.renew, self.owner, leases))

    async def expire(self, now_s: float, max_count: int, exclude: Collection[str]) -> int:
        """See `Store.expire`. Every sweep calls it, so it finds out whether the store accepts changes again."""
        return await self._run("lease", "expire", self.store.expire, now_s, max_count, exclude)

    async def count(self) -> int:
        """See `Store.count`."""
        return await self._run("read", "count", self.store.count)

    async def count_live(self, tenant: str, now_s: float, exclude: Collection[str], enough: int) -> int:
        """See `Store.count_live`."""
        return await self._run("read", "count_live", self.store.count_live, tenant, now_s, exclude, enough)

    async def live_bytes(self, tenant: str, now_s: float, exclude: Collection[str]) -> int:
        """See `Store.live_bytes`."""
        return await self._run("read", "live_bytes", self.store.live_bytes, tenant, now_s, exclude)

    async def _run(self, kind: str, operation: str, function: Callable[..., T], *args: object) -> T:
        started_s = time.monotonic()
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._threads[kind], function, *args)
        except StoreUnavailable as error:
            self._note_failure(kind, operation, error.__cause__ or error)
            raise
        except GruveError:
            self._note_success(kind)
            raise
        except Exception as error:
            self._note_failure(kind, operation, error)
            raise StoreUnavailable("the session store holds data that cannot be read, or its driver failed") from error
        finally:
            self._observer.on_call(operation, time.monotonic() - started_s)
        self._note_success(kind)
        return answer

    def _note_failure(self, kind: str, operation: str, error: BaseException) -> None:
        self._observer.on_error(operation)
        if kind not in self._failures:
            log.error(
                "the session store is failing",
                extra={"store": self.store.name, "operation": operation, "why": str(error)},
            )
            self._failures.add(kind)
            self.on_failing(True)

    def _note_success(self, kind: str) -> None:
        if kind in self._failures:
            self._failures.discard(kind)
            if not self.failing:
                log.info("the session store works again", extra={"store": self.store.name})
                self.on_failing(False)
