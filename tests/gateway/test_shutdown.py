"""A gateway that shuts down ends the streams that still run with an error, and logs none."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator

import httpx
import pytest
from connectrpc.client import ConnectClientSync
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_binary_codec
from connectrpc.errors import ConnectError

import gruve.gateway.server
from gruve.gateway.rpc import endpoints
from gruve.v1 import generation_pb2 as g
from http_gateway import RunningGateway
from serving import HELD, PATIENCE_S

HELD_STREAM = {"model": "tiny", "max_tokens_per_second": HELD, "max_tokens": 100}
GENERATE = endpoints(None)["/gruve.v1.GenerationService/Generate"].method


@pytest.fixture
def ending(server, monkeypatch, caplog) -> Iterator[RunningGateway]:
    """A gateway whose responses end at once when it is closed, and may take their time for it."""
    monkeypatch.setattr(gruve.gateway.server, "ENDING_S", PATIENCE_S)
    running = RunningGateway(server.address, drain_s=0.0)
    yield running
    running.close()
    assert errors([*caplog.get_records("call"), *caplog.records]) == []


def errors(records: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("/v1/generate", {}, "event: failed"),
        ("/v1/completions", {"stream": True}, ""),
        ("/v1/completions", {"stream": True, "n": 2}, ""),
    ],
    ids=["events", "completions", "two answers"],
)
def test_the_last_event_of_a_stream_is_the_error(ending, path, fields, name):
    with httpx.stream("POST", ending.url + path, json=HELD_STREAM | fields, timeout=PATIENCE_S) as answer:
        lines = answer.iter_lines()
        next(lines)
        ending.end()
        *_, head, last, _ = lines
    assert head == name
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "UNAVAILABLE"


def test_the_status_of_a_stream_of_connect_is_unavailable(ending):
    request = g.GenerateRequest(model="tiny", max_tokens_per_second=HELD, max_tokens=100)
    with ConnectClientSync(ending.url, codec=google_protobuf_binary_codec()) as client:
        responses = client.execute_server_stream(request=request, method=GENERATE)
        next(responses)
        ending.end()
        with pytest.raises(ConnectError) as caught:
            list(responses)
    assert (caught.value.code, caught.value.message) == (Code.UNAVAILABLE, "the gateway is shutting down; try again")


def test_a_request_whose_body_does_not_come_is_ended_too(server, monkeypatch, caplog):
    monkeypatch.setattr(gruve.gateway.server, "ENDING_S", 0.0)
    running = RunningGateway(server.address, drain_s=0.0, body_s=3_600.0)
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE_S) as waiting:
        waiting.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        assert waiting.recv(65_536).startswith(b"HTTP/1.1 100")
        running.close()
    assert not running.is_alive
    assert errors(caplog.records) == []
