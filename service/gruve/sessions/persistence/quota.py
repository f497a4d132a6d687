"""The quota: how many sessions a tenant has, and all tenants have, and how many bytes those take.

Sessions that are in use or not yet written count from memory; all others count from the store, so the number is right
after a restart and for sessions that have left memory. Without a store memory has them all.

A session in use counts with what it may come to take until its generation ends, so what was admitted never exceeds a
bound, apart from what controls add to a generation that runs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math

from gruve.errors import LimitExceeded, StoreUnavailable
from gruve.sessions.encoding import content_bytes
from gruve.sessions.persistence.async_store import AsyncStore
from gruve.sessions.persistence.writer import Writer
from gruve.sessions.record import Session
from gruve.sessions.store import ALL_TENANTS
from gruve.sessions.table import SessionTable

NEW_SESSION_BYTES = 1_024
"""What an empty session counts before it exists: more than its head takes."""


@dataclasses.dataclass(frozen=True, slots=True)
class SessionBounds:
    """How many sessions a tenant, and all tenants in total, may have, and the bytes of them; None means any number."""

    tenant_sessions: int | None = None
    total_sessions: int | None = None
    tenant_bytes: int | None = None
    total_bytes: int | None = None


NO_BOUNDS = SessionBounds()
FULL_S = 1.0
"""How long a count that refused a session is used again, so that many refusals cost one count."""
MAX_FULL = 1_024
"""Counts to remember; beyond that all are forgotten."""
COUNTING_SHARE = 0.02
"""The most of its time that a store spends on sums of bytes below the limit, for one tenant."""


@dataclasses.dataclass(slots=True)
class _Sum:
    """The bytes of a tenant's sessions: those counted, and those admitted since."""

    counted: int
    until_s: float
    """Until when it is used, by the loop's clock: other servers, resumed generations and controls add bytes too."""
    admitted: int = 0


class Quota:
    """Counts sessions and their bytes, and refuses what would exceed a bound."""

    def __init__(self, table: SessionTable, store: AsyncStore | None, writer: Writer) -> None:
        self._table = table
        self._store = store
        self._writer = writer
        self._checking = asyncio.Lock()
        self._full: dict[str, tuple[int, float]] = {}
        """The counts that have refused a session, by tenant, and until when they are used, by the loop's clock."""
        self._sums: dict[str, _Sum] = {}

    async def check(self, tenant: str, new: int, new_bytes: int, bounds: SessionBounds) -> None:
        """Raises `LimitExceeded` if `new` more sessions of the tenant, or `new_bytes` more, would exceed a bound.

        The caller creates them before it awaits anything else. Checks come one after the other, so each sees the
        sessions that the one before it has admitted.
        """
        if bounds == NO_BOUNDS:
            return
        scopes = (
            ("the tenant's", tenant, bounds.tenant_sessions, bounds.tenant_bytes),
            ("the server's", ALL_TENANTS, bounds.total_sessions, bounds.total_bytes),
        )
        async with self._checking:
            for whose, of, bound, bound_bytes in scopes:
                if bound is not None and new:
                    await self._check(whose, of, new, bound)
                if bound_bytes is not None:
                    await self._check_bytes(whose, of, new_bytes, bound_bytes)
            for _, of, _, _ in scopes:
                if of in self._sums:
                    self._sums[of].admitted += new_bytes

    async def _check(self, whose: str, tenant: str, new: int, bound: int) -> None:
        count = self._known_count(tenant)
        if count is None or count + new <= bound:
            count = await self.count(tenant, bound - new)
            if count + new <= bound:
                return
            self._remember(tenant, count)
        wanted = f"{count} sessions exist and {new} more {'is' if new == 1 else 'are'} asked for"
        raise LimitExceeded(f"{wanted}; {whose} limit sessions is {bound}", "sessions", bound, None)

    async def _check_bytes(self, whose: str, tenant: str, new: int, bound: int) -> None:
        """Counts again only if nothing is known, or if what was admitted since may have taken less than it might."""
        known = self._sums.get(tenant)
        if known is not None and known.admitted and known.counted + known.admitted + new > bound:
            known = None
        if known is None or self._now_s() >= known.until_s:
            known = await self._sum(tenant, bound - new)
        if (used := known.counted + known.admitted) + new > bound:
            wanted = f"sessions take or may come to take {used} bytes and {new} more are asked for"
            raise LimitExceeded(f"{wanted}; {whose} limit stored_bytes is {bound}", "stored_bytes", bound, None)

    async def count(self, tenant: str, enough: int = 0) -> int:
        """How many sessions a tenant has, or all tenants if it is `ALL_TENANTS`, without those that have expired.

        The number is exact if it is above `enough`; otherwise it may be too high, up to `enough`. While the store
        fails, only the sessions in memory count.
        """
        if self._store is None or self._store.failing:
            return self._table.count(tenant)
        here = [session.id for session in self._counted_here(tenant)]
        try:
            # A session that is written meanwhile is still one of `here`, so it counts once.
            return len(here) + await self._store.count_live(tenant, self._table.clock(), here, enough - len(here))
        except StoreUnavailable:
            return self._table.count(tenant)

    async def count_bytes(self, tenant: str) -> int:
        """How many bytes the sessions of a tenant, or of `ALL_TENANTS`, take in the store, or may come to take.

        While the store fails, and without one, it is the memory of the sessions in memory.
        """
        if self._store is None or self._store.failing:
            return self._table.memory_bytes(tenant)
        here = self._counted_here(tenant)
        most_bytes = sum([max(session.promised_bytes, content_bytes(session)) for session in here])
        ids = [session.id for session in here]
        try:
            return most_bytes + await self._store.live_bytes(tenant, self._table.clock(), ids)
        except StoreUnavailable:
            return self._table.memory_bytes(tenant)

    def note_deleted(self, tenant: str) -> None:
        """Has the next check count again, because the tenant has deleted a session."""
        for known in (self._full, self._sums):
            known.pop(tenant, None)
            known.pop(ALL_TENANTS, None)

    async def _sum(self, tenant: str, enough: int) -> _Sum:
        """Counts a tenant's bytes and remembers them: for `FULL_S` if there are more than `enough`."""
        began_s = self._now_s()
        counted = await self.count_bytes(tenant)
        now_s = self._now_s()
        lasting_s = FULL_S if counted > enough else max(FULL_S, (now_s - began_s) / COUNTING_SHARE)
        if len(self._sums) >= MAX_FULL:
            self._sums.clear()
        self._sums[tenant] = _Sum(counted, now_s + lasting_s)
        return self._sums[tenant]

    def _known_count(self, tenant: str) -> int | None:
        """The tenant's count, if it refused a session within the last `FULL_S`; else None."""
        count, until_s = self._full.get(tenant, (0, -math.inf))
        return count if self._now_s() < until_s else None

    def _remember(self, tenant: str, count: int) -> None:
        if len(self._full) >= MAX_FULL:
            self._full.clear()
        self._full[tenant] = (count, self._now_s() + FULL_S)

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()

    def _counted_here(self, tenant: str) -> list[Session]:
        """The tenant's sessions that the store may not have yet, or may believe expired because they are in use."""
        self._table.expire()
        ids = {*self._writer.unwritten(), *(session.id for session in self._table.busy())}
        found = filter(None, map(self._table.peek, ids))
        return [session for session in found if tenant in (ALL_TENANTS, session.tenant)]
