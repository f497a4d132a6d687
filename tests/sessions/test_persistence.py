"""What persistence does between a server's memory and its store, step by step and without a server."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from decoding import PATIENCE_S
from gruve.errors import SessionElsewhere, SessionExpired, StoreUnavailable
from gruve.sessions.persistence import Persistence
from gruve.sessions.persistence.async_store import AsyncStore
from gruve.sessions.record import DEFAULT_TENANT
from gruve.sessions.store import LEASE_S
from gruve.sessions.store.sqlite import SqliteStore
from gruve.sessions.table import SessionsConfig, SessionTable
from memory_store import MemoryStore

TTL_S = 10.0


def persistence_of(store, clock=time.time):
    return Persistence(SessionTable(SessionsConfig(TTL_S), clock=clock), store)


async def test_a_session_that_was_used_past_its_stored_expiry_is_not_swept_before_it_is_written(tmp_path):
    now, store = [1e9], SqliteStore(tmp_path / "s.db")
    persistence = persistence_of(store, lambda: now[0])
    session = persistence.create("model", "digest", "numerics", None, DEFAULT_TENANT)
    await persistence._writer.flush()
    async with persistence.use(session.id, DEFAULT_TENANT):
        now[0] += TTL_S + 1.0
    await persistence._sweeper.sweep(persistence._async_store)
    await persistence.close()
    assert persistence.table.find(session.id) is session


async def test_a_store_that_only_answers_reads_fails_until_it_accepts_a_change(monkeypatch):
    store, told = MemoryStore(), []
    calls = AsyncStore(store, "me")
    calls.on_failing = told.append

    def refuse(*_):
        raise StoreUnavailable("read only")

    monkeypatch.setattr(store, "acquire", refuse)
    with pytest.raises(StoreUnavailable):
        await calls.acquire("a", None, 0.0)
    await calls.count()
    assert (calls.failing, told) == (True, [True])
    await calls.expire(0.0, 1, ())
    assert (calls.failing, told) == (False, [True, False])
    calls.close()


async def test_a_session_that_cannot_be_encoded_keeps_no_other_from_being_stored(caplog):
    persistence = persistence_of(store := MemoryStore())
    sessions = [persistence.create("model", "digest", "numerics", None, DEFAULT_TENANT) for _ in range(3)]
    sessions[1].numerics_id = object()
    await persistence._writer.flush()
    assert [store.read(session.id, 0.0) is not None for session in sessions] == [True, False, True]
    assert persistence.behind == 0
    assert "a session could not be encoded" in caplog.text
    await persistence.close()


async def test_a_session_that_changes_while_it_is_written_is_behind_once(monkeypatch):
    persistence, may_write = persistence_of(store := MemoryStore()), threading.Event()
    write = store.write
    monkeypatch.setattr(store, "write", lambda *args: may_write.wait(10.0) and write(*args))
    session = persistence.create("model", "digest", "numerics", None, DEFAULT_TENANT)
    writing = asyncio.create_task(persistence._writer.flush())
    await asyncio.sleep(0.0)
    assert persistence._writer.is_in_flight(session.id)
    session.transcript.append(5)
    persistence._writer.mark_dirty(session)
    assert (persistence._writer.is_dirty(session.id), persistence.behind) == (True, 1)
    may_write.set()
    await writing
    assert persistence.behind == 0
    await persistence.close()


class Overtaken(MemoryStore):
    """A store in which another server uses a session just before it is deleted."""

    def __init__(self, use):
        self.now_s = 0.0
        super().__init__(clock=lambda: self.now_s)
        self._use = use

    def delete(self, session_id, owner, version):
        if owner != "other":
            self._use, use = lambda *_: None, self._use
            use(self, session_id)
        return super().delete(session_id, owner, version)


def take(store, session_id):
    store.now_s += LEASE_S + 1
    return store.acquire(session_id, "other", None, 0.0).version


def take_and_give_back(store, session_id):
    take(store, session_id)
    store.now_s += LEASE_S + 1


def take_and_delete(store, session_id):
    assert store.delete(session_id, "other", take(store, session_id))


@pytest.mark.parametrize(
    ("use", "error", "left"),
    [(take, SessionElsewhere, True), (take_and_delete, SessionExpired, False), (take_and_give_back, None, False)],
)
async def test_a_deletion_whose_lease_was_lost_answers_what_is_true(use, error, left):
    persistence = persistence_of(store := Overtaken(use))
    session = persistence.create("model", "digest", "numerics", None, DEFAULT_TENANT)
    await persistence._writer.flush()
    if error is None:
        await persistence.delete(session.id, DEFAULT_TENANT)
    else:
        with pytest.raises(error):
            await persistence.delete(session.id, DEFAULT_TENANT)
    assert (store.read(session.id, 0.0) is not None) == left
    assert persistence.table.find(session.id) is None
    await persistence.close()


async def test_a_session_whose_first_write_fails_can_be_deleted_meanwhile(monkeypatch):
    def refuse(*_):
        raise StoreUnavailable("read only")

    persistence = persistence_of(store := MemoryStore())
    monkeypatch.setattr(store, "write", refuse)
    session = persistence.create("model", "digest", "numerics", None, DEFAULT_TENANT)
    writing = asyncio.create_task(persistence._writer.flush())
    await asyncio.sleep(0)  # until the store writes
    assert persistence._writer.is_in_flight(session.id)
    await persistence.delete(session.id, DEFAULT_TENANT)
    await writing
    assert (persistence.table.find(session.id), persistence.behind) == (None, 0)
    await persistence.close()


async def test_nothing_is_sent_of_a_session_whose_lease_has_passed_until_it_is_renewed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("gruve.sessions.persistence.leases.lease_clock", lambda: now[0])
    persistence = persistence_of(store := MemoryStore(clock=lambda: now[0]))
    session = persistence.create("model", "digest", "numerics", None, DEFAULT_TENANT)
    assert session.store_progress.lease_until_s == 100.0 + LEASE_S
    async with persistence.use(session.id, DEFAULT_TENANT):
        await persistence._writer.flush()
        for passed_s, until_s in [(LEASE_S - 0.1, 100.0 + LEASE_S), (0.1, 100.0 + 2 * LEASE_S)]:
            now[0] += passed_s
            await persistence.wait_before_send(session, 1)
            assert session.store_progress.lease_until_s == until_s
        now[0] += LEASE_S
        store.acquire(session.id, "other", None, 0.0)
        with pytest.raises(SessionElsewhere, match="another server has taken session"):
            await persistence.wait_before_send(session, 1)
    await persistence.close()


async def test_leases_are_renewed_while_sessions_are_in_use_and_no_longer(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("gruve.sessions.persistence.leases.lease_clock", lambda: now[0])
    monkeypatch.setattr("gruve.sessions.persistence.leases.RENEW_S", 0.001)
    persistence = persistence_of(MemoryStore(clock=lambda: now[0]))
    leases, session = persistence._leases, persistence.create("model", "digest", "numerics", None, DEFAULT_TENANT)
    progress, renewed, renew = session.store_progress, asyncio.Event(), leases.renew

    async def noted(sessions):
        await renew(sessions)
        renewed.set()

    monkeypatch.setattr(leases, "renew", noted)
    async with persistence.use(session.id, DEFAULT_TENANT):
        await persistence._writer.flush()
        now[0] = 105.0
        running = asyncio.create_task(leases.run(persistence._async_store))
        await asyncio.wait_for(renewed.wait(), PATIENCE_S)
        running.cancel()
        assert progress.lease_until_s == 105.0 + LEASE_S
        progress.lease_until_s = 0.0  # as if it was released while the store renewed
        await renew([session])
        assert progress.lease_until_s == 0.0
    progress.lease_until_s, now[0] = 111.0, 106.0
    await renew([session])
    assert progress.lease_until_s == 111.0
    await persistence.close()
