"""Limits of a tenant and of all together: refused with the limit's name, value and a time to retry; nothing leaks."""

from __future__ import annotations

import contextlib
import random

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversing import PROMPT, SEED, START, Talk
from gruve.errors import InvalidField, LimitExceeded
from gruve.serve.callers import ledger
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from gruve.serve.callers.identity import Limits
from gruve.serve.callers.ledger import MAX_IDLE_TENANTS, Ledger, Reservation
from gruve.sessions.encoding import content_bytes
from gruve.sessions.opening import GenerationOpener
from gruve.v1 import generation_pb2 as g
from gruve.v1 import session_pb2 as s
from serving import HELD, read, refusal, token, until

TENANT = Limits(streams=3, waiting=2, tokens_per_minute=600, requests_per_minute=30)
TOTAL = Limits(streams=5, tokens_per_minute=1_000)


def test_one_stream_too_many_is_refused_until_another_ends():
    ledger = Ledger()
    held = [ledger.begin("a", Limits(streams=2), 0.0) for _ in range(2)]
    with pytest.raises(LimitExceeded, match="2 streams are open; the tenant's limit streams is 2"):
        ledger.begin("a", Limits(streams=2), 0.0)
    ledger.begin("b", Limits(streams=2), 0.0)
    held[0].close(0, 0.0)
    ledger.begin("a", Limits(streams=2), 0.0)


def test_a_tenant_that_may_have_no_stream_is_not_asked_to_retry():
    with pytest.raises(LimitExceeded, match="limit streams is 0") as refused:
        Ledger().begin("a", Limits(streams=0), 0.0)
    assert refused.value.retry_after_s is None


def test_a_request_waits_only_while_fewer_wait_than_the_limit():
    ledger = Ledger()
    ledger.begin("a", Limits(waiting=1), 0.0, waiting=lambda: 0)
    with pytest.raises(LimitExceeded, match="1 requests wait for a slot; the tenant's limit waiting is 1"):
        ledger.begin("a", Limits(waiting=1), 0.0, waiting=lambda: 1)


@pytest.mark.parametrize(
    "wrong", [{"waiting": 0}, {"streams": -1}, {"streams": True}, {"streams": 1 << 54}, {"tokens_per_minute": 1.5}]
)
def test_a_limit_that_is_out_of_range_is_refused_with_the_bound(wrong):
    with pytest.raises(InvalidField, match=r"must be a whole number of [01] to 9007199254740992"):
        Limits(**wrong)


def test_tokens_are_reserved_and_what_was_not_used_is_given_back():
    ledger = Ledger()
    first, second = (ledger.begin("a", Limits(tokens_per_minute=600), 0.0) for _ in range(2))
    first.reserve_tokens(500, 0.0)
    with pytest.raises(LimitExceeded, match="200 tokens beside 500 of the last minute") as refused:
        second.reserve_tokens(200, 0.0)
    assert refused.value.retry_after_s == 10.0
    first.close(100, 0.0)
    second.reserve_tokens(500, 0.0)


def test_the_time_to_retry_is_when_the_tokens_have_come_back():
    ledger = Ledger()
    ledger.begin("a", Limits(tokens_per_minute=600), 0.0).reserve_tokens(500, 0.0)
    again = ledger.begin("a", Limits(tokens_per_minute=600), 0.0)
    with pytest.raises(LimitExceeded):
        again.reserve_tokens(200, 9.9)
    again.reserve_tokens(200, 10.0)


def test_a_bucket_refills_by_the_time_since_it_was_looked_at_and_by_no_more():
    ledger, limits = Ledger(), Limits(tokens_per_minute=600)
    ledger.begin("a", limits, 5_000.0).reserve_tokens(600, 5_000.0)
    again = ledger.begin("a", limits, 5_005.0)
    with pytest.raises(LimitExceeded, match="61 tokens beside 540"):
        again.reserve_tokens(61, 5_006.0)
    again.reserve_tokens(60, 5_006.0)


def test_what_a_stream_used_counts_and_no_token_more():
    ledger, limits = Ledger(), Limits(tokens_per_minute=600)
    stream = ledger.begin("a", limits, 0.0)
    stream.reserve_tokens(500, 0.0)
    assert ledger.usage("a") == (1, 500)
    stream.close(100, 0.0)
    assert ledger.usage("a") == (0, 100)


