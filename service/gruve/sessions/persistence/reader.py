"""Reads sessions without leasing them: one by its id, or a page of all of them, from memory and the store."""

from __future__ import annotations

from gruve.errors import SessionExpired
from gruve.sessions.encoding import unpack_session
from gruve.sessions.persistence.async_store import AsyncStore
from gruve.sessions.persistence.leases import Leases
from gruve.sessions.record import Session
from gruve.sessions.store import SessionSummary
from gruve.sessions.table import SessionTable


class Reader:
    """Reads sessions. A location is "" for this server's memory, "store", or the name of the server that has the
    lease.
    """

    def __init__(self, table: SessionTable, store: AsyncStore | None, leases: Leases) -> None:
        self._table = table
        self._store = store
        self._leases = leases

    async def read(self, session_id: str, tenant: str) -> tuple[Session, str]:
        """A session of the tenant, to be read and not to be changed, and its location.

        Raises `SessionUnknown`, `SessionExpired` or `StoreUnavailable`.
        """
        session = self._table.find(session_id, tenant)
        if session is not None and self._is_current(session):
            return session, ""
        stored = None if self._store is None else await self._store.read(session_id, self._table.clock())
        if stored is None:
            raise SessionExpired(session_id)
        return unpack_session(stored, 0), self._location(stored.summary, session)

    async def page(
        self, model: str, before: tuple[float, str] | None, size: int, tenant: str
    ) -> list[tuple[SessionSummary | Session, str]]:
        """At most `size` sessions of the tenant with their locations, the latest created first.

        `model` "" means all models; `before` is the (creation time, id) of the last session of the page before.
        """
        matching = {
            session.id: session
            for session in self._table
            if session.tenant == tenant
            and model in ("", session.model)
            and (before is None or (session.created_s, session.id) < before)
        }
        current = {session_id: session for session_id, session in matching.items() if self._is_current(session)}
        found: list[tuple[SessionSummary | Session, str]] = [(session, "") for session in current.values()]
        if self._store is not None:
            stored = await self._store.page(tenant, model, before, size, self._table.clock())
            others = (summary for summary in stored if summary.id not in current)
            found += [(summary, self._location(summary, matching.get(summary.id))) for summary in others]
        found.sort(key=lambda entry: (entry[0].created_s, entry[0].id), reverse=True)
        return found[:size]

    def _is_current(self, session: Session) -> bool:
        """Whether the copy in memory is at least as new as the store's."""
        return self._leases.is_held(session) or session.dirty

    def _location(self, summary: SessionSummary, session: Session | None) -> str:
        if self._store is None or summary.owner not in ("", self._store.owner):
            return summary.owner
        return "" if session is not None and session.position == summary.position else "store"
