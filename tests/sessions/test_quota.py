"""The quota counts what a plain list of sessions holds, whatever happened to them, and admits none too many."""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gruve.errors import LimitExceeded, StoreUnavailable
from gruve.sessions.encoding import pack_generation, pack_head, pack_state, pack_tokens
from gruve.sessions.persistence import Persistence, SessionBounds
from gruve.sessions.rewind import rewind
from gruve.sessions.store import ALL_TENANTS
from gruve.sessions.store.redis import RedisStore
from gruve.sessions.store.sqlite import SqliteStore
from gruve.sessions.table import SessionsConfig, SessionTable
from memory_store import MemoryStore
from session_records import grow

KEY = b"0123456789abcdef"
TTL_S = 100.0


def persistence_of(store, now, budget_bytes=1 << 20):
    """A server's sessions. One that is being written stays in memory, so the store knows when each was last used."""
    kept = []
    table = SessionTable(
        SessionsConfig(TTL_S, budget_bytes),
        key=KEY,
        clock=lambda: now[0],
        can_evict=lambda session: store is None or not (session.dirty or kept[0]._writer.is_in_flight(session.id)),
    )
    kept.append(Persistence(table, store))
    return kept[0]


async def count(persistence, tenant):
    return await persistence._quota.count(tenant)


def packed_bytes(head, transcript, records, states):
    return len(head) + len(transcript) + sum(map(len, records)) + sum(map(len, states))


class World:
    """A server's sessions and, beside them, the plain list: each id with its tenant and when it expires."""

    def __init__(self, open_store, budget_bytes):
        self.open_store, self.budget_bytes, self.now, self.plain = open_store, budget_bytes, [1e9], {}

    async def begin(self):
        self.persistence = persistence_of(self.open_store(), self.now, self.budget_bytes)
        await self.persistence.start()

    async def create(self, tenant):
        self.note(self.persistence.create("m", "d", "n", None, tenant))

    async def fork(self, session_id, tenant):
        async with self.persistence.use(session_id, tenant) as session:
            for branch in self.persistence.fork(session, [1, 2]):
                self.note(branch)
        self.plain[session_id] = (tenant, self.now[0] + TTL_S)

    async def grow(self, session_id, tenant):
        """Generates, keeps a state, and now and then takes something back."""
        async with self.persistence.use(session_id, tenant) as session:
            grow(session, [7] * self.chance.choice([1, 300]))
            session.advance(np.zeros((1, 1, 4), np.float32), session.position - 1)
            if self.chance.random() < 0.3:
                rewind(session, self.chance.randint(1, session.position))
        self.plain[session_id] = (tenant, self.now[0] + TTL_S)

    async def use_beyond_its_time(self, session_id, tenant):
        """A session in use counts although its time has passed; then it lives on."""
        await self.pass_time(0.0)
        async with self.persistence.use(session_id, tenant):
            self.now[0] += TTL_S + 1.0
            self.plain = {session_id: (tenant, self.now[0] + TTL_S)}
            await self.check()

    async def pass_time(self, seconds):
        """Lets time pass once all is stored: a session that waits for the store counts although it has expired."""
        while self.persistence.behind:
            await self.persistence._writer.wait_written()
        self.now[0] += seconds

    async def delete(self, session_id, tenant):
        await self.persistence.delete(session_id, tenant)
        del self.plain[session_id]

    async def restart(self):
        await self.persistence.close()
        await self.begin()

    def note(self, session):
        self.plain[session.id] = (session.tenant, self.now[0] + TTL_S)

    def live(self):
        return {i: tenant for i, (tenant, until) in self.plain.items() if until > self.now[0]}

    async def check(self):
        tenants = list(self.live().values())
        assert await count(self.persistence, ALL_TENANTS) == len(tenants)
        for tenant in ("a", "b"):
            assert await count(self.persistence, tenant) == tenants.count(tenant)
        for tenant in ("a", "b", ALL_TENANTS):
            whose = [i for i, of in self.live().items() if tenant in (ALL_TENANTS, of)]
            recounted = sum(map(self.recounted_bytes, whose))
            assert await self.persistence._quota.count_bytes(tenant) == recounted

    def recounted_bytes(self, session_id):
        """The size of everything that is stored of a session, or is about to be."""
        session = self.persistence.table.peek(session_id)
        if session is None:
            stored = self.persistence.store.read(session_id, self.now[0])
            states = [state for _, state in stored.states]
            return packed_bytes(stored.summary.head, stored.transcript, stored.generations, states)
        records, states = map(pack_generation, session.generations), map(pack_state, session.snapshots.values())
        return packed_bytes(pack_head(session), pack_tokens(session.transcript), records, states)