def test_tokens_beyond_those_reserved_are_refused_once_the_limit_was_exceeded_by_them():
    ledger, limits = Ledger(), Limits(tokens_per_minute=600)
    stream = ledger.begin("a", limits, 0.0)
    stream.reserve_tokens(600, 0.0)
    stream.add_tokens(100, 0.0)
    with pytest.raises(LimitExceeded, match="700 tokens of the last minute count") as refused:
        stream.add_tokens(1, 0.0)
    assert refused.value.retry_after_s == pytest.approx(10.0)
    stream.add_tokens(300, 10.0)
    assert ledger.usage("a") == (1, 900)
    stream.close(900, 10.0)
    assert ledger.usage("a") == (0, 800), "of 1,000 tokens it did not use 100"


def test_a_tenant_that_may_have_no_token_is_not_asked_to_retry():
    stream = Ledger().begin("a", Limits(tokens_per_minute=0), 0.0)
    stream.add_tokens(1, 0.0)
    with pytest.raises(LimitExceeded) as refused:
        stream.add_tokens(1, 0.0)
    assert refused.value.retry_after_s is None


def test_a_request_above_the_limit_itself_has_no_time_to_retry():
    with pytest.raises(LimitExceeded) as refused:
        Ledger().begin("a", Limits(tokens_per_minute=600), 0.0).reserve_tokens(601, 0.0)
    assert refused.value.retry_after_s is None


def test_requests_a_minute_refill_evenly():
    ledger, limits = Ledger(), Limits(requests_per_minute=60)
    for _ in range(60):
        ledger.begin("a", limits, 0.0)
    with pytest.raises(LimitExceeded, match="requests_per_minute is 60") as refused:
        ledger.begin("a", limits, 0.0)
    assert refused.value.retry_after_s == pytest.approx(1.0)
    ledger.begin("a", limits, 1.0)


def test_a_limit_for_all_tenants_names_the_server():
    ledger = Ledger(Limits(streams=1))
    ledger.begin("a", Limits(), 0.0)
    with pytest.raises(LimitExceeded, match="the server's limit streams is 1"):
        ledger.begin("b", Limits(), 0.0)


def test_a_tenants_own_limit_goes_before_the_one_for_every_tenant():
    ledger = Ledger(tenant=Limits(streams=1, waiting=4))
    assert ledger.limits_of(Limits(streams=9)) == Limits(streams=9, waiting=4)


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_whatever_is_refused_or_closed_nothing_leaks_and_no_limit_is_exceeded(seed):
    chance, ledger, now = random.Random(seed), Ledger(TOTAL, TENANT), 0.0
    live = []
    for _ in range(300):
        now += chance.choice([0.0, 0.1, 3.0])
        tenant = chance.choice("abc")
        if chance.random() < 0.6:
            try:
                wait = chance.choice([0, 2])
                held = ledger.begin(tenant, Limits(), now, waiting=lambda wait=wait: wait)
            except LimitExceeded:
                continue
            live.append((tenant, held))
            try:
                held.reserve_tokens(chance.choice([0, 10, 300, 601]), now)
            except LimitExceeded:
                held.close(0, now)
                held.close(0, now)  # once only
                live.pop()
        elif live:
            _, held = live.pop(chance.randrange(len(live)))
            held.close(chance.randint(0, held.tokens), now)
        for name in "abc":
            assert ledger.usage(name)[0] == sum(t == name for t, _ in live) <= 3
            assert -1e-6 <= ledger.usage(name)[1] <= 600 + 1e-6
        assert len(live) <= 5
    for _, held in live:
        held.close(0, now)
    ledger.begin("a", Limits(), now + 120.0).reserve_tokens(600, now + 120.0)


def test_tenants_that_came_once_are_forgotten():
    ledger = Ledger(tenant=Limits(requests_per_minute=10, tokens_per_minute=600))
    ledger.begin("stays", Limits(), 0.0).reserve_tokens(500, 0.0)
    for i in range(10_000):
        stream = ledger.begin(f"t{i}", Limits(), float(i))
        stream.reserve_tokens(100, float(i))
        stream.close(100, float(i))
    assert len(ledger) <= MAX_IDLE_TENANTS
    assert ledger.usage("stays") == (1, 500)


