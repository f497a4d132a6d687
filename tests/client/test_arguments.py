"""The arguments of the clients' methods: their names, and values that are refused without a call."""

from __future__ import annotations

import inspect
import pydoc

import grpc
import pytest

from fake_server import FakeServer
from gruve.client import (
    AsyncClient,
    AsyncConversation,
    CallFailed,
    Client,
    Conversation,
    GenerateOptions,
    InvalidRequest,
    SamplingOptions,
)


@pytest.fixture
def server():
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("seed", -1, f"a whole number from 0 to {2**64 - 1}"),
        ("max_tokens", "many", f"a whole number from 0 to {2**32 - 1}"),
        ("top_k", 2**32, f"a whole number from 0 to {2**32 - 1}"),
        ("temperature", "1", "a number"),
        ("echo", "no", "True or False"),
        ("generation_id", "\ud800", "a str without lone surrogates"),
        ("stop", [1], "a list, each a str without lone surrogates"),
        ("stop_token_ids", 5, f"a list, each a whole number from 0 to {2**32 - 1}"),
        ("logit_bias", {-1: 1.0}, "a mapping of token ids to numbers"),
    ],
)
def test_a_value_that_no_request_can_hold_is_refused_without_a_call(server, client, field, value, allowed):
    with pytest.raises(CallFailed) as caught:
        client.generate("x", model="m", **{field: value})
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(caught.value) == f"INVALID_FIELD: {field}: {value!r} cannot be sent; must be {allowed}"
    assert caught.value.violations[0].field == field
    assert server.requests == []


def test_a_time_that_is_not_a_number_is_a_value_error():
    with Client("localhost:1") as client:
        with pytest.raises(ValueError, match="timeout_s is nan; must be a number of seconds"):
            client.models(timeout_s=float("nan"))
        with pytest.raises(ValueError, match="timeout_s is nan"):
            client.generate("x", model="tiny", timeout_s=float("nan"))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("keepalive_s", [0, 9.9, 3e6, float("inf"), float("nan")])
def test_a_keepalive_that_servers_or_grpc_refuse_is_a_value_error(kind, keepalive_s):
    with pytest.raises(ValueError, match=f"keepalive_s is {keepalive_s}; must be 10 to 2,000,000"):
        kind("localhost:1", keepalive_s=keepalive_s)


def test_arguments_of_other_methods_are_refused_without_a_call(server, client):
    with pytest.raises(InvalidRequest, match="text: b'O' is bytes; must be a str, or the ids of tokens"):
        client.score(b"O", model="m")
    with pytest.raises(InvalidRequest, match="blob: 'x' cannot be sent; must be bytes"):
        client.import_session("x")
    with pytest.raises(InvalidRequest, match="seed: -1 cannot be sent"):
        client.fork_session("s1", [-1])
    assert server.requests == []


@pytest.mark.parametrize(
    "method",
    [
        *(Client.generate, Client.converse, Conversation.change),
        *(AsyncClient.generate, AsyncClient.converse, AsyncConversation.change),
    ],
)
def test_the_signature_lists_every_option(method):
    parameters = inspect.signature(method).parameters
    options = SamplingOptions if method.__name__ == "change" else GenerateOptions
    assert set(options.__annotations__) < set(parameters)
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    assert "temperature: 'float | None' = None" in pydoc.plain(pydoc.render_doc(method))


def test_a_misspelt_option_is_a_type_error_that_names_the_right_one(server, client):
    for call in (client.generate, client.converse, client.converse("x", model="m").change):
        with pytest.raises(TypeError, match="'temprature'; did you mean 'temperature'"):
            call(temprature=1.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'zzz'; the options are temperature, "):
        client.generate("x", model="m", zzz=1)
    assert server.requests == []


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("method", ["generate", "converse", "control", "get", "delete", "fork", "rewind", "export"])
def test_a_session_is_named_by_its_id(kind, method):
    named = inspect.signature(getattr(kind, method, None) or getattr(kind, f"{method}_session")).parameters
    assert "session_id" in named
    assert "session" not in named


def test_the_id_is_what_is_meant_by_a_session(client):
    for call in (client.generate, client.converse):
        with pytest.raises(TypeError, match="unexpected keyword argument 'session'; did you mean 'session_id'"):
            call(session="s")


def test_a_generation_needs_a_model_or_a_session(client):
    for source in ({}, {"model": "m", "session_id": "s"}, {"session_id": "s", "new_session": True}):
        with pytest.raises(CallFailed, match="INVALID_FIELD"):
            client.generate("x", **source)
