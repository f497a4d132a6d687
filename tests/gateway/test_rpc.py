"""Connect and gRPC-Web through the gateway: the server's own messages, statuses and details, in all four forms."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import math
import socket
import threading
from types import SimpleNamespace

import grpc
import httpx
import pytest
from connectrpc.client import ConnectClientSync, ResponseMetadata
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import StreamType
from connectrpc.protocol import ProtocolType
from google.rpc import error_details_pb2

from conversing import LONG, PROMPT, SEED, START, R, alone
from gruve.bench.chaos.replicas import free_port
from gruve.gateway.config import GatewayConfig
from gruve.gateway.rpc import NOT_SENT, SERVICES, Servers, endpoints
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from gruve.serve.callers.identity import Limits
from gruve.v1 import generation_pb2 as g
from gruve.v1 import model_pb2
from http_gateway import gateway_url
from serving import HELD, PATIENCE_S, until

METHODS = {path.rpartition("/")[2]: endpoint.method for path, endpoint in endpoints(None).items()}
FORMS = {
    "connect binary": (ProtocolType.CONNECT, google_protobuf_binary_codec()),
    "connect json": (ProtocolType.CONNECT, google_protobuf_json_codec()),
    "grpc-web binary": (ProtocolType.GRPC_WEB, google_protobuf_binary_codec()),
    "grpc-web json": (ProtocolType.GRPC_WEB, google_protobuf_json_codec()),
}
REQUEST = {"model": "tiny", "text": PROMPT, "sampling": SEED, "max_tokens": 40}


@pytest.fixture(scope="module")
def url(server):
    with gateway_url(server.address, allowed_origins=("https://example.com",), max_body_bytes=4_096, body_s=0.3) as url:
        yield url


class Calls:
    """Calls in one form."""

    def __init__(self, url, form="connect binary", key=None):
        protocol, codec = FORMS[form]
        self._client = ConnectClientSync(url, protocol=protocol, codec=codec, timeout_ms=20_000)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def unary(self, method, request):
        return self._client.execute_unary(request=request, method=METHODS[method], headers=self._headers)

    def stream(self, method, request):
        return self._client.execute_server_stream(request=request, method=METHODS[method], headers=self._headers)

    def refused(self, method, request):
        call = self.unary if METHODS[method].stream_type is StreamType.UNARY else self.stream
        with pytest.raises(ConnectError) as caught:
            list(call(method, request))
        return caught.value


@pytest.fixture(params=FORMS)
def calls(url, request):
    return Calls(url, request.param)


def details(error, kind):
    """The details of a kind in an error."""
    return [
        kind.FromString(each.message_bytes) for each in error.details if each.type_name == kind.DESCRIPTOR.full_name
    ]


def test_every_method_of_every_service_is_there_but_the_one_that_reads_a_stream():
    every = {f"/{service.full_name}/{method.name}" for service in SERVICES.values() for method in service.methods}
    assert every - set(endpoints(None)) == {"/gruve.v1.GenerationService/Converse"}


def test_a_call_with_one_answer_answers_as_the_server_does(server, calls):
    request = model_pb2.GetModelRequest(name="tiny")
    assert calls.unary("GetModel", request) == server.models.GetModel(request)


def test_a_stream_has_the_servers_tokens_and_its_receipt(server, calls):
    responses = list(calls.stream("Generate", g.GenerateRequest(**REQUEST)))
    direct = alone(server)
    assert [token for response in responses for token in response.token_ids] == direct.tokens
    assert "".join(response.text for response in responses) == direct.text
    assert responses[-1].end.receipt == direct.end.receipt


def test_a_stream_is_steered_by_control(server, calls):
    start = g.StartConversationRequest(generate=g.GenerateRequest(**REQUEST), credit=5)
    responses = calls.stream("StartConversation", start)
    began = next(responses).tokens.start

    def control(**fields):
        request = g.ControlRequest(generation_id=began.generation_id, control=R(**fields))
        return calls.unary("Control", request).applied.position

    assert control(pause={}) >= START
    assert control(rewind={"to_position": START}) == START
    assert control(resume={}) == START
    control(grant={"tokens": 100})
    tokens = {}
    for response in responses:
        tokens |= dict(enumerate(response.tokens.token_ids, response.tokens.position))
    assert list(tokens.values()) == alone(server).tokens


@pytest.mark.parametrize("method", ["Generate", "Score"])
def test_an_error_keeps_its_status_message_and_details(calls, method):
    request = {"Generate": g.GenerateRequest(**REQUEST | {"max_tokens": 70_000}), "Score": g.ScoreRequest(model="tiny")}
    error = calls.refused(method, request[method])
    assert error.code is Code.INVALID_ARGUMENT
    (info,), (bad,) = details(error, error_details_pb2.ErrorInfo), details(error, error_details_pb2.BadRequest)
    assert (info.reason, info.domain) == ("INVALID_FIELD", "gruve")
    assert bad.field_violations[0].field == {"Generate": "max_tokens", "Score": "content"}[method]
    assert {"Generate": "70000 is not between 1 and 65536", "Score": "content: absent"}[method] in error.message


def test_an_error_after_tokens_ends_the_stream_with_its_reason(calls, start):
    server = start()
    with gateway_url(server.address) as url:
        calls = Calls(url, "connect json")
        fields = REQUEST | {"max_tokens": LONG, "max_tokens_per_second": 50}
        responses = calls.stream("Generate", g.GenerateRequest(**fields))
        next(responses)
        server.close()
        with pytest.raises(ConnectError) as caught:
            list(responses)
    assert caught.value.code is Code.UNAVAILABLE
    assert [info.reason for info in details(caught.value, error_details_pb2.ErrorInfo)] == ["HANDED_OVER"]


def test_a_client_that_leaves_cancels_its_generation(server, url):
    fields = {"model": "tiny", "text": PROMPT, "maxTokens": LONG, "maxTokensPerSecond": HELD}
    with httpx.stream(
        "POST", f"{url}/gruve.v1.GenerationService/Generate", **enveloped(fields), timeout=PATIENCE_S
    ) as response:
        received = response.iter_bytes()  # dropped, it would close the response
        next(received)
        until(lambda: server.host("tiny").engine.load == 1)
    until(lambda: server.host("tiny").engine.load == 0)


def enveloped(fields):
    body = httpx.Request("POST", "http://x", json=fields).read()
    return {
        "content": b"\0" + len(body).to_bytes(4, "big") + body,
        "headers": {"content-type": "application/connect+json"},
    }


def test_the_callers_key_is_passed_on_and_no_other(start, tmp_path):
    keys = tmp_path / "keys.json"
    key = add_key(keys, "ann", "ann")
    with gateway_url(start(access=AccessConfig(keys=keys)).address) as url:
        assert Calls(url, key=key).unary("ListModels", model_pb2.ListModelsRequest()).models
        for wrong in (None, key + "x"):
            error = Calls(url, key=wrong).refused("ListModels", model_pb2.ListModelsRequest())
            assert error.code is Code.UNAUTHENTICATED


def test_a_tenant_beyond_its_limit_is_told_when_to_come_back_in_every_form(start, tmp_path):
    keys = tmp_path / "keys.json"
    key = add_key(keys, "ann", "ann", limits=Limits(requests_per_minute=1))
    requests = {"Generate": g.GenerateRequest(**REQUEST), "Score": g.ScoreRequest(model="tiny", text=PROMPT)}
    with gateway_url(start(access=AccessConfig(keys=keys)).address) as url:
        list(Calls(url, key=key).stream("Generate", requests["Generate"]))
        for form, method in itertools.product(FORMS, requests):
            with ResponseMetadata() as answer:
                error = Calls(url, form, key).refused(method, requests[method])
            assert error.code is Code.RESOURCE_EXHAUSTED
            assert len(details(error, error_details_pb2.RetryInfo)) == 1
            assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_a_deadline_reaches_the_server(url):
    client = ConnectClientSync(url, codec=google_protobuf_binary_codec(), timeout_ms=300)
    fields = REQUEST | {"max_tokens": LONG, "max_tokens_per_second": 20}
    with pytest.raises(ConnectError) as caught:
        list(client.execute_server_stream(request=g.GenerateRequest(**fields), method=METHODS["Generate"]))
    assert caught.value.code is Code.DEADLINE_EXCEEDED


# ---- what is no request


CONTROL = "/gruve.v1.GenerationService/Control"
JSON = {"content-type": "application/json"}
REFUSED = {
    "malformed JSON": (JSON, b'{"generationId":', 400, "invalid_argument", "unmarshal"),
    "a wrong type": (JSON, b'{"generationId":[1]}', 400, "invalid_argument", "generationId"),
    "a field that there is not": (JSON, b'{"generation":"x"}', 400, "invalid_argument", 'no field named "generation"'),
    "invalid UTF-8": (JSON, b'{"generationId":"\xff"}', 400, "invalid_argument", "utf-8"),
    "a large body": (JSON, b" " * 4_096 + b"{}", 429, "resource_exhausted", "4098 bytes; the gateway takes 4096"),
    "a bomb": (
        JSON | {"content-encoding": "gzip"},
        gzip.compress(b" " * (1 << 20)),
        429,
        "resource_exhausted",
        "4096",
    ),
    "malformed bytes": ({"content-type": "application/proto"}, b"\xff\xff", 400, "invalid_argument", "unmarshal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_request_is_refused_in_connects_form(url, case):
    headers, body, status, code, why = REFUSED[case]
    response = httpx.post(url + CONTROL, content=body, headers=headers, timeout=PATIENCE_S)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert why in response.json()["message"]


def test_a_slow_body_is_refused(url):
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as slow:
        head = (
            f"POST {CONTROL} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{{"
        )
        slow.sendall(head.encode())
        answer = b"".join(iter(lambda: slow.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"did not arrive within 0.3 s" in answer


@pytest.mark.parametrize(
    ("content_type", "path", "status"),
    [
        ("application/grpc", CONTROL, 415),
        ("text/plain", CONTROL, 415),
        ("application/json", "/gruve.v1.GenerationService/Converse", 404),
        ("application/json", "/gruve.v1.Other/Control", 404),
    ],
)
def test_a_form_or_a_method_that_there_is_not_is_refused(url, content_type, path, status):
    response = httpx.post(url + path, content=b"", headers={"content-type": content_type}, timeout=PATIENCE_S)
    assert response.status_code == status


# ---- pages of other origins


PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type,connect-timeout-ms",
}


def test_a_page_of_a_listed_origin_may_call_and_read_the_answer(url):
    origin = {"origin": "https://example.com"}
    asked = httpx.options(url + CONTROL, headers=origin | PREFLIGHT)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] in ("https://example.com", "*")
    assert "connect-timeout-ms" in asked.headers["access-control-allow-headers"].lower()
    answered = httpx.post(f"{url}/gruve.v1.ModelService/ListModels", json={}, headers=origin, timeout=PATIENCE_S)
    assert answered.json()["models"]
    assert answered.headers["access-control-allow-origin"] in ("https://example.com", "*")


@pytest.mark.parametrize("origin", ["https://example.org", "null", "http://localhost:1"])
def test_a_page_of_another_origin_is_refused(url, origin):
    assert httpx.options(url + CONTROL, headers={"origin": origin} | PREFLIGHT).status_code in (400, 403)
    refused = httpx.post(
        f"{url}/gruve.v1.ModelService/ListModels", json={}, headers={"origin": origin}, timeout=PATIENCE_S
    )
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers


# ---- several servers


def test_a_server_that_is_gone_costs_a_caller_nothing(server):
    with gateway_url(f"127.0.0.1:{free_port()}", server.address) as url:
        assert Calls(url).unary("GetModel", model_pb2.GetModelRequest(name="tiny")).model.name == "tiny"
        assert list(Calls(url).stream("Generate", g.GenerateRequest(**REQUEST)))[-1].end.usage.generated_tokens == 40


def test_a_control_finds_the_server_that_streams_the_generation(start):
    idle, streaming = start(), start()
    with gateway_url(streaming.address) as began, gateway_url(idle.address, streaming.address) as url:
        fields = REQUEST | {"max_tokens": LONG, "max_tokens_per_second": HELD}
        responses = Calls(began).stream(
            "StartConversation", g.StartConversationRequest(generate=g.GenerateRequest(**fields))
        )
        id_ = next(responses).tokens.start.generation_id
        threading.Thread(target=lambda: list(responses), daemon=True).start()
        request = g.ControlRequest(generation_id=id_, control=R(stop={}))
        assert Calls(url).unary("Control", request).applied.position >= START


@pytest.mark.parametrize("route", ["connect", "http"])
def test_no_server_is_an_answer_that_names_no_address_and_the_log_says_once_why(route, monkeypatch, caplog):
    monkeypatch.setattr("gruve.gateway.errors._Lost.logged_s", -math.inf)
    port = free_port()
    with gateway_url(f"127.0.0.1:{port}") as url:
        for _ in range(2):
            if route == "connect":
                error = Calls(url).refused("ListModels", model_pb2.ListModelsRequest())
                assert (error.code, error.message) == (Code.UNAVAILABLE, "no server answers the gateway; try again")
            else:
                answer = httpx.get(f"{url}/health", timeout=PATIENCE_S)
                assert (answer.status_code, str(port) in answer.text) == (503, False)
    (said,) = [record for record in caplog.records if record.message == "no server answers"]
    assert f"127.0.0.1:{port}" in said.why
    assert "Connection refused" in said.why


LOST = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), NOT_SENT)


class FakeServers(Servers):
    """Servers of which the first one fails every call, as soon as `calls` of them have reached it."""

    def __init__(self, calls, addresses=("one:1", "two:2")):
        super().__init__(GatewayConfig(servers=addresses))
        self.lost, arrived, all_arrived = [], itertools.count(1), asyncio.Event()

        async def call(index):
            if index > 0:
                return index
            if next(arrived) == calls:
                all_arrived.set()
            await all_arrived.wait()
            raise LOST

        self._connections.stubs = lambda index: SimpleNamespace(
            models=SimpleNamespace(Call=lambda *_, **__: call(index))
        )
        self._connections.lost = self.lost.append

    async def call(self):
        return await self.unary("models", "Call", None, SimpleNamespace(timeout_ms=None, response_headers={}))


async def test_calls_that_fail_at_the_same_time_all_go_on_to_the_next_server():
    servers = FakeServers(4)
    assert await asyncio.gather(*(servers.call() for _ in range(4))) == [1] * 4


async def test_the_only_server_is_connected_to_anew_after_a_lost_connection():
    servers = FakeServers(1, ("one:1",))
    with pytest.raises(ConnectError, match="no server answers"):
        await servers.call()
    assert servers.lost == [0]
