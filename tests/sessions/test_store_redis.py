"""The special properties of Redis as a store."""

from __future__ import annotations

import time

import pytest

from gruve.errors import StoreUnavailable
from gruve.sessions.store import redis as redis_store
from gruve.sessions.store.redis import RedisStore
from redis_server import RedisServer
from session_records import NOW, load, save, session_of


def test_redis_measures_a_session_that_was_written_without_its_size(redis_server):
    store = RedisStore(redis_server.url)
    store._redis.flushall()
    save(store, session_of(tokens=300))
    wanted = store.live_bytes("default", NOW, [])
    store._redis.hdel("gruve:{a}", "bytes")
    assert store.live_bytes("default", NOW, []) == wanted == int(store._redis.hget("gruve:{a}", "bytes"))
    store.close()


def test_redis_expires_by_itself_and_the_indexes_are_swept(redis_server):
    store = RedisStore(redis_server.url)
    store._redis.flushall()
    kept, gone, other = session_of("kept"), session_of("gone", ttl_s=0.001), session_of("other", ttl_s=0.001)
    other.tenant = "ann"
    save(store, kept, gone, other, release=True)
    while store.read("gone", NOW) or store.read("other", NOW):
        time.sleep(0.005)
    assert [i.id for i in store.page("default", "", None, 9, NOW)] == ["kept"]
    assert [store.expire(NOW, 100, ()) for _ in range(2)] == [2, 0]
    assert store.count() == 1
    store.close()


def test_an_error_of_redis_says_why_and_names_no_session(redis_server):
    store = RedisStore(redis_server.url)
    store._redis.flushall()
    store._redis.set("gruve:{secret}", "no session")
    with pytest.raises(StoreUnavailable) as caught:
        save(store, session_of("secret"))
    why = str(caught.value.__cause__)
    assert "WRONGTYPE" in why
    assert "secret" not in why
    store.close()


def test_a_sweep_of_redis_looks_at_many_tenants_and_the_next_goes_on_there(redis_server, monkeypatch):
    monkeypatch.setattr(redis_store, "TENANTS_SWEPT", 3)
    store = RedisStore(redis_server.url)
    store._redis.flushall()
    sessions = [session_of(f"s{i}", tenant=f"t{i // 2}") for i in range(12)]
    save(store, *sessions)
    store._redis.delete(*(f"gruve:{{{session.id}}}" for session in sessions))
    assert [store.expire(NOW, 3, ()) for _ in range(5)] == [3, 3, 3, 3, 0]
    assert store.count() == 0
    store.close()


@pytest.mark.parametrize("when", ["before it is written", "before its id is removed"])
def test_a_session_that_is_created_while_redis_is_swept_stays_in_the_indexes(redis_server, monkeypatch, when):
    store, sweeper = RedisStore(redis_server.url), RedisStore(redis_server.url)
    store._redis.flushall()
    new = session_of("new")
    if when == "before it is written":
        add, adds = redis_store._add, []

        def add_and_sweep(pipeline, writes):
            add(pipeline, writes)
            if not adds:
                pipeline.zrem("gruve:sessions", "new").zrem(f"gruve:sessions:{new.model}", "new")
            adds.append(writes)

        monkeypatch.setattr(redis_store, "_add", add_and_sweep)
        save(store, new)
        assert len(adds) == 2
    else:
        save(store, new)
        assert store.delete("new", "me", 1)
        scores = sweeper._redis.zmscore

        def create_first(index, ids):
            if not store.read("new", NOW):
                save(store, session_of("new"))
            return scores(index, ids)

        monkeypatch.setattr(sweeper._redis, "zmscore", create_first)
        assert sweeper.expire(NOW, 100, ()) == 1
        assert store.read("new", NOW)
    for model in ("", new.model):
        assert [i.id for i in store.page("default", model, None, 9, NOW)] == ["new"]
    store.close()
    sweeper.close()


def test_a_session_in_redis_from_before_there_were_tenants_belongs_to_the_default_tenant(redis_server):
    store = RedisStore(redis_server.url)
    store._redis.flushall()
    save(store, session_of("old"), release=True)
    store._redis.hdel("gruve:{old}", "tenant")
    store._redis.delete("gruve:tenants")
    assert store._redis.zrange("gruve:sessions", 0, -1) == [b"old"]
    assert [(i.id, i.tenant) for i in store.page("default", "", None, 9, NOW)] == [("old", "default")]
    assert (store.count(), load(store, "old").tenant) == (1, "default")
    store.close()


def test_a_redis_that_is_gone_is_said_to_be_and_found_again(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("r"))
    store = RedisStore(server.url)
    save(store, session_of(tokens=4), release=True)
    server.stop()
    for ask in (lambda: store.read("a", NOW), lambda: save(store, session_of("b")), store.key, store.count):
        with pytest.raises(StoreUnavailable):
            ask()
    server.start()
    assert load(store).position == 5
    server.stop()
    store.close()


def test_a_redis_password_is_in_no_name_and_no_complaint():
    store = RedisStore("redis://user:s3cret@localhost:1/2")
    assert store.name == "redis://localhost:1/2"
    with pytest.raises(StoreUnavailable) as told:
        store.key()
    assert "s3cret" not in f"{told.value} {told.value.__cause__}"
    store.close()


def test_a_sweep_fails_where_redis_accepts_no_changes_though_nothing_has_expired(redis_server):
    store = RedisStore(redis_server.url)
    store._redis.config_set("min-replicas-to-write", 1)
    try:
        assert store.count() >= 0
        with pytest.raises(StoreUnavailable):
            store.expire(NOW, 100, ())
    finally:
        store._redis.config_set("min-replicas-to-write", 0)
    store.close()