async def act(world, chance):
    await world.create(chance.choice("ab"))
    one = chance.choice(list(world.live().items()))
    what = chance.choice(["create", "fork", "grow", "delete", "restart", "write", "use", "idle"][: world.acts])
    if what in ("fork", "grow", "delete"):
        await getattr(world, what)(*one)
    elif what == "use" and chance.random() < 0.3:
        await world.use_beyond_its_time(*one)
    elif what == "restart":
        await world.restart()
    elif what == "idle":
        await world.pass_time(chance.choice([1.0, 40.0]))
    elif what == "write":
        await asyncio.sleep(0.003)


async def live_through(world, seed, acts=8):
    chance = world.chance = random.Random(seed)
    world.acts = acts
    await world.begin()
    for _ in range(30):
        await act(world, chance)
        await world.check()
    await world.restart()
    await world.check()
    await world.persistence.close()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1_000, 1 << 20]))
def test_the_count_is_that_of_a_plain_list_with_sqlite(seed, budget_bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.db"
        asyncio.run(live_through(World(lambda: SqliteStore(path), budget_bytes), seed))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1_000, 1 << 20]))
def test_the_count_is_that_of_a_plain_list_with_a_shared_store(seed, budget_bytes):
    store = MemoryStore()
    asyncio.run(live_through(World(lambda: store, budget_bytes), seed))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_the_count_is_that_of_a_plain_list_with_redis(redis_server, seed):
    door = RedisStore(redis_server.url)
    door._redis.flushall()
    door.close()
    world = World(lambda: RedisStore(redis_server.url), 1 << 20)
    asyncio.run(live_through(world, seed, acts=6))  # Redis has a clock of its own


@pytest.mark.parametrize("bounds", [SessionBounds(tenant_sessions=7), SessionBounds(total_sessions=7)])
@pytest.mark.parametrize("make", [MemoryStore, lambda: None], ids=["store", "memory alone"])
def test_of_many_requests_at_once_as_many_are_admitted_as_fit(bounds, make):
    async def run():
        persistence = persistence_of(make(), [1e9])
        await persistence.start()

        async def one():
            await asyncio.sleep(0.0005 * random.random())
            await persistence.check_quota("a", 1, 0, bounds)
            persistence.create("m", "d", "n", None, "a")

        results = await asyncio.gather(*(one() for _ in range(40)), return_exceptions=True)
        assert await count(persistence, "a") == 7
        await persistence.close()
        return results

    refused = [result for result in asyncio.run(run()) if result is not None]
    assert len(refused) == 33
    assert all(isinstance(error, LimitExceeded) for error in refused)


def test_several_new_sessions_fit_as_a_whole_or_not_at_all():
    async def run():
        persistence = persistence_of(None, [1e9])
        persistence.create("m", "d", "n", None, "a")
        await persistence.check_quota("a", 2, 0, SessionBounds(tenant_sessions=3))
        await persistence.check_quota("b", 3, 0, SessionBounds(tenant_sessions=3))
        with pytest.raises(LimitExceeded) as refused:
            await persistence.check_quota("a", 3, 0, SessionBounds(tenant_sessions=3))
        assert str(refused.value) == "1 sessions exist and 3 more are asked for; the tenant's limit sessions is 3"
        assert refused.value.retry_after_s is None
        with pytest.raises(
            LimitExceeded, match="1 sessions exist and 1 more is asked for; the tenant's limit sessions is 0"
        ):
            await persistence.check_quota("a", 1, 0, SessionBounds(tenant_sessions=0))
        with pytest.raises(LimitExceeded, match="the server's limit sessions is 3"):
            await persistence.check_quota("b", 3, 0, SessionBounds(total_sessions=3))

    asyncio.run(run())


