"""Sessions are kept, expired and evicted as in a plain model, and only ids that this server issued are authentic."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.errors import SessionBusy, SessionExpired, SessionUnknown
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import Generation, Session
from gruve.sessions.table import SessionsConfig, SessionTable


class Clock:
    def __init__(self, now: float = 1.7e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def sessions_of(clock=None, key=b"k" * 32, **config):
    return SessionTable(SessionsConfig(**config), key=key, clock=clock or Clock())


def create(sessions, **more):
    return sessions.create("model", "digest", "numerics", **more)


def use(sessions, session, tokens=0):
    """Uses the session for one generation."""
    sessions.lease(session)
    session.transcript.extend([1] * tokens)
    sessions.release(session)


def generation_of(**more):
    sampling = SamplingParameters(logit_bias=more.pop("logit_bias", ()))
    return Generation("g", 1, 1, sampling, 9, 0, False, more.pop("stop", ()), (), 0.0, 1)


class Memory:
    """A plain model of the table, which looks at every session each time."""

    def __init__(self, ttl, budget) -> None:
        self.ttl, self.budget = ttl, budget
        self.kept: list[dict] = []  # the least recently used first
        self.gone: set[str] = set()

    def drop(self, entry):
        self.kept.remove(entry)
        self.gone.add(entry["session"].id)

    def expire(self, now):
        for entry in list(self.kept):
            if not entry["leased"] and entry["used"] + entry["ttl"] <= now:
                self.drop(entry)

    def touch(self, entry, now):
        self.kept.remove(entry)
        self.kept.append(entry)
        entry["used"] = now

    def keep_budget(self, newest):
        while sum(e["session"].memory_bytes() for e in self.kept if not e["leased"]) > self.budget:
            idle = [e for e in self.kept if not e["leased"] and e is not newest]
            if not idle:
                return
            self.drop(idle[0])


def walk(seed, turns):
    """Random creates, uses, leases, releases, deletes and waits. Table and model must agree at all times."""
    chance, clock = random.Random(seed), Clock()
    budget = chance.choice([3_000, 8_000, 1 << 20])
    sessions, memory = sessions_of(clock, idle_ttl_s=100.0, budget_bytes=budget), Memory(100.0, budget)
    everybody = []
    for _ in range(turns):
        clock.now += chance.choice([0.0, 0.1, 3.7, 60.0])
        memory.expire(clock.now)
        act = chance.choice(["create", "lease", "release", "delete", "get", "get", "expire"])
        if act == "create":
            ttl = chance.choice([None, 1.0, 0.1, 50.0])
            session = create(sessions, idle_ttl_s=ttl)
            memory.kept.append({"session": session, "leased": False, "used": clock.now, "ttl": ttl or 100.0})
            memory.keep_budget(memory.kept[-1])
            everybody.append(session)
        elif everybody:
            check_one(chance, act, sessions, memory, chance.choice(everybody), clock)
        if act == "expire":
            sessions.expire()
            assert len(sessions) == len(memory.kept)
            assert [s.id for s in sessions] == [e["session"].id for e in memory.kept]
            idle = sum(e["session"].memory_bytes() for e in memory.kept if not e["leased"])
            assert sessions.idle_bytes == idle


def check_one(chance, act, sessions, memory, session, clock):
    entry = next((e for e in memory.kept if e["session"] is session), None)
    if entry is None:
        assert session.id in memory.gone
        with pytest.raises(SessionExpired):
            sessions.get(session.id)
    elif act == "get":
        assert sessions.get(session.id) is session
    elif entry["leased"] and act in ("lease", "delete"):
        with pytest.raises(SessionBusy):
            (sessions.lease if act == "lease" else sessions.delete)(session)
    elif act == "lease":
        sessions.lease(session)
        memory.kept.append(memory.kept.pop(memory.kept.index(entry)))
        entry["leased"] = True
        session.transcript.extend([1] * chance.choice([0, 5, 400]))
        session.state = np.zeros((1, 1, 64), dtype=np.float32)
    elif act == "release" and entry["leased"]:
        session.generations.append(generation_of(stop=("x" * 20,)))
        sessions.release(session)
        entry["leased"] = False
        memory.touch(entry, clock.now)
        memory.keep_budget(entry)
    elif act == "delete":
        sessions.delete(session)
        memory.drop(entry)


@settings(max_examples=80)
@given(st.integers(0, 2**32))
def test_any_use_agrees_with_a_plain_table(seed):
    walk(seed, turns=60)


@pytest.mark.slow
@settings(max_examples=1_000)
@given(st.integers(0, 2**32))
def test_any_use_agrees_with_a_plain_table_for_long(seed):
    walk(seed, turns=300)


def test_ids_are_minted_unlike_and_authentic():
    sessions = sessions_of()
    ids = {create(sessions).id for _ in range(50)}
    assert len(ids) == 50
    assert all(id_.isascii() and id_.isalnum() and id_ == id_.lower() and len(id_) == 48 for id_ in ids)


def spoilt(id_):
    swapped = [id_[:i] + ("a" if id_[i] != "a" else "b") + id_[i + 1 :] for i in range(len(id_))]
    return [*swapped, id_.upper(), id_[:-1], id_[1:], id_ + "a", id_ + "=", " " + id_, id_ + "\n"]


def test_an_id_with_any_letter_changed_is_unknown():
    sessions = sessions_of()
    for id_ in spoilt(create(sessions).id):
        with pytest.raises(SessionUnknown, match="the id is wrong, or of another server or tenant"):
            sessions.get(id_)


@given(st.one_of(st.text(), st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=20, max_size=50)))
def test_whatever_a_client_makes_up_is_unknown(id_):
    with pytest.raises(SessionUnknown):
        sessions_of().get(id_)


@pytest.mark.parametrize("id_", ["\u0131" * 48, "ß" * 24, "\ud800" * 48, "=" * 48, "1" * 48, "a" * 100_000, "ﬁ" * 48])
def test_odd_letters_are_unknown_and_nothing_worse(id_):
    with pytest.raises(SessionUnknown):
        sessions_of().get(id_)


def test_an_authentic_id_that_is_absent_has_expired_and_one_of_another_key_is_unknown():
    session = create(sessions_of())
    with pytest.raises(SessionExpired):
        sessions_of().get(session.id)
    with pytest.raises(SessionUnknown):
        sessions_of(key=b"other").get(session.id)


def test_a_session_expires_when_it_has_lain_idle_and_use_begins_its_time_anew():
    sessions = sessions_of(clock := Clock(), idle_ttl_s=10.0)
    session = create(sessions)
    clock.now += 9.0
    use(sessions, session)
    clock.now += 9.0
    assert sessions.get(session.id) is session
    clock.now += 1.0
    with pytest.raises(SessionExpired):
        sessions.get(session.id)
    assert (len(sessions), sessions.expired, sessions.idle_bytes) == (0, 1, 0)


def test_looking_at_a_session_does_not_put_off_its_expiry():
    sessions = sessions_of(clock := Clock(), idle_ttl_s=10.0)
    session = create(sessions)
    clock.now += 9.0
    sessions.get(session.id)
    clock.now += 1.0
    with pytest.raises(SessionExpired):
        sessions.get(session.id)


def test_a_session_in_use_neither_expires_nor_is_evicted_nor_deleted():
    sessions = sessions_of(clock := Clock(), idle_ttl_s=1.0, budget_bytes=0)
    session = create(sessions)
    sessions.lease(session)
    clock.now += 1_000.0
    create(sessions)
    assert sessions.get(session.id) is session
    with pytest.raises(SessionBusy):
        sessions.delete(session)
    sessions.release(session)
    clock.now += 0.5
    assert sessions.get(session.id) is session


@pytest.mark.parametrize("now", [0.0, 1.7e9, 1.7e9 + 0.3, 1e12 + 0.1])
def test_expiry_comes_to_an_end_at_the_very_tick_of_the_clock(now):
    """`used + ttl` rounds, so comparing it one way in the queue and another way in the table may never agree."""
    for ttl in (0.1, 0.3, 1.1, 3.3):
        sessions = sessions_of(clock := Clock(now), idle_ttl_s=ttl)
        session = create(sessions)
        clock.now = session.used_s + ttl
        sessions.expire()
        assert len(sessions) == 0


def test_the_least_recently_used_idle_session_is_evicted_first():
    sessions = sessions_of(budget_bytes=3 * 1_100)
    first, second, third = (create(sessions) for _ in range(3))
    use(sessions, first)
    fourth = create(sessions)
    assert [s.id for s in sessions] == [third.id, first.id, fourth.id]
    with pytest.raises(SessionExpired):
        sessions.get(second.id)
    assert sessions.evicted == 1


def test_a_session_too_large_for_the_budget_is_the_last_to_stay():
    sessions = sessions_of(budget_bytes=5_000)
    small, large = create(sessions), create(sessions)
    use(sessions, large, tokens=10_000)
    assert [s.id for s in sessions] == [large.id]
    assert small.id not in [s.id for s in sessions]


def test_what_generations_hold_is_counted():
    sessions = sessions_of()
    session = create(sessions)
    sessions.lease(session)
    bias = tuple((i, 1.0) for i in range(1_000))
    session.generations += [generation_of(logit_bias=bias) for _ in range(10)]
    sessions.release(session)
    assert 100_000 < sessions.idle_bytes < 200_000  # the bias once, which the ten share


def test_a_session_changed_while_it_lies_idle_throws_no_count_off():
    sessions = sessions_of()
    session = create(sessions)
    session.transcript.extend([1] * 500)
    use(sessions, session)
    sessions.delete(session)
    assert sessions.idle_bytes == 0


def test_sessions_made_and_deleted_by_the_thousand_leave_nothing_behind():
    sessions = sessions_of(idle_ttl_s=3_600.0)
    for _ in range(5_000):
        sessions.delete(create(sessions))
    assert len(sessions._expiries) < 2_000


def test_expiry_costs_nothing_for_those_whose_time_has_not_come():
    sessions = sessions_of(idle_ttl_s=100.0)
    for _ in range(50):
        create(sessions)
    looked_at = []
    sessions._table = SimpleNamespace(get=looked_at.append)
    sessions.expire()
    assert looked_at == []


def test_a_session_that_has_gone_since_it_was_got_is_not_leased():
    sessions = sessions_of()
    session = create(sessions)
    sessions.delete(session)
    with pytest.raises(SessionExpired):
        sessions.lease(session)
    assert not session.in_use


def test_what_has_expired_makes_room_before_anybody_is_evicted():
    sessions = sessions_of(clock := Clock(), budget_bytes=2 * 1_100)
    kept, _ = create(sessions), create(sessions, idle_ttl_s=1.0)
    clock.now += 2.0
    create(sessions)
    assert sessions.get(kept.id) is kept
    assert (sessions.expired, sessions.evicted) == (1, 0)


def test_a_session_that_nobody_keeps_can_be_leased_and_released():
    sessions = sessions_of()
    session = Session("", "m", "d", "n", 0.0, 0.0, 0.0)
    use(sessions, session, tokens=9)
    assert (len(sessions), sessions.idle_bytes) == (0, 0)
