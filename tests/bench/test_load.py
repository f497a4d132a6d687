"""The load generator with a transport that answers at once, and the transports with scripted servers."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator

import pytest

from gruve.bench.figures import MS, Record, S
from gruve.bench.load.generator import ClosedLoop, OpenLoop, Run, Share, Workload, _play, poisson, sample
from gruve.bench.load.transport import HttpTransport, Message, Refused, Request, TritonTransport, _infer_request
from gruve.bench.load.window import Window

WORK = Workload("m", vocabulary_size=10, prompt_tokens=2, min_length=3, max_length=5, turns=2)


class Answering:
    """Answers every request with the requested number of tokens, one per message, and keeps the requests."""

    def __init__(self, refuse: bool = False) -> None:
        self.asked: list[Request] = []
        self.deleted: list[str] = []
        self._refuse = refuse

    async def stream(self, request: Request) -> AsyncIterator[bytes]:
        self.asked.append(request)
        await asyncio.sleep(0)
        if self._refuse:
            raise Refused("RESOURCE_EXHAUSTED")
        for token in range(request.max_tokens):
            yield bytes([token])

    def read(self, raw: bytes) -> Message:
        return Message(tuple(raw), "session")

    async def delete_session(self, session: str) -> None:
        self.deleted.append(session)


def play(transport: Answering, run: Run, work: Workload = WORK):
    return asyncio.run(_play(transport, Share(work, run, 0, 1)))


def closed(sessions: int, seconds: float) -> ClosedLoop:
    begin = time.monotonic_ns()
    return ClosedLoop(sessions, begin, begin + int(seconds * S))


def test_a_closed_loop_asks_again_when_it_was_answered_and_takes_turns_in_a_session():
    transport = Answering()
    records = play(transport, closed(2, 0.5))
    assert len(records) > 4
    assert not any(record.failed for record in records)
    assert {request.session for request in transport.asked} == {"", "session"}
    assert all(request.keep for request in transport.asked)


def test_a_later_turn_remembers_everything_before_it():
    first, second, *_ = play(Answering(), closed(1, 0.3))
    assert second.prompt[: len(first.prompt) + len(first.tokens)] == first.prompt + first.tokens
    assert len(second.prompt) == len(first.prompt) + len(first.tokens) + WORK.prompt_tokens


def test_lengths_and_prompts_come_from_the_seed():
    once, again = ([(a.prompt, a.max_tokens) for a in t.asked[:2]] for t in _two_runs())
    assert once == again


def _two_runs() -> list[Answering]:
    transports = [Answering(), Answering()]
    for transport in transports:
        play(transport, closed(1, 0.2))
    return transports


def test_a_refusal_is_recorded_and_not_asked_again_in_that_session():
    begin = time.monotonic_ns()
    records = play(Answering(refuse=True), OpenLoop((begin, begin)))
    assert [record.failed for record in records] == ["RESOURCE_EXHAUSTED"] * 2


def test_an_open_loop_keeps_its_schedule_whatever_the_server_does():
    begin = time.monotonic_ns()
    arrivals = tuple(begin + i * S // 200 for i in range(5))
    records = play(Answering(), OpenLoop(arrivals))
    assert tuple(record.scheduled_ns for record in records) == arrivals
    assert all(record.sent_ns >= record.scheduled_ns for record in records)


def test_arrivals_are_poisson_in_number_and_the_same_for_a_seed():
    arrivals = poisson(100.0, 0, 60 * S, seed=3)
    assert arrivals == poisson(100.0, 0, 60 * S, seed=3)
    assert arrivals == tuple(sorted(arrivals))
    assert 5_600 < len(arrivals) < 6_400  # 6,000 and five standard deviations


def test_a_window_has_the_tokens_that_arrived_in_it_and_the_first_tokens_of_what_began_in_it():
    before = Record(0, 0, (1 * S, 3 * S), (5, 7))
    inside = Record(2 * S, 2 * S, (2 * S + 4 * MS, 9 * S), (2, 100))
    found = Window(0, 2 * S, 4 * S).figures([before, inside])
    assert (found.requests, found.tokens_per_s, found.ttft_ms_p50) == (1, 4.5, 4.0)


def test_a_sample_stays_within_its_tokens():
    records = play(Answering(), closed(1, 0.05))
    chosen = list(sample(records, 40))
    assert chosen
    assert sum(len(r.prompt) + len(r.tokens) for r in chosen) <= 40


async def test_http_answers_are_read_chunk_by_chunk_and_connections_kept():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b'"max_tokens": 2}')
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n5\n\r\n4\r\n6\n7\n\r\n0\r\n\r\n")
        writer.close()

    connections = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answer(reader, writer)

    async with await asyncio.start_server(count, "127.0.0.1", 0) as server:
        transport = HttpTransport(*server.sockets[0].getsockname(), "/", _body, _ints)
        for _ in range(2):
            chunks = [transport.read(raw).tokens async for raw in transport.stream(Request("m", (1,), 2, 0))]
            assert chunks == [(5,), (6, 7)]
        await transport.close()
    assert connections == 1


async def test_a_connection_that_the_server_has_closed_is_not_used_again():
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n5\n\r\n0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer_once, "127.0.0.1", 0) as server:
        transport = HttpTransport(*server.sockets[0].getsockname(), "/", _body, _ints)
        for _ in range(2):
            assert [raw async for raw in transport.stream(Request("m", (1,), 2, 0))] == [b"5\n"]
            (reader, _), *_ = transport._idle
            assert await reader.read() == b""
        await transport.close()


async def test_an_http_error_is_a_refusal():
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        transport = HttpTransport(*server.sockets[0].getsockname(), "/", _body, _ints)
        with pytest.raises(Refused, match="503"):
            await anext(transport.stream(Request("m", (1,), 2, 0)))


def _body(request: Request) -> bytes:
    return json.dumps({"prompt": request.prompt, "max_tokens": request.max_tokens}).encode()


def _ints(chunk: bytes) -> tuple[int, ...]:
    return tuple(map(int, chunk.split()))


def test_a_triton_request_holds_its_tensors_and_a_response_its_token():
    request = _infer_request(Request("gruve", (5, 300), 64, 0))
    assert request.startswith(b"\x0a\x05gruve")
    assert b"\x0a\x06prompt\x12\x05INT32\x1a\x02\x01\x02" in request  # name, type, shape [1, 2] packed
    assert struct.pack("<ii", 5, 300) in request
    response = b"\x12\x40...\x32\x04" + struct.pack("<i", 97)
    assert TritonTransport("").read(response) == Message((97,))
