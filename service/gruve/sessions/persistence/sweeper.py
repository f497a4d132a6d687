"""The sweeper: removes expired sessions from the store, and counts those that are left."""

from __future__ import annotations

import asyncio
import collections
import contextlib

from gruve.errors import StoreUnavailable
from gruve.sessions.persistence.async_store import AsyncStore
from gruve.sessions.table import SessionTable

SWEEP_S, SWEEP_SESSIONS = 10.0, 200
"""How often it sweeps, and how many sessions one call of the store removes at most."""


class Sweeper:
    """Sweeps the store."""

    def __init__(self, table: SessionTable, moves: collections.Counter[str]) -> None:
        """`moves` counts, under "expired_in_store", the sessions that were removed."""
        self.stored = 0
        """How many sessions the store had at the last sweep."""
        self._table = table
        self._moves = moves

    async def run(self, store: AsyncStore) -> None:
        """Sweeps every `SWEEP_S` until it is cancelled."""
        while True:
            with contextlib.suppress(StoreUnavailable):
                await self.sweep(store)
            await asyncio.sleep(SWEEP_S)

    async def sweep(self, store: AsyncStore) -> None:
        """Removes the expired sessions from the store, except for those in memory, and counts the rest.

        A session in memory may have been used since its last write, so the store believes that it has expired.
        """
        removed = SWEEP_SESSIONS
        while removed == SWEEP_SESSIONS:
            removed = await store.expire(self._table.clock(), SWEEP_SESSIONS, self._table.ids())
            self._moves["expired_in_store"] += removed
        self.stored = await store.count()
