"""`complete`: a text for one prompt, lists for several, seeds that count up; a failure leaves nothing running."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc

import grpc
import pytest

from fake_server import FakeServer, certain, transcript
from gruve.client import AsyncClient, Client, DeadlineExceeded, InvalidRequest, ModelNotFound, Overloaded, Reconnect
from gruve.v1 import generation_pb2
from scripted_transport import ThreadsTransport

MANY = 20_000


@pytest.fixture(scope="module")
def fake():
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def client(fake):
    fake.reset()
    with Client(fake.address) as client:
        yield client


def text(seed: int) -> str:
    return certain(transcript(seed, 20))


def test_the_form_of_the_result_follows_from_the_prompt_and_n(client):
    assert client.complete("x", model="m", seed=7) == text(7)
    assert client.complete(model="m", seed=7) == text(7)
    assert client.complete("x", model="m", seed=7, n=1) == [text(7)]
    assert client.complete("x", model="m", seed=7, n=3) == [text(7), text(8), text(9)]
    assert client.complete(["x", "y"], model="m", seed=7) == [text(7)] * 2
    assert client.complete(("x", "y"), model="m", seed=7, n=2) == [[text(7), text(8)]] * 2
    assert client.complete([], model="m") == []


class OwnInteger:
    """An integer of another library, as those of numpy."""

    def __index__(self):
        return 7


def test_seeds_count_up_from_an_integer_of_any_type(client):
    assert client.complete("x", model="m", seed=OwnInteger(), n=3) == [text(7), text(8), text(9)]


def test_the_async_client_completes_the_same(fake):
    async def complete():
        async with AsyncClient(fake.address) as client:
            one = await client.complete("x", model="m", seed=2**64 - 1)
            return one, await client.complete(["x", "y"], model="m", n=2, seed=2**64 - 1)

    fake.reset()
    assert asyncio.run(complete()) == (text(2**64 - 1), [[text(2**64 - 1), text(0)]] * 2)


def test_each_text_is_the_one_that_its_seed_gives_alone(server):
    with Client(server.address) as client:
        texts = client.complete(["ROMEO:", "JULIET:"], model="tiny", n=40, seed=3, max_tokens=8)
        for prompt, own in zip(("ROMEO:", "JULIET:"), texts, strict=True):
            alone = [client.generate(prompt, model="tiny", seed=3 + i, max_tokens=8).text() for i in range(40)]
            assert own == alone


def test_without_a_seed_the_texts_differ(server):
    with Client(server.address) as client:
        assert len(set(client.complete("O", model="tiny", n=5, max_tokens=30))) == 5


def test_a_wrong_argument_is_refused_before_a_call(fake, client):
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        client.complete("x", model="m", temprature=0.5)
    with pytest.raises(TypeError, match="'generation_id'"):
        client.complete("x", model="m", generation_id="one")
    with pytest.raises(TypeError, match="takes texts"):
        client.complete([1, 2], model="m")
    with pytest.raises(ValueError, match="n is 0; must be 1 or more"):
        client.complete("x", model="m", n=0)
    with pytest.raises(InvalidRequest, match="seed"):
        client.complete("x", model="m", seed="seven")
    assert fake.requests == []


def test_one_failure_cancels_the_others(server):
    held = {"max_tokens_per_second": 0.01}
    with Client(server.address) as client:
        slow = client.generate("O", model="tiny", **held)
        next(slow)
        wrong = client.generate("O", model="nobody")
        with pytest.raises(ModelNotFound):
            client._transport.texts([slow, wrong])
        assert list(slow) == []

    async def fail():
        async with AsyncClient(server.address) as client:
            slow = client.generate("O", model="tiny", **held)
            await anext(slow)
            with pytest.raises(ModelNotFound):
                await client._transport.texts([slow, client.generate("O", model="nobody")])
            assert [chunk async for chunk in slow] == []

    asyncio.run(fail())


def fails(client):
    with pytest.raises(ModelNotFound):
        client.complete("O", model="nobody", n=MANY)


async def fails_async(client):
    with pytest.raises(ModelNotFound):
        await client.complete("O", model="nobody", n=MANY)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_text_takes_room_when_its_turn_comes(server, kind):
    async def complete():
        async with AsyncClient(server.address) as client:
            await fails_async(client)

    tracemalloc.start()
    try:
        if kind is AsyncClient:
            asyncio.run(complete())
        else:
            with Client(server.address) as client:
                fails(client)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_a_timeout_bounds_all_texts_together(client):
    with pytest.raises(DeadlineExceeded, match="timeout_s=1"):
        client.complete("O", model="m", n=1_000_000, timeout_s=1)


class OneAtATime(ThreadsTransport):
    """Reads the first stream while the second one waits after each refusal."""

    def texts(self, streams):
        self.admitted, waits = streams
        return ["", waits.text()]

    def sleep(self, delay_s):
        next(self.admitted)


def test_a_text_that_a_limit_refuses_waits_while_another_makes_progress(monkeypatch):
    start = {"generation_id": "g", "sampling": {"seed": 1}}
    tokens = [generation_pb2.GenerateResponse(position=at, token_ids=[7], text="x") for at in range(9)]
    tokens[0].start.MergeFrom(generation_pb2.GenerationStart(**start))
    full = Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="LIMIT_EXCEEDED", retry_after_s=0)
    end = generation_pb2.GenerateResponse(position=1, start=start, end={"finish_reason": 1, "next_position": 1})
    script = OneAtATime([[full], tokens, *[[full]] * 5, [end]])
    monkeypatch.setattr("gruve.client.sync.client.Transport", lambda: script)
    assert Client("a:1", reconnect=Reconnect(max_reconnects=1)).complete(["x", "y"], model="m") == ["", ""]


def test_cancel_ends_the_loop_that_reads(fake, client):
    fake.hold = True
    stream = client.generate("x", model="m")
    chunks = []

    def read():
        chunks.extend(stream)

    reader = threading.Thread(target=read)
    reader.start()
    while not fake.requests:
        pass
    stream.cancel()
    reader.join(30)
    assert (reader.is_alive(), stream.ended, stream.finish_reason) == (False, False, "")
    assert fake.cancelled.wait(30)


def test_cancel_ends_an_async_stream(fake):
    async def read():
        async with AsyncClient(fake.address) as client:
            stream = client.generate("x", model="m")
            await anext(stream)
            stream.cancel()
            return [chunk async for chunk in stream]

    fake.reset()
    fake.hold = True
    assert asyncio.run(read()) == []
    assert fake.cancelled.wait(30)
