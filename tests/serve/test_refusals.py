"""Bad input on the wire: each gets its own error, and none disturbs a stream that runs beside it."""

from __future__ import annotations

import math
import socket

import grpc
import pytest
from google.rpc import error_details_pb2  # noqa: F401 - the details must be known to be unpacked

from gruve.v1 import generation_pb2 as g
from gruve.v1 import model_pb2 as m
from gruve.v1 import sampling_pb2 as s
from gruve.v1 import session_pb2 as p
from serving import refusal, token

INVALID = grpc.StatusCode.INVALID_ARGUMENT
LONG = 65_537


def sampling(**fields):
    return {"sampling": s.SamplingParameters(**fields)}


def bias(token_id, value=1.0):
    return sampling(logit_bias=s.LogitBias(biases={token_id: value}))


# The request, the refused field, and what the message must quote: the value and the bound.
FIELDS = {
    "no source": ({"model": None}, "source", ["model, session_id and new_session"]),
    "empty prompt": ({"text": ""}, "text", ["leave the field out"]),
    "no tokens": ({"tokens": s.TokenIds()}, "tokens", ["leave the field out"]),
    "long prompt": ({"text": "a" * LONG}, "text", ["65537", "65536"]),
    "many tokens": ({"tokens": s.TokenIds(ids=[1] * LONG)}, "tokens", ["65537", "65536"]),
    "unknown token": ({"tokens": s.TokenIds(ids=[1, 2, 66])}, "tokens.ids[2]", ["66", "0 to 65"]),
    "temperature -0.1": (sampling(temperature=-0.1), "sampling.temperature", ["-0.1 ", "0.0 and 100.0"]),
    "temperature NaN": (sampling(temperature=math.nan), "sampling.temperature", ["nan"]),
    "temperature inf": (sampling(temperature=math.inf), "sampling.temperature", ["inf", "100.0"]),
    "temperature 100.1": (sampling(temperature=100.1), "sampling.temperature", ["100.1 ", "100.0"]),
    "top_k 0": (sampling(top_k=0), "sampling.top_k", ["0", "1"]),
    "top_p 0": (sampling(top_p=0), "sampling.top_p", ["0", "above 0 to 1"]),
    "top_p 1.1": (sampling(top_p=1.1), "sampling.top_p", ["1.1 ", "1.0"]),
    "top_p NaN": (sampling(top_p=math.nan), "sampling.top_p", ["nan"]),
    "min_p -1": (sampling(min_p=-1), "sampling.min_p", ["-1", "0.0 and 1.0"]),
    "penalty 0": (sampling(repetition_penalty=0), "sampling.repetition_penalty", ["0.0", "0.01 and 100.0"]),
    "window 1025": (sampling(repetition_window=1_025), "sampling.repetition_window", ["1025", "1024"]),
    "bias of no token": (bias(66), "sampling.logit_bias", ["66", "0 to 65"]),
    "bias 101": (bias(3, 101.0), "sampling.logit_bias[3]", ["101", "100"]),
    "bias NaN": (bias(3, math.nan), "sampling.logit_bias[3]", ["nan"]),
    "many biases": (
        sampling(logit_bias=s.LogitBias(biases=dict.fromkeys(range(1_025), 1.0))),
        "sampling.logit_bias",
        ["1025", "1024"],
    ),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens", ["0", "1 and 65536"]),
    "max_tokens 65537": ({"max_tokens": LONG}, "max_tokens", ["65537", "65536"]),
    "max_tokens 2^32-1": ({"max_tokens": 2**32 - 1}, "max_tokens", ["4294967295", "65536"]),
    "min_tokens above": ({"min_tokens": 7, "max_tokens": 6}, "min_tokens", ["7", "6"]),
    "min_tokens above default": ({"min_tokens": 1_025}, "min_tokens", ["1025", "1024"]),
    "17 stops": ({"stop": [str(i) for i in range(17)]}, "stop", ["17", "16"]),
    "empty stop": ({"stop": ["a", ""]}, "stop[1]", ["0", "1 to 64"]),
    "long stop": ({"stop": ["a", "b", "c" * 65]}, "stop[2]", ["65", "64"]),
    "17 stop tokens": ({"stop_token_ids": range(17)}, "stop_token_ids", ["17", "16"]),
    "stop at no token": ({"stop_token_ids": [66]}, "stop_token_ids", ["66", "0 to 65"]),
    "logprobs 21": ({"logprobs": 21}, "logprobs", ["21", "20"]),
    "message of 0": ({"max_tokens_per_message": 0}, "max_tokens_per_message", ["0", "4096"]),
    "message of 4097": ({"max_tokens_per_message": 4_097}, "max_tokens_per_message", ["4097", "4096"]),
    "rate 0": ({"max_tokens_per_second": 0}, "max_tokens_per_second", ["0", "0.01", "1000000"]),
    "rate NaN": ({"max_tokens_per_second": math.nan}, "max_tokens_per_second", ["nan"]),
    "empty id": ({"generation_id": ""}, "generation_id", ["0", "1 to 128"]),
    "id with a line break": ({"generation_id": "ab\nc"}, "generation_id", ["'\\n'", "U+000A", "offset 2"]),
    "id with an escape": ({"generation_id": "\x1b[2J"}, "generation_id", ["'\\x1b'", "U+001B", "control character"]),
    "id with a delete": ({"generation_id": "a\x7f"}, "generation_id", ["U+007F", "offset 1"]),
    "id with a C1 control": ({"generation_id": "\x9b"}, "generation_id", ["U+009B"]),
    "id with a line separator": ({"generation_id": "a\u2028b"}, "generation_id", ["U+2028", "line break"]),
    "long id": ({"generation_id": "x" * 129}, "generation_id", ["129", "128"]),
    "no seed to go on with": ({"from_position": 9}, "sampling.seed", ["seed"]),
}