def test_servers_that_share_a_store_count_what_each_of_them_has_written():
    async def run():
        store = MemoryStore()
        one, two = (persistence_of(store, [1e9]) for _ in range(2))
        for server in (one, two):
            await server.start()
            await server.wait_durable(server.create("m", "d", "n", None, "a"), 20.0)
        assert await count(one, "a") == await count(two, "a") == 2
        with pytest.raises(LimitExceeded, match="2 sessions exist"):
            await one.check_quota("a", 1, 0, SessionBounds(tenant_sessions=2))
        for server in (one, two):
            await server.close()

    asyncio.run(run())


class Counted(MemoryStore):
    """Counts how often it is asked."""

    counts = 0

    def count_live(self, *given):
        self.counts += 1
        return super().count_live(*given)


def test_many_refusals_cost_one_count_until_a_session_is_deleted(monkeypatch):
    monkeypatch.setattr("gruve.sessions.persistence.quota.FULL_S", 1_000.0)
    store, bounds = Counted(), SessionBounds(tenant_sessions=3, total_sessions=9)

    async def run():
        persistence = persistence_of(store, [1e9])
        await persistence.start()
        made = [persistence.create("m", "d", "n", None, "a") for _ in range(3)]
        for new in [1] * 50 + [2]:
            with pytest.raises(LimitExceeded, match=f"3 sessions exist and {new} more"):
                await persistence.check_quota("a", new, 0, bounds)
        assert store.counts == 1
        await persistence.check_quota("b", 1, 0, bounds)
        await persistence.delete(made[0].id, "a")
        await persistence.check_quota("a", 1, 0, bounds)
        await persistence.close()

    asyncio.run(run())


class Failing(MemoryStore):
    """Fails at every count."""

    def count_live(self, *_):
        raise StoreUnavailable("gone")


def test_while_the_store_fails_the_sessions_in_memory_count():
    async def run():
        persistence = persistence_of(Failing(), [1e9])
        persistence.create("m", "d", "n", None, "a")
        assert await count(persistence, "a") == 1
        assert persistence.failing
        with pytest.raises(LimitExceeded, match="1 sessions exist and 1 more is asked for"):
            await persistence.check_quota("a", 1, 0, SessionBounds(tenant_sessions=1))
        await persistence.close()

    asyncio.run(run())


@pytest.mark.parametrize("make", [MemoryStore, lambda: None], ids=["store", "memory alone"])
def test_bytes_are_admitted_up_to_the_limit_and_a_deleted_session_makes_room(make):
    async def run():
        persistence, bounds = persistence_of(make(), [1e9]), SessionBounds(tenant_bytes=100_000, total_bytes=150_000)
        await persistence.start()
        first = persistence.create("m", "d", "n", None, "a")
        first.promised_bytes = 40_000  # what a generation that runs has reserved
        async with persistence.use(first.id, "a"):
            await persistence.check_quota("a", 0, 60_000, bounds)
            with pytest.raises(LimitExceeded, match="40000 bytes and 60001 more are asked for; the tenant's limit sto"):
                await persistence.check_quota("a", 0, 60_001, bounds)
            with pytest.raises(LimitExceeded, match="the server's limit stored_bytes is 150000"):
                await persistence.check_quota("b", 0, 120_000, SessionBounds(total_bytes=150_000))
        await persistence.delete(first.id, "a")
        await persistence.check_quota("a", 0, 100_000, bounds)
        await persistence.close()

    asyncio.run(run())


def test_admissions_below_the_limit_cost_one_sum_and_those_beyond_it_a_new_one():
    class Summed(MemoryStore):
        sums = 0

        def live_bytes(self, *arguments):
            self.sums += 1
            return super().live_bytes(*arguments)

    async def run():
        store = Summed()
        persistence, bounds = persistence_of(store, [1e9]), SessionBounds(total_bytes=1_000)
        for _ in range(10):
            await persistence.check_quota("a", 0, 100, bounds)
        assert store.sums == 1
        await persistence.check_quota("a", 0, 100, bounds)  # nothing of what was admitted has been stored
        assert store.sums == 2
        await persistence.close()

    asyncio.run(run())
