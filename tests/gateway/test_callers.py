"""A caller's key and limits are passed on, the port may have TLS, and nothing is read ahead of a slow reader."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl

import httpx
import pytest

from certificates import Authority
from commands import started
from gruve.cli import main
from gruve.client import Tls
from gruve.gateway.sse import EventResponse, event
from gruve.ports import TlsFiles
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from gruve.serve.callers.identity import Limits
from http_gateway import RunningGateway
from serving import PATIENCE_S

COMPLETIONS = "/v1/completions"
TINY = {"model": "tiny", "prompt": "ROMEO:\n", "seed": 7, "max_tokens": 5}


def test_the_key_of_each_caller_is_passed_on_over_tls_and_kept_for_no_other(start, tmp_path):
    authority = Authority(tmp_path)
    keys = tmp_path / "keys.json"
    ann, bob = (add_key(keys, name, name) for name in ("ann", "bob"))
    server = start(access=AccessConfig(keys=keys), tls=TlsFiles(*authority.issue("server")))
    gateway = RunningGateway(server.address, credentials=Tls(authority.ca))

    def post(key: str, **more):
        return gateway.http.post(COMPLETIONS, json={**TINY, **more}, headers={"authorization": f"Bearer {key}"})

    session = post(ann, new_session=True).json()["choices"][0]["gruve"]["session_id"]
    assert post(ann, session_id=session).status_code == 200
    assert post(bob, session_id=session).json()["error"]["code"] == "SESSION_UNKNOWN"
    for value in (b"", b"Bearer gruve_wrong", b"Bearer gruve_\xe9"):
        refused = gateway.http.post(COMPLETIONS, json=TINY, headers={b"authorization": value})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json()["error"]["type"] == "authentication_error"
    assert gateway.http.get("/health").status_code == 200
    gateway.close()


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/generate"])
def test_a_tenant_beyond_its_limit_is_told_when_to_come_back(start, tmp_path, path):
    keys = tmp_path / "keys.json"
    key = add_key(keys, "ann", "ann", limits=Limits(requests_per_minute=1))
    gateway = RunningGateway(start(access=AccessConfig(keys=keys)).address)
    first, second = (gateway.http.post(path, json=TINY, headers={"authorization": f"Bearer {key}"}) for _ in range(2))
    gateway.close()
    assert (first.status_code, second.status_code) == (200, 429)
    assert second.json()["error"]["code"] == "LIMIT_EXCEEDED"
    assert 1 <= int(second.headers["retry-after"]) <= 60


def test_the_command_serves_https_to_those_who_trust_its_certificate(server, tmp_path):
    authority = Authority(tmp_path)
    cert, key = authority.issue("gateway")
    flags = ("--address", server.address, "--port", "0", "--tls-cert", str(cert), "--tls-key", str(key))
    with started("gateway", *flags) as process:
        address = f"localhost:{json.loads(process.stdout.readline())['port']}"
        with httpx.Client(
            base_url=f"https://{address}", verify=ssl.create_default_context(cafile=authority.ca)
        ) as https:
            answer = https.post(COMPLETIONS, json={**TINY, "stream": True})
        assert answer.text.endswith("data: [DONE]\n\n")
        for url in (f"https://{address}/health", f"http://{address}/health"):
            with pytest.raises(httpx.TransportError):
                httpx.get(url)


def test_the_command_warns_of_a_certificate_that_expires_soon_and_uses_a_new_one(tmp_path):
    authority = Authority(tmp_path)
    cert, key = authority.issue("gateway", days=6)
    context = ssl.create_default_context(cafile=authority.ca)
    context.load_cert_chain(*authority.issue("caller"))

    def expiry(port: int) -> float:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.recv(4) == b"HTTP"  # a client without a certificate hears of it only here
            return ssl.cert_time_to_seconds(connection.getpeercert()["notAfter"])

    flags = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(authority.ca))
    with started("gateway", "--port", "0", *flags) as process:
        warned = json.loads(process.stderr.readline())
        assert (warned["message"], warned["file"]) == ("the certificate expires soon", str(cert))
        port = json.loads(process.stdout.readline())["port"]
        before = expiry(port)
        authority.issue("gateway", days=20)
        assert expiry(port) - before == pytest.approx(14 * 86_400, abs=60)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"https://localhost:{port}/", verify=ssl.create_default_context(cafile=authority.ca))


@pytest.mark.parametrize("cert", ["absent.pem", "empty.pem"])
def test_a_certificate_of_the_http_port_that_cannot_be_used_is_named(tmp_path, cert, caplog, monkeypatch):
    monkeypatch.setattr("gruve.cli.commands.gateway.log_to_standard_error", lambda _: None)
    _, key = Authority(tmp_path).issue("gateway")
    (tmp_path / "empty.pem").touch()
    assert main(["gateway", "--port", "0", "--tls-cert", str(tmp_path / cert), "--tls-key", str(key)]) == 1
    assert caplog.messages[-1].startswith(f"{str(tmp_path / cert)!r} ")


async def test_a_reader_that_stops_reading_is_not_read_ahead_of_and_its_source_ends_with_it():
    produced, closed = [], []

    async def events():
        try:
            for number in range(1_000):
                produced.append(number)
                yield event(number)
        finally:
            closed.append(True)

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # as a socket whose buffer is full

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    gone = asyncio.Event()
    sending = asyncio.create_task(EventResponse(events())({"type": "http"}, receive, send))
    for _ in range(100):
        await asyncio.sleep(0)
    assert (produced, closed) == ([0], [])
    gone.set()
    await sending
    assert (produced, closed) == ([0], [True])
