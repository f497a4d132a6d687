"""What a stream tells of its generation, and when; both clients alike."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fake_server import SERVER_SEED, FakeServer, certain, transcript
from gruve.client import AsyncClient, Client, Unimplemented


@pytest.fixture(scope="module")
def running():
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def server(running):
    running.reset()
    return running


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


def test_the_start_can_be_read_from_the_first_chunk_on_and_the_end_from_the_last(client):
    stream = client.generate("x", model="m")
    assert (stream.started, stream.ended, stream.finish_reason) == (False, False, "")
    with pytest.raises(RuntimeError, match="no `start` before its first chunk was read; `started` tells"):
        _ = stream.start
    next(stream)
    assert (stream.started, stream.ended, stream.start.sampling.seed) == (True, False, SERVER_SEED)
    with pytest.raises(RuntimeError, match="no `end` before its last chunk was read; `ended` tells"):
        _ = stream.end
    stream.text()
    assert (stream.ended, stream.end.next_position, stream.finish_reason) == (True, 21, "length")


async def test_an_async_stream_tells_the_same(server):
    async with AsyncClient(server.address) as client:
        stream = client.generate("x", model="m")
        with pytest.raises(RuntimeError, match="no `start`"):
            _ = stream.start
        await stream.text()
        assert (stream.started, stream.ended, stream.end.next_position) == (True, True, 21)


def test_a_cancelled_stream_has_a_start_and_no_end(server, client):
    server.hold = True
    stream = client.generate("x", model="m")
    next(stream)
    stream.cancel()
    assert list(stream) == []
    assert (stream.started, stream.ended) == (True, False)


def test_closing_cancels(server, client):
    server.hold = True
    with contextlib.closing(client.generate("x", model="m")) as stream:
        next(stream)
    assert server.cancelled.wait(30)
    assert list(stream) == []


async def test_aclosing_cancels(server):
    server.hold = True
    async with AsyncClient(server.address) as client:
        async with contextlib.aclosing(client.generate("x", model="m")) as stream:
            await anext(stream)
        assert await asyncio.to_thread(server.cancelled.wait, 30)
        assert [chunk async for chunk in stream] == []


async def test_waiting_for_a_chunk_without_cancelling_it_loses_nothing(server):
    async with AsyncClient(server.address) as client:
        stream, texts, waited = client.generate("x", model="m"), [], 0
        reading = asyncio.ensure_future(anext(stream, None))
        while True:
            done, _ = await asyncio.wait({reading}, timeout=0)
            waited += not done
            if done:
                if (chunk := reading.result()) is None:
                    break
                texts.append(chunk.text)
                reading = asyncio.ensure_future(anext(stream, None))
    assert waited > 0
    assert "".join(texts) == certain(transcript(SERVER_SEED, 20))


def test_a_receipt_is_there_at_the_end_alone_and_an_old_server_has_none(client):
    stream = client.generate("x", model="m")
    with pytest.raises(RuntimeError, match="no `end` before its last chunk"):
        stream.receipt()
    stream.text()
    with pytest.raises(Unimplemented, match="sends no receipts"):
        stream.receipt()