@pytest.fixture(scope="module")
def beside(server):
    """A stream that runs during all refusals."""
    call = server.generate(timeout=None, max_tokens=60_000, max_tokens_per_second=100.0, **sampling(seed=7))
    begun = token(call)
    yield call, list(begun.token_ids)
    call.cancel()


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_out_of_range_is_named_and_its_value_and_bound_are_quoted(server, beside, name):
    fields, field, quoted = FIELDS[name]
    failure = refusal(lambda: server.generate(**fields))
    assert (failure.code, failure.reason) == (INVALID, "INVALID_FIELD")
    assert [violation.field for violation in failure.violations] == [field]
    assert all(quote in failure.violations[0].description for quote in quoted), failure.violations
    assert failure.message == f"{field}: {failure.violations[0].description}"
    assert failure.retry_after_s is None


def test_the_bounds_themselves_are_allowed(server):
    low = s.SamplingParameters(
        temperature=0, top_k=1, top_p=1e-9, min_p=0, repetition_penalty=0.01, repetition_window=0
    )
    high = s.SamplingParameters(
        temperature=100,
        top_k=2**32 - 1,
        top_p=1,
        min_p=1,
        repetition_penalty=100,
        repetition_window=1_024,
        seed=2**64 - 1,
    )
    high.logit_bias.biases.update({i: (-100.0, 100.0)[i % 2] for i in range(66)})
    for parameters in (low, high):
        server.read(max_tokens=1, sampling=parameters, generation_id="i" * 128, max_tokens_per_message=4_096)
    call = server.generate(max_tokens=65_536, max_tokens_per_second=0.01, logprobs=20, stop=["x" * 64] * 16)
    assert token(call).token_ids
    call.cancel()
    assert server.read(max_tokens=1, max_tokens_per_second=1e6, stop_token_ids=[65] * 16).tokens


def test_a_generation_id_may_have_any_character_that_is_no_control(server):
    for generation_id in ("a b", "é", "名前", 'a/b?c="d"', "\u200b", "🎻"):
        assert server.read(max_tokens=1, generation_id=generation_id).start.generation_id == generation_id


def test_an_unknown_character_is_shown_with_its_place(server):
    failure = refusal(lambda: server.generate(text="To be,\nor é"))
    assert (failure.code, failure.reason) == (INVALID, "UNKNOWN_CHARACTER")
    assert failure.metadata == {"found": "é", "offset": "10", "line": "2", "column": "4"}
    assert "'é' (U+00E9), at line 2, column 4" in failure.message
    tokenize = m.TokenizeRequest(model="abc", text="K:Cmaj\nA2 %")
    failure = refusal(lambda: server.models.Tokenize(tokenize))
    assert (failure.reason, failure.metadata["found"], failure.metadata["offset"]) == ("UNKNOWN_CHARACTER", "%", "10")
    assert refusal(lambda: server.models.Tokenize(m.TokenizeRequest(model="abc", text="M:3/4\n"))).metadata["found"]


