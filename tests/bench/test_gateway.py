"""`gruve bench gateway`: the forms of its requests and answers, and one small run against a real server and gateway."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gruve.bench.figures import Record
from gruve.bench.gateway.forms import connect_body, connect_tokens, events_tokens, openai_body, openai_tokens
from gruve.bench.gateway.measure import CONNECT, DIRECT, EVENTS, OPENAI, GatewayBenchConfig, _differing, run_gateway
from gruve.bench.load.transport import Request
from gruve.bench.plots import plot_gateway
from gruve.bench.synthetic import Size
from gruve.decode.choose import DecodeConfig
from gruve.v1 import generation_pb2

REQUEST = Request("bench", (5, 6), 7, 8)


def test_a_chunk_of_connect_may_hold_several_messages_and_the_end():
    messages = [generation_pb2.GenerateResponse(token_ids=ids).SerializeToString() for ids in ([1, 300], [2])]
    envelopes = [b"\0" + len(message).to_bytes(4, "big") + message for message in messages]
    assert connect_tokens(b"".join(envelopes) + b"\2\0\0\0\2{}") == (1, 300, 2)


def test_the_request_in_connects_form_is_that_of_grpc():
    body = connect_body(REQUEST)
    request = generation_pb2.GenerateRequest.FromString(body[5:])
    assert (body[0], int.from_bytes(body[1:5], "big")) == (0, len(body) - 5)
    assert (list(request.tokens.ids), request.max_tokens, request.sampling.seed) == ([5, 6], 7, 8)


def test_tokens_are_read_from_events():
    assert events_tokens(b'event: start\ndata: {"seed":1}\n\n') == ()
    assert events_tokens(b'id: 3\ndata: {"token_ids":[4,5]}\n\nevent: end\ndata: {"token_ids":[6]}\n\n') == (4, 5, 6)
    text = b'data: {"choices":[{"text":"ab"}]}\n\ndata: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n'
    assert openai_tokens({"a": 1, "b": 2}, text) == (1, 2, 1)
    asked = json.loads(openai_body({"logprobs": 3}, REQUEST))
    assert (asked["prompt"], asked["max_tokens"], asked["logprobs"], asked["stream"]) == ([5, 6], 7, 3, True)


def test_tokens_that_differ_or_are_missing_are_counted():
    answer = Record(0, 0, tokens=(1, 2, 3))
    assert [_differing(Record(0, 0, tokens=tokens), answer) for tokens in ((1, 2, 3), (1, 9, 3), (1,))] == [0, 1, 2]


@pytest.mark.slow
def test_gateway_answers_its_three_questions_and_finds_no_token_that_differs(tmp_path):
    config = GatewayBenchConfig(size=Size(1, 16), streams=(2,), limit_streams=(2,), stopped_streams=2, rounds=1)
    config = dataclasses.replace(config, warm_s=0.2, seconds=0.6, stopped_s=0.5)
    config = dataclasses.replace(config, decode=DecodeConfig("cpu", threads=1))
    rows = json.loads(run_gateway(config, lambda _: None).to_json())["rows"]
    speed, limit, stopped = rows[:4], rows[4:8], rows[8]
    assert [row["way"] for row in speed] == [row["way"] for row in limit] == [DIRECT, CONNECT, OPENAI, EVENTS]
    assert all(row["tokens_per_s"] > 0 and row["failed"] == 0 for row in (*speed, *limit))
    assert all(row["compared_tokens"] > 0 and row["differing_tokens"] == 0 for row in speed)
    assert all(row["gateway_cores"] > 0 for row in limit[1:])
    assert stopped["rss_mb_after"] > 0
    plot_gateway(rows, tmp_path / "gateway.svg")
    assert (tmp_path / "gateway.svg").stat().st_size > 1_000