def test_no_tenant_is_forgotten_while_its_tokens_count():
    ledger, limits = Ledger(), Limits(tokens_per_minute=600)
    stream = ledger.begin("a", limits, 0.0)
    stream.reserve_tokens(600, 0.0)
    stream.close(600, 0.0)
    for i in range(2 * MAX_IDLE_TENANTS):
        ledger.begin(f"t{i}", Limits(), 1.0).close(0, 1.0)
    with pytest.raises(LimitExceeded):
        ledger.begin("a", limits, 1.0).reserve_tokens(100, 1.0)


def test_a_stream_above_the_limit_is_refused_over_the_wire_and_leaves_nothing(start):
    server = start(tenant_limits=Limits(streams=1, tokens_per_minute=100_000))
    held = server.generate(max_tokens=10, max_tokens_per_second=HELD)
    token(held)
    failure = refusal(lambda: server.generate(new_session={"model": "tiny"}))
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    assert (failure.metadata["limit"], failure.metadata["bound"], failure.retry_after_s) == ("streams", "1", 1.0)
    held.cancel()
    until(lambda: server.metric("gruve_requests_total", model="tiny", finish_reason="cancelled") == 1)
    assert read(server.generate(max_tokens=3)).reason == "LENGTH"


def test_tokens_not_generated_are_given_back_after_the_end_and_after_a_cancel(start):
    server = start(tenant_limits=Limits(tokens_per_minute=1_000))
    for _ in range(3):
        call = server.generate(max_tokens=900, max_tokens_per_second=HELD)
        token(call)
        cancelled = server.metric("gruve_requests_total", model="tiny", finish_reason="cancelled")
        call.cancel()
        until(lambda n=cancelled: server.metric("gruve_requests_total", model="tiny", finish_reason="cancelled") > n)
    failure = refusal(lambda: server.generate(max_tokens=1_001))
    assert (failure.metadata["limit"], failure.retry_after_s) == ("tokens_per_minute", None)


def test_tokens_that_a_client_takes_back_and_prompts_that_it_inserts_count_as_used(start, monkeypatch):
    used, close = [], Reservation.close
    monkeypatch.setattr(
        Reservation, "close", lambda self, tokens, now_s: used.append(tokens) or close(self, tokens, now_s)
    )
    conversation = Talk(start()).begin(text=PROMPT, max_tokens=40, ignore_eos=True, sampling=SEED, credit=10).until(10)
    conversation.answer(conversation.say(rewind={"to_position": START}))
    conversation.grant(10)
    conversation.until(20)
    conversation.answer(conversation.insert("ab"))
    conversation.say(stop={})
    conversation.rest()
    assert used == [len(PROMPT) + 10 + 10 + len("ab")]


def test_one_conversation_cannot_compute_tokens_again_and_again_beyond_the_limit(start, monkeypatch):
    monkeypatch.setattr(ledger, "MINUTE_S", 1e9)  # nothing is refilled
    server = start(tenant_limits=Limits(tokens_per_minute=len(PROMPT) + 40))
    conversation = Talk(server).begin(text=PROMPT, max_tokens=40, ignore_eos=True, sampling=SEED, credit=10).until(10)
    again = [conversation.say(rewind={"to_position": START}) for _ in range(2)]
    assert conversation.position(again[0]) == START
    conversation.grant(10)
    conversation.until(20)
    refused = [conversation.say(rewind={"to_position": START}), conversation.insert("a")]
    assert [conversation.reason(control) for control in refused] == 2 * ["LIMIT_EXCEEDED"]
    assert "limit tokens_per_minute is 45" in conversation.answers[refused[0]].message
    conversation.grant(100)
    assert conversation.rest().finish == "LENGTH"


class Tenant:
    """The calls of one key."""

    def __init__(self, server, key):
        self.server, self.how = server, {"metadata": [("authorization", f"Bearer {key}")], "timeout": 20}

    def create(self):
        request = s.CreateSessionRequest(session=g.NewSession(model="tiny"))
        return self.server.sessions.CreateSession(request, **self.how).session.id

    def call(self, rpc, **fields):
        return getattr(self.server.sessions, rpc)(getattr(s, f"{rpc}Request")(**fields), **self.how)

    def fork(self, session_id, count):
        branches = [{}] * count
        return self.call("ForkSession", session_id=session_id, branches=branches).sessions

    def generate(self, max_tokens=3, **where):
        request = g.GenerateRequest(max_tokens=max_tokens, **where or {"new_session": {"model": "tiny"}})
        return list(self.server.generation.Generate(request, **self.how))


