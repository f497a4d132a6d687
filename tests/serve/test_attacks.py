"""Hostile clients: each loses only its own connection or call, other streams continue, and memory stays constant.

The server is a process of its own, so that its memory can be measured and a crash does not end the tests.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from pathlib import Path

import grpc
import pytest

from gruve.v1 import generation_pb2 as g
from gruve.v1 import generation_pb2_grpc
from gruve.v1 import sampling_pb2 as s
from http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Connection,
    call,
    frame,
    headers,
    literal,
    reset,
)
from server_process import Process
from serving import HELD, PATIENCE_S, Read, broken, metrics_at, read, token, until

GROWTH_BYTES = 128 << 20
"""Memory that gRPC and the allocator take and use again, over all repetitions of an attack. It depends on how many of
its calls were open at once."""
FLAT_BYTES = 12 << 20
"""Memory that the last repetition may take."""
REPETITIONS = 8
"""How often an attack may be repeated until it takes no more memory. A leak takes as much each time."""
SEEDED = {"sampling": s.SamplingParameters(seed=7)}
REQUEST = g.GenerateRequest(model="tiny", max_tokens=2_000).SerializeToString()

times = pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def server(tiny_repository):
    """The server that is attacked."""
    with Process(tiny_repository, "--store", "memory", "--log-level", "error") as process:
        yield Attacked(process)


@pytest.fixture(scope="module")
def beside(server):
    """A stream that runs during the attack."""
    stream = server.generate(timeout=None, max_tokens=60_000, max_tokens_per_second=100.0, **SEEDED)
    begun = token(stream)
    yield stream, list(begun.token_ids)
    stream.cancel()


class Attacked:
    """A server process, with a channel to it."""

    def __init__(self, process):
        self.process = process
        self.port = process.line["port"]
        self.generation = generation_pb2_grpc.GenerationServiceStub(process.connect())

    def memory_bytes(self):
        statm = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(statm.split()[1]) * 4_096

    def running(self):
        """How many sequences it decodes."""
        return sum(metrics_at(self.process.line["metrics_port"])["gruve_requests_running"].values())

    def generate(self, timeout=PATIENCE_S, **fields):
        return self.generation.Generate(g.GenerateRequest(model="tiny", **fields), timeout=timeout)


def send(port, data):
    """Sends bytes on a connection of their own."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(data)


def assert_it_serves(server):
    """Waits until calls succeed. In a flood, gRPC cancels calls while too many others wait."""
    request = g.GenerateRequest(model="tiny", max_tokens=20)
    streams = []

    def serves():
        assert server.process.is_alive
        messages, failure = broken(lambda: server.generation.Generate(request, timeout=60, wait_for_ready=True))
        streams.append(messages)
        return failure is None

    until(serves)
    assert len(Read(streams[-1]).tokens) == 20


@times
def test_connections_of_random_bytes(server, beside, count):
    chance = random.Random(1)
    for _ in range(count):
        send(server.port, chance.randbytes(chance.choice([1, 9, 200, 20_000])))
    assert_it_serves(server)


