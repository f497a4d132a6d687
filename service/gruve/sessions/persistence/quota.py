"""The quota: how many sessions a tenant has, and all tenants have, in memory and in the store.

Sessions that are in use or not yet written count from memory; all others count from the store, so the number is right
after a restart and for sessions that have left memory. Without a store memory has them all.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math

from gruve.errors import LimitExceeded, StoreUnavailable
from gruve.sessions.persistence.async_store import AsyncStore
from gruve.sessions.persistence.writer import Writer
from gruve.sessions.store import ALL_TENANTS
from gruve.sessions.table import SessionTable


@dataclasses.dataclass(frozen=True, slots=True)
class SessionBounds:
    """How many sessions there may be; None means any number."""

    tenant: int | None = None
    """Of the tenant."""
    total: int | None = None
    """Of all tenants together."""


NO_BOUNDS = SessionBounds()
FULL_S = 1.0
"""How long a count that refused a session is used again: many refusals cost one count, and keep nobody waiting."""
MAX_FULL = 1_024
"""Counts to remember; beyond that all are forgotten."""


class Quota:
    """Counts sessions and refuses those beyond a bound."""

    def __init__(self, table: SessionTable, store: AsyncStore | None, writer: Writer) -> None:
        self._table = table
        self._store = store
        self._writer = writer
        self._checking = asyncio.Lock()
        self._full: dict[str, tuple[int, float]] = {}
        """The counts that have refused a session, by tenant, and until when they are used, by the loop's clock."""

    async def check(self, tenant: str, new: int, bounds: SessionBounds) -> None:
        """Raises `LimitExceeded` if `new` more sessions of the tenant would exceed a bound.

        The caller creates them before it awaits anything else. Checks come one after the other, so each sees the
        sessions that the one before it has admitted.
        """
        if bounds == NO_BOUNDS:
            return
        async with self._checking:
            if bounds.tenant is not None:
                await self._check("the tenant's", tenant, new, bounds.tenant)
            if bounds.total is not None:
                await self._check("the server's", ALL_TENANTS, new, bounds.total)

    async def _check(self, whose: str, tenant: str, new: int, bound: int) -> None:
        count = self._known_count(tenant)
        if count is None or count + new <= bound:
            count = await self.count(tenant, bound - new)
            if count + new <= bound:
                return
            self._remember(tenant, count)
        wanted = f"{count} sessions exist and {new} more {'is' if new == 1 else 'are'} asked for"
        raise LimitExceeded(f"{wanted}; {whose} limit sessions is {bound}", "sessions", bound, None)

    async def count(self, tenant: str, enough: int = 0) -> int:
        """How many sessions a tenant has, or all tenants if it is `ALL_TENANTS`, without those that have expired.

        The number is exact if it is above `enough`; otherwise it may be too high, up to `enough`. While the store
        fails, only the sessions in memory count.
        """
        if self._store is None or self._store.failing:
            return self._table.count(tenant)
        here = self._counted_here(tenant)
        try:
            # A session that is written meanwhile is still one of `here`, so it counts once.
            return len(here) + await self._store.count_live(tenant, self._table.clock(), here, enough - len(here))
        except StoreUnavailable:
            return self._table.count(tenant)

    def note_deleted(self, tenant: str) -> None:
        """Has the next check count again, because the tenant has deleted a session."""
        self._full.pop(tenant, None)
        self._full.pop(ALL_TENANTS, None)

    def _known_count(self, tenant: str) -> int | None:
        """The tenant's count, if it refused a session within the last `FULL_S`; else None."""
        count, until_s = self._full.get(tenant, (0, -math.inf))
        return count if asyncio.get_running_loop().time() < until_s else None

    def _remember(self, tenant: str, count: int) -> None:
        if len(self._full) >= MAX_FULL:
            self._full.clear()
        self._full[tenant] = (count, asyncio.get_running_loop().time() + FULL_S)

    def _counted_here(self, tenant: str) -> list[str]:
        """The tenant's sessions that the store may not have yet, or may believe expired because they are in use."""
        self._table.expire()
        ids = {*self._writer.unwritten(), *(session.id for session in self._table.busy())}
        found = filter(None, map(self._table.peek, ids))
        return [session.id for session in found if tenant in (ALL_TENANTS, session.tenant)]
