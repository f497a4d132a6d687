"""The models of a server, scoring, and the standard gRPC services."""

from __future__ import annotations

import threading

import grpc
import numpy as np
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from gruve.model.oracle import Oracle
from gruve.model.repository import load
from gruve.model.tokenizer import Tokenizer
from gruve.v1 import generation_pb2 as g
from gruve.v1 import model_pb2 as m
from gruve.v1 import sampling_pb2 as s
from serving import HELD, Gate, refusal, token, until

SERVICES = {"gruve.v1.GenerationService", "gruve.v1.SessionService", "gruve.v1.ModelService"}
ONE_EACH = {
    "tiny": (m.CELL_GRU, m.RESET_CONVENTION_AFTER),
    "gru-after": (m.CELL_GRU, m.RESET_CONVENTION_AFTER),
    "gru-before": (m.CELL_GRU, m.RESET_CONVENTION_BEFORE),
    "lstm": (m.CELL_LSTM, m.RESET_CONVENTION_UNSPECIFIED),
    "elman": (m.CELL_ELMAN, m.RESET_CONVENTION_UNSPECIFIED),
}


def oracle_logprobs(model, tokens):
    """The log-probability of each token, from a zero state that has consumed the start token."""
    logits = Oracle(model.config, {name: w.numpy() for name, w in model.weights.items()}).run([0, *tokens[:-1]])
    highest = logits.max(axis=1, keepdims=True)
    logprobs = logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
    return logprobs[np.arange(len(tokens)), tokens]


def score(server, **fields):
    return server.generation.Score(g.ScoreRequest(**fields))


def health(server, service):
    return health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(service=service)).status


def test_every_entry_of_the_repository_is_listed_and_broken_ones_say_why(server):
    models = server.models.ListModels(m.ListModelsRequest()).models
    assert [x.name for x in models] == sorted(["abc", "truncated", "unknown-key", *ONE_EACH])
    broken = {x.name: x.state_reason for x in models if x.state == m.MODEL_STATE_BROKEN}
    assert set(broken) == {"truncated", "unknown-key"}
    assert "model.safetensors has 1000 bytes" in broken["truncated"]
    assert "unknown key 'attention'" in broken["unknown-key"]
    assert all(x.state == m.MODEL_STATE_SERVING and not x.state_reason for x in models if x.name not in broken)


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_model_is_described_as_its_files_say(server, repository, name):
    model = server.models.GetModel(m.GetModelRequest(name=name)).model
    files = load(repository / name)
    assert (model.cell, model.reset_convention) == ONE_EACH[name]
    assert (model.digest, model.vocabulary_size) == (files.digest, files.tokenizer.size)
    assert (model.num_layers, model.hidden_size) == (files.config.num_layers, files.config.hidden_size)
    assert (model.embedding_size, model.precision) == (files.config.embedding_size, "float16")
    assert model.parameter_count == sum(weight.numel() for weight in files.weights.values())
    assert (model.tokenizer, model.start_token_id) == ("characters", 0)
    assert model.HasField("end_token_id") == (name != "tiny")
    assert model.backend in ("native", "reference")
    assert model.backend_reason
    assert len(model.numerics_id) == 16


def test_a_model_says_what_temperature_it_recommends_if_it_does_and_the_server_samples_at_1(server):
    models = {model.name: model for model in server.models.ListModels(m.ListModelsRequest()).models}
    assert models["abc"].default_temperature == pytest.approx(0.9)
    assert not models["tiny"].HasField("default_temperature")
    seeded = {"model": "abc", "max_tokens": 20}
    plain = server.read(**seeded, sampling=s.SamplingParameters(seed=7))
    assert plain.tokens == server.read(**seeded, sampling=s.SamplingParameters(seed=7, temperature=1)).tokens
    assert plain.start.sampling.temperature == 1


def test_a_broken_model_is_described_too(server):
    model = server.models.GetModel(m.GetModelRequest(name="truncated")).model
    assert (model.state, model.digest) == (m.MODEL_STATE_BROKEN, "")


def test_text_becomes_tokens_and_tokens_text(server):
    for model, text in (("tiny", "To be, or\nnot"), ("abc", "L:1/8\nM:4/4\nK:Cmaj\nA2 c'3/2 (3ABC |]"), ("tiny", "")):
        ids = server.models.Tokenize(m.TokenizeRequest(model=model, text=text)).token_ids
        assert list(ids) == server.host(model).model.tokenizer.encode(text)
        back = server.models.Detokenize(m.DetokenizeRequest(model=model, token_ids=[0, *ids])).text
        assert back.split() == server.host(model).model.tokenizer.decode(ids).split()
        assert model == "abc" or back == text


