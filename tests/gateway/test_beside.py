"""`gruve serve --http-port`: a gateway that stands beside the server, and ends with it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket

import httpx
import pytest

from commands import gruve
from gruve.cli.commands.serve import _tell
from gruve.serve.server import Serving
from server_process import Process
from serving import PATIENCE_S, until


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_http_is_served_beside_grpc_and_ends_with_the_server(tiny_repository):
    with Process(tiny_repository, "--http-port", "0", "--log-level", "warning") as server:
        port = server.line["http_port"]
        body = {"model": "tiny", "prompt": "ROMEO:", "max_tokens": 5, "seed": 1}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=PATIENCE_S)
        server.signal(signal.SIGTERM)
        code, _, log = server.end()
        assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 5)
        assert (code, is_open(port)) == (0, False), log
        assert "uvicorn" not in log  # what it says at `info`


async def test_the_server_answers_while_the_gateway_starts(capsys):
    class Beside:
        def start(self, grpc_port):
            call = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "answered"), loop)
            assert call.result(PATIENCE_S) == "answered"  # of the event loop that serves
            return grpc_port + 1

    loop = asyncio.get_running_loop()
    await _tell(Serving(port=1, metrics_port=3, models=("tiny",), broken=()), Beside())
    assert json.loads(capsys.readouterr().out)["http_port"] == 2


def test_sigterm_ends_a_server_whose_gateway_still_starts(tiny_repository):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Process(tiny_repository, "--http-port", "0", "--port", str(port)) as server:
        until(lambda: is_open(port))
        server.signal(signal.SIGTERM)
        code, out, log = server.end()
    assert (code, out) == (0, ""), log  # no line of readiness
    assert {json.loads(line)["level"] for line in log.splitlines()} == {"info"}


@pytest.mark.slow
def test_http_ends_with_a_server_that_is_killed(tiny_repository):
    with Process(tiny_repository, "--http-port", "0") as server:
        port = server.line["http_port"]
        server.signal(signal.SIGKILL)
        until(lambda: not is_open(port))


@pytest.mark.slow
def test_a_port_that_is_taken_ends_the_server_with_the_reason(tiny_repository):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = gruve(
            "serve", "--models", str(tiny_repository), "--port", "0", "--metrics-port", "0", "--http-port", port
        )
    assert ran.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ran.stderr
    assert f"HTTP cannot be served on 127.0.0.1:{port}" in ran.stderr
