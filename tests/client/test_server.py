"""The client with a real server, over real connections that are really lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time

import pytest

from cutting_proxy import CuttingProxy
from freezing_proxy import FreezingProxy
from gruve.client import AsyncClient, CallFailed, Client, InvalidRequest, Reconnecting
from serving import until

PROMPT = "ROMEO:\n"


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


def test_a_session_whose_connections_are_cut_has_the_uninterrupted_stream(server, client):
    options = {"seed": 11, "max_tokens": 150, "max_tokens_per_message": 2, "logprobs": 1, "stop": ["xyz"]}
    whole = list(client.generate(PROMPT, model="tiny", **options))
    proxy = CuttingProxy(server.serving.port, [900, 1_500, 800])
    with contextlib.closing(proxy), Client(proxy.address) as cut:
        stream = cut.generate(PROMPT, model="tiny", new_session=True, **options)
        chunks = list(stream)
        transcript = client.get_session(stream.start.session_id)
    assert proxy.cuts == []
    for part in ("token_ids", "logprobs"):
        assert [x for c in chunks for x in getattr(c, part)] == [x for c in whole for x in getattr(c, part)]
    assert "".join(c.text for c in chunks) == "".join(c.text for c in whole)
    assert (transcript.session.position, len(transcript.generations)) == (1 + len(PROMPT) + 150, 1)


@pytest.mark.parametrize("timeout_s", [math.inf, 1e12])
def test_a_timeout_without_end_is_none(client, timeout_s):
    assert client.models(timeout_s=timeout_s)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "at_most_s"), [(200, 20.0), (1, 40.0)])
def test_a_connection_that_falls_silent_is_given_up_and_the_stream_goes_on(rate, at_most_s, server):
    """gRPC by itself takes a minute. The bounds are twice and more what a machine with nothing else to do takes."""
    options = {"seed": 11, "max_tokens": 4_000, "max_tokens_per_second": rate, "max_tokens_per_message": 1}
    lost_after_s = []

    def report(event):
        if isinstance(event, Reconnecting):
            lost_after_s.append(time.monotonic() - frozen_at_s)

    proxy = FreezingProxy(server.serving.port)
    with contextlib.closing(proxy), Client(proxy.address, keepalive_s=10, on_reconnect=report) as client:
        stream = client.generate(PROMPT, model="tiny", new_session=True, **options)
        begun = [next(stream).text for _ in range(5)]
        proxy.freeze()
        frozen_at_s = time.monotonic()
        while not lost_after_s:  # what was on its way before is read first
            begun.append(next(stream).text)
        begun += [next(stream).text for _ in range(5)]
        stream.cancel()
    with Client(server.address) as client:
        assert client.complete(PROMPT, model="tiny", seed=11, max_tokens=4_000).startswith("".join(begun))
    assert lost_after_s[0] < at_most_s


@pytest.mark.slow
def test_a_connection_that_takes_longer_than_a_second_is_waited_for(server):
    with contextlib.closing(FreezingProxy(server.serving.port, late_s=1.5)) as proxy, Client(proxy.address) as client:
        assert client.get_model("tiny").name == "tiny"


def test_a_stream_that_is_handed_over_goes_on_at_the_next_server(start):
    first, second = start(drain_s=0.0), start()
    options = {"seed": 5, "max_tokens": 300}
    with Client([first.address, second.address]) as client:
        whole = client.generate(PROMPT, model="tiny", **options).text()
        stream = client.generate(PROMPT, model="tiny", max_tokens_per_second=500, **options)
        begun = next(stream).text
        first.close()
        assert begun + stream.text() == whole
    until(lambda: second.handled("Generate", "OK") == 1)


def test_a_busy_session_is_waited_for(client):
    session = client.create_session("tiny").id
    slow = client.generate(PROMPT, session_id=session, max_tokens=40, max_tokens_per_second=100)
    first = next(slow)
    with contextlib.closing(client.generate(session_id=session, max_tokens=5)) as queued:
        rest = slow.text()
        assert queued.text()
    assert first.text + rest in client.get_session(session).text


def test_both_clients_have_the_same_methods_and_get_the_same_answers(start):
    server = start(session_key=bytes(32))
    with Client(server.address) as client:
        both_are_answered_alike(server, client)


def both_are_answered_alike(server, client):
    async def ask() -> list[object]:
        async with AsyncClient(server.address) as other:
            session = (await other.create_session("tiny", idle_ttl_s=60)).id
            text = await other.generate(PROMPT, session_id=session, seed=1, max_tokens=20).text()
            answers = [
                text,
                (await other.get_session(session)).text,
                await other.tokenize(PROMPT, model="tiny"),
                await other.detokenize([5, 6], model="tiny"),
                await other.score(PROMPT, model="tiny", logprobs=0),
                await other.models(),
                await other.get_model("tiny@0"),
                session in [kept.id async for kept in other.list_sessions("tiny")],
            ]
            rewound = await other.rewind_session(session, 20)
            (branch,) = await other.fork_session(session, [4])
            copy = await other.import_session(await other.export_session(session), idle_ttl_s=60)
            answers += [rewound.position, branch.sampling.seed, copy.position]
            await other.delete_session(session)
            return answers

    session = client.create_session("tiny", idle_ttl_s=60).id
    text = client.generate(PROMPT, session_id=session, seed=1, max_tokens=20).text()
    assert asyncio.run(ask()) == [
        text,
        client.get_session(session).text,
        client.tokenize(PROMPT, model="tiny"),
        client.detokenize([5, 6], model="tiny"),
        client.score(PROMPT, model="tiny", logprobs=0),
        client.models(),
        client.get_model("tiny@0"),
        session in [kept.id for kept in client.list_sessions("tiny")],
        client.rewind_session(session, 20).position,
        client.fork_session(session, [4])[0].sampling.seed,
        client.import_session(client.export_session(session), idle_ttl_s=60).position,
    ]
    client.delete_session(session)
    with pytest.raises(CallFailed, match="SESSION_EXPIRED"):
        client.get_session(session)


def test_a_value_that_no_request_can_hold_is_refused_as_by_a_server(client):
    with pytest.raises(InvalidRequest, match=r"token_ids: \[-1\] cannot be sent"):
        client.detokenize([-1], model="tiny")
    with pytest.raises(InvalidRequest, match=r"session_id: .* cannot be sent"):
        client.delete_session("\ud800")


async def test_an_async_conversation_that_is_dropped_gives_its_session_back(server):
    async with AsyncClient(server.address) as client:
        conversation = client.converse(PROMPT, model="tiny", new_session=True, max_tokens_per_second=0.01)
        await anext(conversation)
        session = conversation.start.session_id
        assert (await client.get_session(session)).session.in_use
        del conversation
        while (await client.get_session(session, transcript=False)).session.in_use:
            pass
