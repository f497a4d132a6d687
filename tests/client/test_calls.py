"""The client with a server that drops connections, refuses and breaks the protocol: readers see one whole stream."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutting_proxy import CuttingProxy
from decoding import PATIENCE_S
from fake_server import BARE, LASTING, PASSING, SERVER_SEED, FakeServer, certain, transcript
from gruve.client import (
    AsyncClient,
    CallFailed,
    Cancelled,
    Chunk,
    Client,
    DeadlineExceeded,
    Reconnect,
    Reconnected,
    Reconnecting,
)

AT_ONCE = Reconnect(max_reconnects=10, first_reconnects=10, backoff_s=0)
FAULTS = st.lists(st.tuples(st.sampled_from([*BARE, *PASSING, "cut"]), st.integers(0, 12)), max_size=6)


@pytest.fixture(scope="module")
def running():
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def connected(running):
    with Client(running.address, reconnect=AT_ONCE) as client:
        yield client


@pytest.fixture
def server(running):
    running.reset()
    return running


@pytest.fixture
def client(server, connected):
    return connected


def read(address: str, **options) -> list[Chunk]:
    """All chunks, by the async client."""

    async def everything() -> list[Chunk]:
        async with AsyncClient(address, reconnect=AT_ONCE) as client:
            return [chunk async for chunk in client.generate("x", model="m", **options)]

    return asyncio.run(everything())


def joined(chunks: list[Chunk]) -> tuple[bytes, str]:
    for before, after in itertools.pairwise(chunks):
        assert after.position == before.position + len(before.token_ids)
    return bytes(token for chunk in chunks for token in chunk.token_ids), "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize("examples", [60, pytest.param(3_000, marks=pytest.mark.slow)])
def test_a_stream_dropped_anywhere_is_the_uninterrupted_one(running, connected, examples):
    given_drops = given(FAULTS, st.integers(0, 40), st.integers(1, 5), st.integers(0, 2**64 - 1))
    settings(max_examples=examples, deadline=None)(given_drops(stream_is_unbroken))(running, connected)


def stream_is_unbroken(running, connected, faults, length, per_message, seed):
    running.reset(faults, length, per_message)
    stream = connected.generate("x", model="m", seed=seed)
    tokens = transcript(seed, length)
    assert joined(list(stream)) == (tokens, certain(tokens))
    assert stream.finish_reason == "length"
    assert len(running.requests) == len(faults) + 1


@settings(max_examples=25, deadline=None)
@given(FAULTS, st.integers(0, 40), st.integers(1, 5))
def test_the_async_client_reads_the_same_stream(running, faults, length, per_message):
    running.reset(faults, length, per_message)
    tokens = transcript(SERVER_SEED, length)
    assert joined(read(running.address)) == (tokens, certain(tokens))


def test_connections_cut_in_the_middle_of_a_message_cost_no_token(server):
    server.reset(length=200, tokens_per_message=2)
    with contextlib.closing(CuttingProxy(server.port, [700, 1_111, 900])) as proxy, Client(proxy.address) as client:
        tokens = transcript(9, 200)
        assert joined(list(client.generate(model="m", seed=9))) == (tokens, certain(tokens))
    assert len(server.requests) == 4


@pytest.mark.parametrize("reason", LASTING)
def test_an_application_error_is_never_tried_again(server, client, reason):
    server.faults = [(reason, 6)]
    stream = client.generate("x", model="m")
    assert [next(stream).position, next(stream).position] == [1, 4]
    with pytest.raises(CallFailed) as caught:
        next(stream)
    assert caught.value.code is LASTING[reason]
    assert caught.value.reason == reason
    assert len(server.requests) == 1
    assert list(stream) == []


def test_an_error_says_all_that_the_server_said(server, client):
    server.faults = [("INVALID_FIELD", 0)]
    with pytest.raises(CallFailed) as caught:
        client.models()
    assert str(caught.value) == "INVALID_FIELD: because of INVALID_FIELD"
    assert caught.value.metadata == {"incident": "i1"}
    assert [(v.field, v.description) for v in caught.value.violations] == [("top_p", "is 2; 0 to 1")]


def test_a_resumed_stream_keeps_its_generation_id_and_seed(server, client):
    server.faults = [("refused", 3), ("HANDED_OVER", 3)]
    stream = client.generate("x", model="m", generation_id="mine")
    stream.text()
    assert [request.generation_id for request in server.requests] == ["mine"] * 3
    assert [request.from_position for request in server.requests] == [0, 4, 7]
    assert {request.sampling.seed for request in server.requests[1:]} == {SERVER_SEED}
    assert stream.start.sampling.seed == SERVER_SEED


def test_a_stream_goes_on_at_the_next_address():
    servers = [FakeServer(), FakeServer()]
    addresses = [server.address for server in servers]
    with Client(addresses, reconnect=AT_ONCE) as client:
        stream = client.generate("x", model="m")
        first = next(stream)
        servers[0].reset([("refused", 0)])
        servers[0].stop()
        rest = list(stream)
    servers[1].stop()
    tokens = transcript(SERVER_SEED, 20)
    assert joined([first, *rest]) == (tokens, certain(tokens))


def events_of(address: str, kind: str) -> list[Reconnecting | Reconnected]:
    """What `on_reconnect` receives while a stream is read to its end."""
    events: list[Reconnecting | Reconnected] = []
    if kind == "sync":
        with Client(address, reconnect=AT_ONCE, on_reconnect=events.append) as client:
            client.generate("x", model="m").text()
        return events

    async def read_it() -> None:
        async with AsyncClient(address, reconnect=AT_ONCE, on_reconnect=events.append) as client:
            await client.generate("x", model="m").text()

    asyncio.run(read_it())
    return events


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_each_retry_and_its_success_are_reported(server, kind):
    server.reset([("refused", 3), ("SESSION_BUSY", 0), ("reset", 5)])
    lost, busy, again, reset, continues = events_of(server.address, kind)
    assert (lost.address, lost.next_address, lost.attempt) == (server.address, server.address, 1)
    assert lost.failure.connection_lost
    assert (busy.failure.reason, busy.attempt, busy.delay_s) == ("SESSION_BUSY", 2, 0.0)
    assert (again, continues) == (Reconnected(server.address, 2), Reconnected(server.address, 1))
    assert reset.attempt == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stream_that_is_not_lost_reports_nothing(server, kind):
    assert events_of(server.address, kind) == []


def test_an_address_where_nobody_listens_fails_soon():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with Client(f"127.0.0.1:{port}", reconnect=Reconnect(backoff_s=0)) as client, pytest.raises(CallFailed) as caught:
        client.models()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("leave", ["close", "with", "drop"])
def test_a_stream_that_is_left_is_cancelled(server, client, leave):
    server.hold = True
    stream = client.generate("x", model="m")
    next(stream)
    if leave == "close":
        stream.close()
        assert list(stream) == []
    elif leave == "with":
        with stream:
            pass
    else:
        del stream
    assert server.cancelled.wait(PATIENCE_S)


async def test_an_async_stream_that_is_dropped_is_cancelled(server):
    async def texts(client):  # as a handler that streams a response, whose caller goes away
        async for chunk in client.generate("x", model="m"):
            yield chunk.text

    server.hold = True
    async with AsyncClient(server.address) as client:
        response = texts(client)
        await anext(response)
        await response.aclose()
        assert await asyncio.to_thread(server.cancelled.wait, PATIENCE_S)


def test_another_thread_may_close_a_stream(server, client):
    server.hold = True
    stream = client.generate("x", model="m")
    next(stream)
    threading.Timer(0.05, stream.close).start()
    assert list(stream) == []
    assert server.cancelled.wait(PATIENCE_S)


async def test_cancelling_the_reader_cancels_the_call(server):
    server.hold = True
    async with AsyncClient(server.address) as client:
        stream = client.generate("x", model="m")
        await anext(stream)
        reader = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert await asyncio.to_thread(server.cancelled.wait, PATIENCE_S)


async def test_an_async_stream_closed_by_another_task_just_ends(server):
    server.hold = True
    async with AsyncClient(server.address) as client:
        stream = client.generate("x", model="m")
        await anext(stream)
        asyncio.get_running_loop().call_later(0.05, stream.cancel)
        assert [chunk async for chunk in stream] == []


@pytest.mark.parametrize("use", ["models", "generate", "converse"])
def test_an_async_client_says_that_it_belongs_to_another_event_loop(server, use):
    client = AsyncClient(server.address)

    async def call() -> None:
        await (client.models() if use == "models" else getattr(client, use)("x", model="m").text())

    asyncio.run(client.models())
    with pytest.raises(RuntimeError, match="was used in another event loop"):
        asyncio.run(call())


def test_a_second_thread_that_reads_a_stream_is_refused(server, client):
    server.hold = True
    stream = client.generate("x", model="m")
    next(stream)
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    while not stream._reading:
        pass
    with pytest.raises(RuntimeError, match="is being read already"):
        next(stream)
    assert not server.cancelled.is_set()
    stream.close()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()


async def test_a_second_task_that_reads_a_stream_is_refused(server):
    server.hold = True
    async with AsyncClient(server.address) as client:
        stream = client.generate("x", model="m")
        await anext(stream)
        reader = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="is being read already"):
            await anext(stream)
        await stream.aclose()
        assert await reader is None


def test_closing_the_client_ends_its_streams(server):
    server.hold = True
    client = Client(server.address)
    stream = client.generate("x", model="m")
    next(stream)
    threading.Timer(0.05, client.close).start()
    with pytest.raises(CallFailed, match="closed"):
        next(stream)


def test_a_client_that_was_closed_before_the_call_says_so(server):
    client = Client(server.address)
    client.close()
    with pytest.raises(Cancelled, match="the client is closed"):
        client.models()
    with pytest.raises(Cancelled, match="the client is closed"):
        client.generate("x", model="m").text()


@pytest.mark.parametrize("use", ["models", "generate", "converse"])
def test_a_call_that_begins_while_the_client_is_closed_is_cancelled(server, use):
    def closes_meanwhile():
        client.close()
        return ()

    client = Client(server.address, metadata=closes_meanwhile)
    with pytest.raises(Cancelled, match="closed during the call"):
        client.models() if use == "models" else getattr(client, use)("x", model="m").text()


def test_the_timeout_bounds_everything(server, client):
    server.hold = True
    with pytest.raises(CallFailed) as caught:
        client.generate("x", model="m", timeout_s=0.2).text()
    assert type(caught.value) is DeadlineExceeded
    assert str(caught.value) == "DEADLINE_EXCEEDED: the call did not finish within timeout_s=0.2"


def test_what_may_be_done_twice_is_tried_again(server, client):
    calls = {
        "rewind": lambda: client.rewind_session("s1", 7, seed=3).position == 7,
        "export": lambda: client.export_session("s1") == b"packed",
        "import": lambda: client.import_session(b"s2", idle_ttl_s=60).id == "s2",
    }
    for name, call in calls.items():
        server.reset([("reset", 0), ("SESSION_BUSY", 0)])
        assert call(), name
        assert len(server.requests) == 3


def test_a_fork_that_is_lost_is_not_tried_again(server, client):
    server.reset([("refused", 0), ("", 0), ("SESSION_BUSY", 0), ("reset", 0)])
    with pytest.raises(CallFailed, match="Socket closed"):
        client.fork_session("s1", [3, None])
    assert [type(request).__name__ for request in server.requests] == ["GetSessionRequest"] * 2 + [
        "ForkSessionRequest"
    ] * 2
    assert [branch.HasField("seed") for branch in server.requests[-1].branches] == [True, False]
    assert [session.id for session in client.fork_session("s1", [1, 2, 3])] == ["b0", "b1", "b2"]


def test_a_repeated_delete_that_finds_nothing_has_done_its_work(server, client):
    server.faults = [("refused", 0), ("SESSION_EXPIRED", 0)]
    client.delete_session("s1")
    server.faults = [("SESSION_EXPIRED", 0)]
    with pytest.raises(CallFailed, match="SESSION_EXPIRED"):
        client.delete_session("s1")


def test_pages_are_joined(server, client):
    whole = client.get_session("s1")
    assert (list(whole.token_ids), whole.text, whole.next_page_token) == ([0, 1, 2, 3, 4, 5], "0 2 4 ", "")
    assert [session.id for session in client.list_sessions()] == ["s0", "s1", "s2"]


def test_the_client_needs_neither_torch_nor_numpy():
    code = "import sys, gruve.client; print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_closing_waits_no_longer_than_it_says_for_a_connection_that_hangs(monkeypatch):
    monkeypatch.setattr("gruve.client.sync.transport.CLOSE_WITHIN_S", 0.01)
    client, hangs = Client("localhost:1"), threading.Event()
    monkeypatch.setattr(client._connections, "close", lambda: [SimpleNamespace(close=hangs.wait)])
    client.close()
    hangs.set()
