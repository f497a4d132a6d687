"""Every store keeps what it is given and refuses fenced writes."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gruve.engine.sequence import FinishReason
from gruve.errors import SessionElsewhere
from gruve.model.sampling import SamplingParameters
from gruve.sessions.encoding import prepare_write, unpack_head, unpack_session
from gruve.sessions.record import Change
from gruve.sessions.rewind import rewind
from gruve.sessions.store import ALL_TENANTS
from gruve.sessions.store.redis import RedisStore
from gruve.sessions.store.sqlite import SqliteStore
from memory_store import MemoryStore
from session_records import NOW, generation_of, grow, load, save, session_of

KINDS = ("memory", "sqlite", "redis")
SHARED = ("memory", "redis")


@pytest.fixture
def make(request, tmp_path):
    """Opens another connection to the same store."""
    kind, made = request.param, []
    if kind == "memory":
        store = MemoryStore()
        yield lambda: store
        return
    if kind == "redis":
        url = request.getfixturevalue("redis_server").url
        door = RedisStore(url)
        door._redis.flushall()

    def open_one():
        if kind == "sqlite" and made:
            made.pop().close()
        made.append(SqliteStore(tmp_path / "s.db") if kind == "sqlite" else RedisStore(url))
        return made[-1]

    yield open_one
    for store in made:
        store.close()


def contents(session):
    """The contents of a session, independent of the store."""
    plain = {field.name: getattr(session, field.name) for field in dataclasses.fields(session)}
    for name in ("store_progress", "in_use", "pins", "idle_bytes", "promised_bytes", "state", "snapshots"):
        del plain[name]
    return plain | {"states": {at: state.tolist() for at, state in session.snapshots.items()}}


all_stores = pytest.mark.parametrize("make", KINDS, indirect=True)
shared_stores = pytest.mark.parametrize("make", SHARED, indirect=True)


@all_stores
def test_a_session_comes_back_as_it_was(make):
    session = session_of(tokens=700)
    change = Change(650, SamplingParameters(seed=5, top_k=3), inserted=4)
    session.generations = [
        generation_of(10, finish_reason=FinishReason.STOP, finished=True),
        generation_of(600, changes=[change], digest="x"),
    ]
    session.generations[-1].next_position = session.position
    session.next_sampling = SamplingParameters(seed=8)
    session.advance(np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 3, 256)
    session.advance(np.full((2, 3, 4), np.float32(1e-30)), 700)
    assert save(make(), session) == []
    assert contents(load(make())) == contents(session)


@all_stores
def test_what_nobody_has_written_is_not_there(make):
    store = make()
    assert store.read("a", NOW) is None
    assert store.acquire("a", "me", None, NOW) is None
    session = session_of()
    session.store_progress.stored = True
    assert save(store, session) == ["a"]


@all_stores
def test_tokens_that_follow_are_written_alone_and_those_taken_back_are_gone(make):
    store, session = make(), session_of()
    grow(session, [5] * 299)
    session.advance(np.zeros((1, 1, 2), np.float32), 290)
    save(store, session)
    grow(session, [9] * 500)
    write = prepare_write(session).write
    assert (write.head, write.generations, write.first_chunk) == ("", (), 1)
    store.write("me", [write])
    assert load(store).transcript == session.transcript
    rewind(session, 256, seed=4)
    grow(session, [8] * 3)
    save(store, session)
    assert contents(load(store)) == contents(session)


@all_stores
def test_a_write_may_come_twice(make):
    store, session = make(), session_of(tokens=600)
    session.generations = [generation_of(3)]
    session.generations[-1].next_position = session.position
    write = prepare_write(session).write
    assert store.write("me", [write]) == store.write("me", [write]) == []
    assert load(store).transcript == session.transcript


@all_stores
def test_a_write_that_failed_is_handed_over_once_more(make):
    store, session = make(), session_of(tokens=300)
    save(store, session)
    session.transcript.extend([9] * 300)
    session.advance(np.ones((1, 1, 2), np.float32), 550)
    lost = prepare_write(session)  # this one never reaches the store
    session.transcript.extend([7] * 300)
    lost.fail()
    assert session.dirty
    save(store, session)
    assert contents(load(store)) == contents(session)
    assert not session.dirty


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(["tokens", "rewind", "event", "write", "lose", "arrive"]), st.integers(1, 600)))
)
def test_whatever_was_written_in_whatever_order_what_arrived_is_what_there_is(acts):
    store, session, handed = MemoryStore(), session_of(), None
    for act, n in [*acts, ("arrive", 0), ("write", 0), ("arrive", 0)]:
        if act == "tokens":
            grow(session, ((n + i) % 60_000 for i in range(n)))
            session.advance(np.full((1, 1, 2), n, np.float32), session.position - 1)
        elif act == "rewind":
            rewind(session, 1 + n % session.position)
        elif act == "event":
            for generation in session.generations[-1:]:
                generation.finish(FinishReason.CANCELLED)
            grow(session, [n])
        elif act == "write" and handed is None:
            handed = prepare_write(session)
        elif handed is not None:
            if act == "lose":
                handed.fail()
            else:
                store.write("me", [handed.write])
                handed.succeed()
            handed = None
        check_durable(store, session)
    assert contents(load(store)) == contents(session)
    assert not session.dirty


def check_durable(store, session):
    """Checks that nothing up to the durable position is lost."""
    kept = load(store)
    durable = session.store_progress.durable_position
    assert kept is not None or not durable
    if kept is not None:
        assert kept.transcript[:durable] == session.transcript[:durable]


@all_stores
def test_the_key_is_made_once_and_stays(make):
    store = make()
    key = store.key()
    assert (len(key), store.key()) == (32, key)


@all_stores
def test_sessions_are_listed_the_latest_first_from_anywhere_on(make):
    store = make()
    sessions = [session_of(f"s{i:03}", NOW + i // 3, "ab"[i % 2]) for i in range(600)]
    save(store, *sessions)
    everybody = [(s.created_s, s.id) for s in reversed(sessions)]
    assert [i.id for i in store.page("default", "", None, 1_000, NOW)] == [i for _, i in everybody]
    for at in (0, 1, 2, 300, 598):
        assert [i.id for i in store.page("default", "", everybody[at], 4, NOW)] == [
            i for _, i in everybody[at + 1 : at + 5]
        ]
    assert [i.id for i in store.page("default", "b", everybody[0], 2, NOW)] == ["s597", "s595"]
    assert store.page("default", "c", None, 5, NOW) == []
    assert store.count() == 600
    assert unpack_head(store.page("default", "", None, 1, NOW)[0]).model == "b"


@all_stores
def test_a_tenant_is_kept_and_lists_its_own_sessions_alone(make):
    store, tenants = make(), ("default", "ann", "a:b", "a%3Ab", "\u00e9")
    for at, tenant in enumerate(tenants):
        session = session_of(f"s{at}", NOW + at, "b")
        session.tenant = tenant
        save(store, session, release=True)
    for at, tenant in enumerate(tenants):
        assert [(i.id, i.tenant) for i in store.page(tenant, "", None, 9, NOW)] == [(f"s{at}", tenant)]
        assert [i.id for i in store.page(tenant, "b", None, 9, NOW)] == [f"s{at}"]
        assert load(store, f"s{at}").tenant == tenant
    assert store.page("a", "", None, 9, NOW) == store.page("nobody", "", None, 9, NOW) == []
    assert store.count() == len(tenants)


@all_stores
def test_live_sessions_are_counted_for_a_tenant_and_for_all_without_those_excluded(make):
    store = make()
    for i, tenant in enumerate(["ann", "ann", "ann", "bob", "default"]):
        session = session_of(f"s{i}", tenant=tenant)
        save(store, session, release=True)
    assert store.delete("s0", "me", 1)
    assert [store.count_live(t, NOW, [], 0) for t in ("ann", "bob", "default", "eve")] == [2, 1, 1, 0]
    assert store.count_live(ALL_TENANTS, NOW, [], 0) == 4
    assert store.count_live(ALL_TENANTS, NOW, ["s1", "s3", "s0", "unknown"], 0) == 2
    assert store.count_live("ann", NOW, {"s1", "s3"}, 0) == 1
    assert 2 <= store.count_live("ann", NOW, [], 3) <= 3


@all_stores
def test_the_bytes_of_live_sessions_add_up_for_a_tenant_and_for_all(make):
    store = make()
    size = {}
    for i, tenant in enumerate(["ann", "ann", "bob"]):
        session = session_of(f"s{i}", tokens=300 * i, tenant=tenant)
        grow(session, [5] * 9)
        session.advance(np.zeros((1, 1, 2), np.float32), 3)
        save(store, session)
        kept = store.read(session.id, NOW)
        size[i] = sum(map(len, (kept.summary.head, kept.transcript, *kept.generations, kept.states[0][1])))
    assert store.live_bytes("ann", NOW, []) == size[0] + size[1]
    assert store.live_bytes(ALL_TENANTS, NOW, ["s1"]) == size[0] + size[2]
    rewind(session, 1)
    save(store, session)
    assert store.live_bytes("bob", NOW, []) == len(store.read("s2", NOW).summary.head) + 2
    assert store.delete("s0", "me", 1)
    assert store.live_bytes("ann", NOW, []) == size[1]


@all_stores
def test_expired_sessions_do_not_count_before_they_are_removed(make):
    store = make()
    save(store, session_of("brief", ttl_s=0.05), session_of("long", ttl_s=100.0), release=True)
    give_up_s = time.monotonic() + 20.0
    while store.count_live("default", NOW + 1.0, [], 0) != 1:  # Redis has a clock of its own
        assert time.monotonic() < give_up_s
        time.sleep(0.005)


@pytest.mark.parametrize("make", ["memory", "sqlite"], indirect=True)
def test_sessions_expire_when_they_have_lain_idle_so_many_a_pass_and_none_that_is_exclude(make):
    store = make()
    save(store, *(session_of(f"s{i}", ttl_s=10.0 + i) for i in range(5)), release=True)
    assert load(store, "s0", NOW + 9.9).id == "s0"
    assert load(store, "s0", NOW + 10.0) is None
    assert [i.id for i in store.page("default", "", None, 9, NOW + 12.0)] == ["s4", "s3"]
    assert store.expire(NOW + 13.5, 2, {"s1"}) == 2
    assert store.expire(NOW + 13.5, 2, {"s1"}) == 1
    assert (store.expire(NOW + 13.5, 2, {"s1"}), store.count()) == (0, 2)


@all_stores
def test_a_deleted_session_leaves_nothing(make):
    store = make()
    save(store, session_of(tokens=9), session_of("b"))
    assert store.delete("a", "me", 1)
    assert not store.delete("a", "me", 1)
    assert load(store) is None
    assert [i.id for i in store.page("default", "", None, 9, NOW)] == ["b"]


@shared_stores
def test_a_lease_keeps_others_out_until_it_is_released(make):
    store, other, session = make(), make(), session_of(tokens=5)
    save(store, session)
    with pytest.raises(SessionElsewhere):
        other.acquire("a", "you", None, NOW)
    assert other.read("a", NOW).summary.owner == "me"
    save(store, session, release=True)
    assert other.read("a", NOW).summary.owner == ""
    assert store.renew("me", [("a", 1)]) == ["a"]
    acquired = other.acquire("a", "you", None, NOW)
    assert unpack_session(acquired.stored, acquired.version).transcript == session.transcript
    with pytest.raises(SessionElsewhere):
        store.acquire("a", "me", 1, NOW)


@shared_stores
def test_a_write_of_a_lost_lease_is_refused_and_those_beside_it_are_not(make):
    store, session, other = make(), session_of(tokens=5), session_of("b")
    save(store, session, other, release=True)
    store.acquire("a", "you", None, NOW)
    session.transcript.append(1)
    other.transcript.append(1)
    assert save(store, session, other) == ["a"]
    assert (load(store).position, load(store, "b").position) == (6, 2)
    assert store.renew("me", [("a", 1), ("b", 1)]) == ["a"]
    assert not store.delete("a", "me", 1)


@shared_stores
def test_a_copy_that_nobody_has_overtaken_is_not_sent_again(make):
    store, session = make(), session_of(tokens=5)
    save(store, session, release=True)
    first = store.acquire("a", "me", 1, NOW)
    assert (first.version, first.stored) == (2, None)
    session.store_progress.version = 2
    session.transcript.append(7)
    save(store, session, release=True)
    assert store.acquire("a", "you", None, NOW).version == 3
    session.store_progress.version = 3
    save(store, session, owner="you", release=True)
    assert store.acquire("a", "me", 2, NOW).stored is not None


def test_a_lease_ends_with_its_time_unless_it_is_renewed():
    clock = iter_clock()
    store = MemoryStore(clock=clock)
    save(store, session_of())
    clock.now += 9.0
    assert store.renew("me", [("a", 1)]) == []
    clock.now += 9.0
    with pytest.raises(SessionElsewhere):
        store.acquire("a", "you", None, NOW)
    clock.now += 2.0
    assert store.acquire("a", "you", None, NOW).version == 2


class iter_clock:  # noqa: N801 - used as a function
    now = 0.0

    def __call__(self):
        return self.now