BROKEN = {
    "a frame longer than allowed": frame(DATA, 0, 1, b"x" * 20_000),
    "a frame that says 16 MiB": frame(DATA, 0, 1, b"", length=(1 << 24) - 1),
    "data on a stream that was never opened": frame(DATA, 0, 9, b"hello"),
    "headers on stream 0": frame(HEADERS, END_HEADERS, 0, headers()),
    "headers on an even stream": frame(HEADERS, END_HEADERS, 2, headers()),
    "headers that are no HPACK": frame(HEADERS, END_HEADERS, 1, b"\xff" * 40),
    "an index beyond the table": frame(HEADERS, END_HEADERS, 1, b"\xff\x80\x80\x80\x08"),
    "a continuation of nothing": frame(CONTINUATION, END_HEADERS, 1, b"\x00"),
    "data in the middle of headers": frame(HEADERS, 0, 1, headers()[:20]) + frame(DATA, 0, 1, b"x"),
    "headers that never end": frame(HEADERS, 0, 1, headers())
    + b"".join(frame(CONTINUATION, 0, 1, literal("x-a", "y" * 100)) for _ in range(2_000)),
    "settings of a wrong size": frame(SETTINGS, 0, 0, b"12345"),
    "an acknowledgement that says something": frame(SETTINGS, ACK, 0, b"123456"),
    "a window of more than 2 GiB": frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0x7FFFFFFF)) * 2,
    "a window update of 0": frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 0)),
    "a ping of a wrong size": frame(PING, 0, 0, b"123"),
    "a reset of a stream that was never opened": frame(RST_STREAM, 0, 7, struct.pack(">I", 8)),
    "a message shorter than it says": frame(HEADERS, END_HEADERS, 1, headers())
    + frame(DATA, 1, 1, b"\x00" + struct.pack(">I", 500) + b"abc"),
    "a message of 4 GiB": frame(HEADERS, END_HEADERS, 1, headers()) + frame(DATA, 0, 1, b"\x00\xff\xff\xff\xff"),
    "a compressed message that is none": frame(HEADERS, END_HEADERS, 1, headers())
    + frame(DATA, 1, 1, b"\x01" + struct.pack(">I", 3) + b"abc"),
    "a path that is no method": frame(HEADERS, END_HEADERS, 1, headers("/../../etc/passwd")) + frame(DATA, 1, 1, b""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_http2(server, beside, name):
    with Connection(server.port) as connection:
        connection.send(BROKEN[name])
    assert_it_serves(server)


@times
def test_frames_that_are_cut_and_changed_at_random(server, beside, count):
    chance = random.Random(2)
    whole = PREFACE + frame(SETTINGS) + call(1, REQUEST) + frame(PING, 0, 0, b"12345678") + reset(1)
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(chance.choice([0, 1, 4])):
            data[chance.randrange(len(PREFACE), len(whole))] = chance.randrange(256)
        send(server.port, data[: chance.randrange(len(whole) + 1)])
    until(lambda: server.running() <= 1)  # the stream beside
    assert_it_serves(server)


@times
def test_frames_of_random_kinds(server, beside, count):
    chance = random.Random(3)
    for _ in range(count):
        with Connection(server.port) as connection:
            connection.send(b"".join(random_frame(chance) for _ in range(chance.randrange(1, 30))))
    until(lambda: server.running() <= 1)
    assert_it_serves(server)


def random_frame(chance):
    """A frame with any header; often of a kind, and on a stream, that there are."""
    kind = chance.choice([chance.randrange(10), chance.randrange(256)])
    stream = chance.choice([0, 1, 3, chance.getrandbits(31)])
    payload = chance.choice([headers(), chance.randbytes(chance.choice([0, 4, 5, 8, 300]))])
    return frame(kind, chance.getrandbits(8), stream, payload)


@pytest.mark.parametrize("path", [b"/gruve.v1.GenerationService/None", b"/xx/\xff\x8f", b"/", b"\xc3"])
def test_a_path_that_is_no_method_is_refused_and_the_server_goes_on(server, beside, path):
    logged = server.process.log
    with server.process.connect() as channel:
        calls = [channel.unary_unary(path).future(b"", timeout=PATIENCE_S) for _ in range(20)]
        assert {call.code() for call in calls} == {grpc.StatusCode.UNIMPLEMENTED}
        assert_it_serves(server)
    assert server.process.log == logged


def test_connections_that_say_nothing(server, beside):
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(200)]
    assert_it_serves(server)
    for connection in idle:
        connection.close()


def test_a_flood_of_pings_ends_its_own_connection_alone(server, beside):
    with Connection(server.port) as connection:
        for _ in range(20):
            connection.send(frame(PING, 0, 0, b"12345678") * 100)
    assert_it_serves(server)


def test_the_stream_beside_all_this_was_not_disturbed(server, beside):
    stream, tokens = beside
    while len(tokens) < 20:
        tokens += token(stream).token_ids
    assert tokens == read(server.generate(max_tokens=len(tokens), **SEEDED)).tokens


def resets(server, count):
    """Opens calls and resets them at once, on as few connections as the server puts up with."""
    done = 0
    while done < count:
        with Connection(server.port) as connection:
            stream = 1
            while done < count and connection.send(call(stream, REQUEST) + reset(stream)):
                stream, done = stream + 2, done + 1


@pytest.mark.parametrize("count", [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_rapid_resets_leave_memory_flat(server, count):
    assert_flat(server, lambda: resets(server, count))


def cancels(server, count):
    """Opens streams that would go on for long and leaves them, some after their first message."""
    streams = []
    for i in range(count):
        streams.append(server.generate(max_tokens=60_000, max_tokens_per_second=HELD))
        if i % 3 == 0:
            with contextlib.suppress(grpc.RpcError):  # gRPC cancels calls that come while too many others wait
                next(streams[-1])
        if len(streams) == 50:
            for stream in streams:
                stream.cancel()
            streams = []


@pytest.mark.parametrize("count", [300, pytest.param(6_000, marks=pytest.mark.slow)])
def test_a_storm_of_cancelled_streams_leaves_memory_flat(server, count):
    assert_flat(server, lambda: cancels(server, count))


def abandon(server, count):
    """Calls whose connection is gone before they are answered."""
    for _ in range(count):
        with Connection(server.port) as connection:
            connection.send(call(1, REQUEST))


@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.slow)])
def test_streams_that_are_abandoned_without_closing_leave_memory_flat(server, count):
    assert_flat(server, lambda: abandon(server, count))


def assert_flat(server, attack):
    sizes = [server.memory_bytes()]
    while len(sizes) < 3 or sizes[-1] - sizes[-2] >= FLAT_BYTES:
        assert len(sizes) <= REPETITIONS, f"every repetition takes more memory: {sizes} bytes"
        attack()
        assert_it_serves(server)
        sizes.append(server.memory_bytes())
    assert sizes[-1] - sizes[0] < GROWTH_BYTES