@pytest.mark.parametrize("model", [name for name in ONE_EACH if name != "tiny"])
@pytest.mark.parametrize("window", [None, 1, 7, 1_000])
def test_a_text_is_measured_as_the_equations_measure_it(float32_server, model, window):
    tokens = np.random.default_rng(1).integers(0, 13, 50).tolist()
    measured = score(float32_server, model=model, tokens=s.TokenIds(ids=tokens), window_tokens=window, logprobs=2)
    step = window or len(tokens)
    pieces = [tokens[at : at + step] for at in range(0, len(tokens), step)]
    expected = np.concatenate([oracle_logprobs(float32_server.host(model).model, piece) for piece in pieces])
    assert [entry.logprob for entry in measured.logprobs] == pytest.approx(expected, abs=1e-4)
    assert measured.nats == pytest.approx(-expected.sum(), abs=1e-3)
    assert (measured.token_count, list(measured.token_ids)) == (50, tokens)
    assert measured.nats_per_token == pytest.approx(measured.nats / 50)
    assert measured.bits_per_token == pytest.approx(measured.nats_per_token / np.log(2))


def test_a_measure_agrees_with_what_was_generated(server):
    stream = server.read(model="abc", max_tokens=30, logprobs=0, ignore_eos=True)
    measured = score(server, model="abc", tokens=s.TokenIds(ids=stream.tokens))
    assert measured.nats == pytest.approx(-sum(entry.logprob for entry in stream.logprobs), rel=1e-6)
    assert not measured.logprobs
    assert (measured.model_digest, measured.numerics_id) == (stream.start.model_digest, stream.start.numerics_id)


@pytest.mark.parametrize(
    ("fields", "field", "quoted"),
    [
        ({}, "content", "one of text and tokens"),
        ({"text": ""}, "text", "nothing to measure"),
        ({"text": "a" * 65_537}, "text", "65537"),
        ({"tokens": s.TokenIds(ids=[66])}, "tokens.ids[0]", "0 to 65"),
        ({"text": "a", "window_tokens": 0}, "window_tokens", "0 is not between 1 and 65536"),
        ({"text": "a", "window_tokens": 65_537}, "window_tokens", "65537"),
        ({"text": "a", "logprobs": 21}, "logprobs", "21 is not between 0 and 20"),
        ({"text": "a" * 7_000, "logprobs": 18}, "logprobs", "7000 tokens times 19 log-probabilities; at most 131072"),
    ],
)
def test_a_text_that_cannot_be_measured_is_refused_by_field(server, fields, field, quoted):
    failure = refusal(lambda: score(server, model="tiny", **fields))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert failure.violations[0].field == field
    assert quoted in failure.message


def test_a_measure_that_finds_no_room_is_refused_and_one_that_is_dropped_leaves_none_taken(start):
    server = start(slots=1, waiting=0)
    holder = server.generate(max_tokens_per_second=HELD)
    token(holder)
    failure = refusal(lambda: score(server, model="tiny", text="To be"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    holder.cancel()
    until(lambda: server.host("tiny").engine.load == 0)
    gate = Gate(server.host("tiny"))
    dropped = server.generation.Score.future(g.ScoreRequest(model="tiny", text="To be"))
    gate.let(0)
    dropped.cancel()
    until(lambda: server.handled("Score", "CANCELLED") == 1)
    gate.open()
    until(lambda: server.host("tiny").engine.load == 0)


def test_a_model_whose_engine_is_gone_makes_the_server_not_ready(start):
    server = start()
    server.host("tiny").backend.decode = lambda slots, limits, steps, exclusive: None  # breaks the loop itself
    assert refusal(server.generate).reason == "ENGINE_FAILED"
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    until(lambda: health(server, "tiny") == health(server, "") == not_serving)


def test_health_covers_the_server_each_service_and_each_model(server):
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert {health(server, name) for name in ("", *SERVICES, *ONE_EACH, "abc")} == {serving}
    assert {health(server, name) for name in ("truncated", "unknown-key")} == {not_serving}
    with pytest.raises(grpc.RpcError) as caught:
        health(server, "nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_knows_every_service(server):
    found = ProtoReflectionDescriptorDatabase(server.channel)
    assert set(found.get_services()) == SERVICES | {
        "grpc.health.v1.Health",
        "grpc.channelz.v1.Channelz",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    described = found.FindFileContainingSymbol("gruve.v1.GenerationService")
    assert described.service[0].name == "GenerationService"


def test_channelz_answers(server):
    stub = channelz_pb2_grpc.ChannelzStub(server.channel)
    assert stub.GetServers(channelz_pb2.GetServersRequest(start_server_id=0)).server


def test_a_long_text_is_cut_away_from_the_streams_thread(server, monkeypatch):
    threads, encode = [], Tokenizer.encode

    def watched(self, text, *most):
        threads.append(threading.current_thread())
        return encode(self, text, *most)

    monkeypatch.setattr(Tokenizer, "encode", watched)
    server.models.Tokenize(m.TokenizeRequest(model="tiny", text="a" * 60_000))
    score(server, model="abc", text="A" * 5_000, window_tokens=5_000)
    server.read(text="O", max_tokens=1)
    assert threads[2] not in threads[:2]
