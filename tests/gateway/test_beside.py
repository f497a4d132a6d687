"""`gruve serve --http-port`: a gateway that stands beside the server, and ends with it."""

from __future__ import annotations

import signal
import socket

import httpx
import pytest

from commands import gruve
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