def test_no_call_makes_a_session_too_many_over_the_wire_not_even_after_a_restart(start, sqlite, tmp_path):
    keys = tmp_path / "keys.json"
    ann_key, bob_key = (add_key(keys, name, name, limits=Limits(sessions=n)) for name, n in [("ann", 3), ("bob", 9)])
    how = {"store": sqlite, "access": AccessConfig(keys=keys), "total_limits": Limits(sessions=4)}
    server = start(**how)
    ann = Tenant(server, ann_key)
    first = ann.create()
    blob = ann.call("ExportSession", session_id=first).blob
    assert refusal(lambda: ann.fork(first, 3)).metadata["limit"] == "sessions"
    ann.fork(first, 1)
    ann.generate()
    server.stop().result(20)
    server = start(**how)
    ann, bob = Tenant(server, ann_key), Tenant(server, bob_key)
    makers = (ann.create, lambda: ann.fork(first, 1), lambda: ann.call("ImportSession", blob=blob), ann.generate)
    for make in makers:
        failure = refusal(make)
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
        assert failure.message == "3 sessions exist and 1 more is asked for; the tenant's limit sessions is 3"
        assert (failure.metadata["bound"], failure.retry_after_s) == ("3", None)
    bob.create()
    assert "4 sessions exist and 1 more is asked for; the server's limit" in refusal(bob.create).message
    ann.call("DeleteSession", session_id=first)
    ann.call("ImportSession", blob=blob)
    assert "the tenant's limit sessions is 3" in refusal(ann.generate).message


@pytest.mark.parametrize("kept", ["sqlite", "memory"])
def test_a_tenants_bytes_are_refused_beyond_its_limit_until_it_deletes_a_session(start, sqlite, tmp_path, kept):
    keys, bound = tmp_path / "keys.json", 120_000
    how = {"store": sqlite} if kept == "sqlite" else {}
    ann_key, bob_key = (add_key(keys, n, n, limits=Limits(stored_bytes=b)) for n, b in [("ann", bound), ("bob", None)])
    server = start(**how, access=AccessConfig(keys=keys))
    ann, bob = Tenant(server, ann_key), Tenant(server, bob_key)
    first = ann.create()
    most = refusal(lambda: ann.generate(65_536, session_id=first))  # its tokens alone would take more
    assert (most.code, most.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    assert (most.metadata["limit"], most.metadata["bound"], most.retry_after_s) == ("stored_bytes", str(bound), None)
    made = [first]
    with contextlib.suppress(grpc.RpcError):
        while len(made) < 1_000:
            ann.generate(300, session_id=made[-1])
            made.append(ann.fork(made[-1], 1)[0].id)
    assert 2 < len(made) < 200
    refused = refusal(lambda: ann.generate(8_000, session_id=first))
    assert "more are asked for; the tenant's limit stored_bytes is 120000" in refused.message
    bob.generate(8_000)
    for session_id in made[1:]:
        ann.call("DeleteSession", session_id=session_id)
    ann.generate(8_000, session_id=first)


def test_a_generation_never_takes_more_than_it_has_reserved(start, sqlite, monkeypatch):
    taken, end = [], GenerationOpener.end

    def observed(self, running):
        taken.append((content_bytes(running.session), running.session.promised_bytes))
        end(self, running)

    monkeypatch.setattr(GenerationOpener, "end", observed)
    server = start(store=sqlite)
    bias = {"biases": dict.fromkeys(range(5), -1.2345678901234568e-05)}
    for fields in ({}, {"max_tokens": 5_000}, {"stop": ["\u2028" * 64] * 16}, {"sampling": {"logit_bias": bias}}):
        read(server.generate(**{"max_tokens": 700, "ignore_eos": True, "new_session": {"model": "tiny"}, **fields}))
    assert len(taken) == 4
    assert all(used <= reserved for used, reserved in taken)
