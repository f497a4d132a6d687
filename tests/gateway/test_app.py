"""What all routes of a gateway share: the command, health, models, and requests that are refused at little cost."""

from __future__ import annotations

import contextlib
import json
import select
import shlex
import shutil
import signal
import socket
from pathlib import Path

import httpx
import pytest

from commands import gruve, started
from gruve.gateway.server import listen
from http_gateway import RunningGateway, gateway_url
from serving import HELD, PATIENCE_S, until

FOLK = Path(__file__).parents[2] / "models" / "folk"


def answered(port: int, request: bytes, timeout_s: float = 30.0) -> bytes:
    """All that comes back for bytes on a connection, until it is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_the_command_serves_until_a_signal(server):
    with started("gateway", "--address", server.address, "--port", "0") as process:
        line = json.loads(process.stdout.readline())
        answer = answered(line["port"], b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        process.send_signal(signal.SIGTERM)
        assert (line["event"], process.wait(30), b'{"status":"ok"}' in answer) == ("serving", 0, True)


def test_the_request_in_the_help_begins_a_tune(start, tmp_path):
    shutil.copytree(FOLK, tmp_path / "folk")
    (example,) = (line for line in gruve("gateway", "--help").stdout.splitlines() if line.startswith("  curl "))
    *_, body = shlex.split(example)
    with gateway_url(start(models=tmp_path).address) as url:
        answer = httpx.post(f"{url}/v1/completions", json=json.loads(body) | {"seed": 7}, timeout=PATIENCE_S)
    assert answer.json()["choices"][0]["text"].startswith("K:")


def test_the_command_listens_to_other_machines_only_with_tls_or_insecure():
    ran = gruve("gateway", "--host", "0.0.0.0")
    assert ran.returncode == 2
    assert "'0.0.0.0', which other machines reach, and the port has no TLS" in ran.stderr


def test_a_port_that_is_taken_is_one_line_of_the_log(gateway):
    ran = gruve("gateway", "--port", str(gateway.port))
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    line = json.loads(ran.stderr)
    assert line["level"] == "critical"
    why = f"port {gateway.port} is in use; give another port, or 0 for any free one"
    assert line["message"] == f"cannot listen on 127.0.0.1:{gateway.port}: {why}"


def test_a_chunk_is_sent_without_waiting_for_the_receipt_of_the_one_before():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_models_are_listed_in_the_form_of_openai(gateway):
    listed = gateway.http.get("/v1/models").json()
    names = [model["id"] for model in listed["data"]]
    assert listed["object"] == "list"
    assert "tiny" in names
    assert "truncated" not in names
    one = gateway.http.get("/v1/models/tiny").json()
    assert one == next(model for model in listed["data"] if model["id"] == "tiny")
    assert len(one["gruve"]["digest"]) == 64
    missing = gateway.http.get("/v1/models/none")
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "model")


@pytest.mark.parametrize("form", ["tiny@0", "tiny@sha256:{}"], ids=["number", "digest"])
def test_a_version_has_the_same_name_on_every_route(gateway, form):
    digest = gateway.http.get("/v1/models/tiny").json()["gruve"]["digest"]
    name = form.format(digest[:16])
    about = gateway.http.get(f"/v1/models/{name}").json()
    assert (about["id"], about["gruve"]["digest"]) == (name, digest)
    assert gateway.http.get("/tokenizer_info", params={"model": name}).json()["model"] == name
    tokens = gateway.post("/tokenize", model=name, prompt="RO", return_token_strs=True).json()
    assert tokens["token_strs"] == ["R", "O"]
    assert gateway.post("/detokenize", model=name, tokens=tokens["tokens"]).json() == {"prompt": "RO"}
    assert gateway.post("/v1/completions", model=name, max_tokens=1).json()["model"] == name


MODEL_ROUTES = [
    ("GET", "/v1/models/{}", {}),
    ("GET", "/tokenizer_info?model={}", {}),
    ("POST", "/tokenize", {"prompt": "RO"}),
    ("POST", "/detokenize", {"tokens": [5]}),
    ("POST", "/v1/completions", {"prompt": "RO"}),
]


@pytest.mark.parametrize(("name", "status"), [("none", 404), ("tiny@7", 404), ("truncated", 400)])
def test_a_name_that_means_no_usable_model_is_refused_alike_on_every_route(gateway, name, status):
    refusals = []
    for method, path, body in MODEL_ROUTES:
        content = json.dumps({"model": name, **body}) if body else None
        answer = gateway.http.request(method, path.format(name), content=content)
        refusals.append((answer.status_code, answer.json()["error"]["param"], answer.json()["error"]["message"]))
    assert refusals == [(status, "model", refusals[0][2])] * len(MODEL_ROUTES)


def test_health_says_whether_a_server_answers():
    alone = RunningGateway("127.0.0.1:1")
    answer = alone.http.get("/health")
    alone.close()
    assert answer.status_code in (503, 504)
    assert answer.json()["error"]["type"] == "server_error"


def test_chat_and_unknown_paths_say_what_there_is(gateway):
    chat = gateway.post("/v1/chat/completions", model="tiny", messages=[])
    assert (chat.status_code, chat.json()["error"]["code"]) == (404, "NO_CHAT")
    assert "/v1/completions" in chat.json()["error"]["message"]
    assert gateway.http.get("/nothing").json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", "http://gateway.example:80"])
def test_a_page_of_an_unknown_origin_is_refused(gateway, origin):
    answer = gateway.http.get("/v1/models", headers={"Origin": origin, "Host": "gateway.example:80"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "ORIGIN_REFUSED")


def test_a_page_of_a_listed_origin_and_the_gateways_own_may_call(server, gateway):
    assert gateway.http.get("/v1/models", headers={"Origin": gateway.url}).status_code == 200
    other = RunningGateway(server.address, allowed_origins=("https://page.example",))
    answer = other.http.get("/v1/models", headers={"Origin": "https://page.example"})
    other.close()
    assert answer.headers["access-control-allow-origin"] == "https://page.example"


def posted(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /v1/completions HTTP/1.1", b"Host: x", b"Content-Type: application/json", *headers]
    return b"\r\n".join((*lines, b"", body))


MALFORMED = {
    "cut": b'{"model": "tiny"',
    "list": b"[1, 2]",
    "empty": b"",
    "NaN": b'{"model": "tiny", "temperature": NaN}',
    "no UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "tiny"}'.encode("utf-16"),
    "deep": b"[" * 500_000,
    "deep objects": b'{"a":' * 150_000,
    "long number": b'{"max_tokens": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_body_is_refused_in_openais_form(gateway, body):
    answer = gateway.http.post("/v1/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "REQUEST_MALFORMED")


def test_a_body_that_is_announced_as_too_large_is_refused_unread(gateway):
    answer = answered(gateway.port, posted(b"", b"Content-Length: 9000000000"))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"9000000000 bytes" in answer


def test_a_body_that_grows_too_large_is_refused_on_the_way(server):
    small = RunningGateway(server.address, max_body_bytes=100)
    answer = answered(small.port, posted(b"78\r\n" + b" " * 120 + b"\r\n", b"Transfer-Encoding: chunked"))
    small.close()
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"code":"BODY_TOO_LARGE"' in answer


@pytest.fixture(scope="module")
def impatient(server):
    """The address of a gateway that does not wait. A connection may be closed before its test has sent anything."""
    with gateway_url(server.address, head_s=0.3) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


def test_a_head_that_is_slow_is_refused(impatient):
    def answer():
        with contextlib.suppress(OSError):
            return answered(impatient[1], b"GET /health HTTP/1.1\r\nHost:")
        return b""

    until(lambda: (found := answer()).startswith(b"HTTP/1.1 408") and b'"code":"HEAD_TOO_SLOW"' in found)


def test_a_silent_connection_is_closed(impatient):
    assert answered(impatient[1], b"") == b""


def test_a_body_that_nobody_reads_does_not_keep_a_connection_open(impatient):
    def was_closed():
        answer = b""
        with socket.create_connection(impatient, timeout=PATIENCE_S) as endless, contextlib.suppress(OSError):
            endless.sendall(b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
            answer = endless.recv(65_536)
            while not select.select([endless], [], [], 0.02)[0]:
                endless.sendall(b" ")  # each of these would lengthen uvicorn's own wait
        return answer.startswith(b"HTTP/1.1 404")

    until(was_closed)


def test_requests_on_more_connections_than_allowed_are_refused(server):
    held = {"model": "tiny", "max_tokens_per_second": HELD, "max_tokens": 100}
    with gateway_url(server.address, max_connections=1) as url:
        with httpx.stream("POST", f"{url}/v1/generate", json=held, timeout=PATIENCE_S) as answer:
            received = answer.iter_bytes()  # dropped, it would close the response
            next(received)
            refused = httpx.get(f"{url}/health", timeout=PATIENCE_S)
        until(lambda: httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code == 200)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["code"] == "TOO_MANY_CONNECTIONS"


def test_a_body_that_is_slow_is_refused(server):
    slow = RunningGateway(server.address, body_s=0.2)
    answer = answered(slow.port, posted(b'{"model": ', b"Content-Length: 100"))
    slow.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code":"BODY_TOO_SLOW"' in answer
