"""Tenants share a server: many streams of one take neither all slots nor another's tokens, and change no token."""

from __future__ import annotations

import pytest

from gruve.serve.callers.identity import Identity, Role
from gruve.serve.calls import interceptor
from gruve.v1 import generation_pb2 as g
from gruve.v1 import generation_pb2_grpc
from serving import HELD, read, token, until

SLOTS = 4


@pytest.fixture
def shared(start, monkeypatch):
    """A server with few slots, where each connection is a tenant, and a function that connects one."""
    monkeypatch.setattr(interceptor, "anonymous", lambda peer: Identity(peer, Role.ADMIN, authenticated=False))
    server = start(slots=SLOTS)
    channels = []

    def tenant():
        channels.append(server.connect())
        return generation_pb2_grpc.GenerationServiceStub(channels[-1])

    yield server, tenant
    for channel in channels:
        channel.close()


def request(**fields):
    return g.GenerateRequest(model="tiny", **{"max_tokens": 400, **fields})


def preemptions(server):
    return server.metric("gruve_preemptions_total", model="tiny")


def test_streams_that_hold_every_slot_do_not_keep_another_tenant_waiting(shared):
    server, tenant = shared
    many, one = tenant(), tenant()
    held = [many.Generate(request(max_tokens_per_second=HELD, sampling={"seed": i})) for i in range(3 * SLOTS)]
    engine = server.host("tiny").engine
    until(lambda: (engine.running, engine.load) == (SLOTS, 3 * SLOTS))
    assert read(one.Generate(request(max_tokens=5))).end.usage.generated_tokens == 5
    assert preemptions(server) >= 1
    for call in held:
        call.cancel()


def test_streams_that_lose_their_slots_generate_the_same_tokens(shared):
    server, tenant = shared
    cases = [{"text": "To be", "sampling": {"seed": i}} for i in range(SLOTS)]
    cases += [{"text": "To be", "sampling": {"seed": 9}, "logprobs": 2}, {"new_session": {"model": "tiny"}}]
    cases[-1] |= {"sampling": {"seed": 10}}
    for case in cases:
        if "new_session" not in case:
            case["model"] = "tiny"
    expected = [read(server.generation.Generate(g.GenerateRequest(max_tokens=300, **case))) for case in cases]
    many, other = tenant(), tenant()
    for pace in (200, 50, 10):  # on a busy machine fast ones may end before the other tenant comes
        paced = {"max_tokens": 300, "max_tokens_per_second": pace}
        calls = []
        for case in cases:
            call = many.Generate(g.GenerateRequest(**paced, **case))
            calls.append((call, [token(call)] if len(calls) < SLOTS else []))
        read(other.Generate(request(max_tokens=3)))
        for (call, begun), whole in zip(calls, expected, strict=True):
            messages = [*begun, *call]
            assert [t for m in messages for t in m.token_ids] == whole.tokens
            assert "".join(m.text for m in messages) == whole.text
            assert [e.logprob for m in messages for e in m.logprobs] == [e.logprob for e in whole.logprobs]
            assert messages[-1].end.finish_reason == whole.end.finish_reason
        if preemptions(server):
            break
    assert preemptions(server) >= 1


def test_a_conversation_that_loses_its_slot_generates_the_same_tokens(shared):
    server, tenant = shared
    long = request(max_tokens=100, sampling={"seed": 3}, ignore_eos=True)
    whole = read(server.generation.Generate(long))
    many, other = tenant(), tenant()
    held = [many.Generate(request(max_tokens_per_second=HELD, sampling={"seed": i})) for i in range(SLOTS - 1)]
    for call in held:
        token(call)
    for pace in (50, 5):  # as above
        long.max_tokens_per_second = pace
        talk = many.Converse(iter([g.ConverseRequest(start={"generate": long, "credit": 256})]))
        first = next(message.tokens.token_ids for message in talk if message.tokens.token_ids)  # it has a slot
        read(other.Generate(request(max_tokens=3)))
        assert [*first, *(t for m in talk for t in m.tokens.token_ids)] == whole.tokens
        if preemptions(server):
            break
    assert preemptions(server) >= 1
    for call in held:
        call.cancel()


def test_a_score_that_loses_its_slot_measures_the_same(shared):
    server, tenant = shared
    score = g.ScoreRequest(model="tiny", text="To be or not to be. " * 400)
    alone = server.generation.Score(score)
    many, other = tenant(), tenant()
    held = [many.Generate(request(max_tokens_per_second=HELD, sampling={"seed": i})) for i in range(SLOTS - 1)]
    for call in held:
        token(call)
    for _ in range(10):  # a score cannot be paced, and may end before the other tenant comes
        scoring = many.Score.future(score)
        until(lambda s=scoring: s.done() or server.host("tiny").engine.running == SLOTS)
        read(other.Generate(request(max_tokens=3)))
        assert scoring.result() == alone
        if preemptions(server):
            break
    assert preemptions(server) >= 1
    for call in held:
        call.cancel()