def test_an_unknown_model_is_refused_with_the_names_of_those_that_serve(server):
    asks = (
        lambda: server.generate(model="nobody"),
        lambda: server.generate(new_session=g.NewSession(model="nobody")),
        lambda: server.create("nobody"),
        lambda: server.models.GetModel(m.GetModelRequest(name="nobody")),
        lambda: server.models.ReloadModel(m.ReloadModelRequest(name="nobody")),
        lambda: server.models.Tokenize(m.TokenizeRequest(model="nobody")),
        lambda: server.models.Detokenize(m.DetokenizeRequest(model="nobody")),
        lambda: server.generation.Score(g.ScoreRequest(model="nobody", text="a")),
    )
    for ask in asks:
        failure = refusal(ask)
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")
        assert "'nobody'" in failure.message
        assert "tiny" in failure.message


@pytest.mark.parametrize(("model", "why"), [("truncated", "truncated, changed"), ("unknown-key", "'attention'")])
def test_a_broken_model_is_refused_with_its_reason(server, model, why):
    failure = refusal(lambda: server.generate(model=model))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_SERVING")
    assert why in failure.metadata["state_reason"]
    assert why in failure.message


def test_session_requests_out_of_range_are_refused_by_field(server):
    session = server.create()
    asks = {
        "session": lambda: server.sessions.CreateSession(p.CreateSessionRequest()),
        "page_token": lambda: server.sessions.GetSession(p.GetSessionRequest(session_id=session, page_token="x")),
        "page_size": lambda: server.sessions.ListSessions(p.ListSessionsRequest(page_size=0)),
    }
    for field, ask in asks.items():
        failure = refusal(ask)
        assert (failure.code, failure.reason) == (INVALID, "INVALID_FIELD")
        assert [violation.field for violation in failure.violations] == [field]
    for page_token in ("é", "!", "MTI=", "a" * 5_000, "MHgxLjBwKzEvYQ"):
        ask = p.ListSessionsRequest(page_token=page_token)
        assert refusal(lambda: server.sessions.ListSessions(ask)).violations[0].field == "page_token"  # noqa: B023


def test_more_tokens_than_a_prompt_may_have_are_neither_cut_nor_joined(server):
    failure = refusal(lambda: server.models.Tokenize(m.TokenizeRequest(model="tiny", text="a" * LONG)))
    assert failure.violations[0].field == "text"
    detokenize = m.DetokenizeRequest(model="tiny", token_ids=[1] * LONG)
    failure = refusal(lambda: server.models.Detokenize(detokenize))
    assert failure.violations[0].field == "token_ids"
    assert "65537" in failure.message
    assert "65536" in failure.message
    failure = refusal(lambda: server.models.Detokenize(m.DetokenizeRequest(model="tiny", token_ids=[1, 66])))
    assert failure.violations[0].field == "token_ids[1]"


def test_a_request_above_a_mebibyte_is_refused_by_grpc(server, beside):
    failure = refusal(lambda: server.generate(text="a" * (1 << 20)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
    assert "1048576" in failure.message


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
def test_bytes_that_are_no_message_are_refused(server, beside, data):
    raw = server.channel.unary_unary("/gruve.v1.SessionService/DeleteSession")
    stream = server.channel.unary_stream("/gruve.v1.GenerationService/Generate")
    for call, name in ((lambda: raw(data), "DeleteSession"), (lambda: stream(data), "Generate")):
        failure = refusal(call)
        assert (failure.code, failure.reason) == (INVALID, "REQUEST_MALFORMED")
        assert f"{len(data)} bytes" in failure.message
        assert name in failure.message


def test_bytes_that_are_not_even_http_end_their_own_connection_alone(server, beside):
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1_000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500):
        with socket.create_connection(("127.0.0.1", server.serving.port), timeout=10) as connection:
            connection.sendall(garbage)
            connection.settimeout(10)
            while connection.recv(4_096):
                pass


def test_a_message_that_quotes_too_much_is_cut(server):
    session, stops = server.create(), ["\U0001d11e" * 64] * 16
    server.read(session_id=session, generation_id="a", stop=stops, max_tokens=1)
    failure = refusal(lambda: server.generate(session_id=session, generation_id="a", stop=stops[1:]))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GENERATION_MISMATCH")
    assert failure.message.endswith("…")


def test_repeated_stops_are_one_stop(server):
    asked = {"max_tokens": 60, **sampling(seed=2)}
    assert server.read(stop=["e", "e"], **asked).text == server.read(stop=["e"], **asked).text


def test_the_stream_beside_all_this_was_not_disturbed(server, beside):
    call, tokens = beside
    while len(tokens) < 20:
        tokens += token(call).token_ids
    assert call.is_active()
    assert tokens == server.read(max_tokens=len(tokens), **sampling(seed=7)).tokens
