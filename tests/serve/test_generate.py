"""Generate on the wire: the messages of a stream, their order, and bits that do not depend on other streams."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from gruve.model.oracle import Oracle
from gruve.model.sampling import SamplingParameters, draw
from gruve.serve import validation_generate
from gruve.sessions.table import SessionsConfig
from gruve.v1 import generation_pb2 as g
from gruve.v1 import sampling_pb2 as s
from naive_stop import naive_stop
from nets import CELL_NAMES
from serving import ABC_TOKENS, HELD, PATIENCE_S, Gate, Read, broken, first, read, refusal, token, until


def oracle_logits(host, tokens):
    model = host.model
    return Oracle(model.config, {name: w.numpy() for name, w in model.weights.items()}).run(tokens)


def test_the_first_message_has_the_accepted_request_and_the_last_one_the_end(server):
    stream = server.read(text="To be", max_tokens=7, generation_id="mine")
    start, host = stream.start, server.host("tiny")
    assert (start.generation_id, start.session_id, start.model, start.max_tokens) == ("mine", "", "tiny", 7)
    assert (start.model_digest, start.numerics_id) == (host.model.digest, host.backend.numerics_id)
    assert (start.prompt_position, start.start_position) == (1, 6)
    assert [m.HasField("start") for m in stream.messages] == [True] + [False] * (len(stream.messages) - 1)
    assert [m.HasField("end") for m in stream.messages] == [False] * (len(stream.messages) - 1) + [True]
    assert (stream.reason, stream.end.next_position) == ("LENGTH", 13)
    assert (stream.end.usage.prompt_tokens, stream.end.usage.generated_tokens) == (5, 7)


def test_positions_follow_one_another_and_the_text_is_that_of_the_tokens(server):
    stream = server.read(text="To be", max_tokens=60)
    position = 6
    for message in stream.messages:
        assert message.position == position
        position += len(message.token_ids)
    assert position == stream.end.next_position == 66
    assert stream.text == server.host("tiny").model.tokenizer.decode(stream.tokens)


def test_echo_sends_the_prompt_first(server):
    stream = server.read(text="To be", max_tokens=5, echo=True)
    assert stream.messages[0].position == 1
    assert stream.text.startswith("To be")
    assert len(stream.tokens) == 10


def test_all_parameters_in_force_are_reported_with_their_defaults(server):
    sampling = server.read(max_tokens=1).start.sampling
    assert all(sampling.HasField(field.name) for field in sampling.DESCRIPTOR.fields)
    defaults = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty)
    assert defaults == (1.0, 66, 1.0, 0.0, 1.0)
    assert sampling.repetition_window == 64


def test_what_was_reported_may_be_sent_back(server):
    session = server.create()
    asked = s.SamplingParameters(top_k=1_000, temperature=0.8)
    whole = server.read(session_id=session, generation_id="a", max_tokens=20, sampling=asked)
    again = server.read(session_id=session, generation_id="a", max_tokens=20, sampling=whole.start.sampling)
    assert again.tokens == whole.tokens
    assert server.read(session_id=session, generation_id="a", sampling=asked).tokens == whole.tokens


def test_log_probabilities_are_those_of_the_equations(float32_server):
    stream = float32_server.read(model="lstm", text="abc", max_tokens=10, logprobs=3, echo=True, ignore_eos=True)
    logits = oracle_logits(float32_server.host("lstm"), [0, *stream.tokens])
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert len(stream.logprobs) == len(stream.tokens) == 13
    for entry, at, row in zip(stream.logprobs, stream.tokens, expected, strict=False):
        assert entry.logprob == pytest.approx(row[at], abs=1e-4)
        assert [a.logprob for a in entry.alternatives] == pytest.approx(sorted(row)[: -1 - 3 : -1], abs=1e-4)


def test_log_probabilities_come_without_alternatives_or_not_at_all(server):
    assert not server.read(max_tokens=3).logprobs
    entries = server.read(max_tokens=3, logprobs=0).logprobs
    assert [len(entry.alternatives) for entry in entries] == [0, 0, 0]
    assert len(server.read(model="elman", max_tokens=1, logprobs=20).logprobs[0].alternatives) == 13


def test_no_message_holds_more_tokens_than_asked(server):
    singles = server.read(text="O", max_tokens=50, max_tokens_per_message=1, echo=True)
    assert {len(m.token_ids) for m in singles.messages if m.token_ids} == {1}
    threes = server.read(text="O Romeo, Romeo", max_tokens=5, max_tokens_per_message=3, echo=True)
    assert max(len(m.token_ids) for m in threes.messages) == 3


def test_a_paced_stream_says_the_same_as_one_in_a_hurry(server):
    asked = {"text": "O", "max_tokens": 12, "sampling": s.SamplingParameters(seed=3)}
    paced = server.read(max_tokens_per_second=200.0, **asked)
    assert paced.tokens == server.read(**asked).tokens
    spent = paced.end.usage.generation_time
    assert spent.seconds + spent.nanos / 1e9 >= 10 / 200


def test_temperature_zero_takes_the_likeliest_token_of_the_equations(server):
    stream = server.read(model="gru-before", text="ab", max_tokens=30, sampling=s.SamplingParameters(temperature=0))
    logits = oracle_logits(server.host("gru-before"), [0, 2, 3, *stream.tokens])[2:]
    for row, drawn in zip(logits, stream.tokens, strict=False):
        top = np.sort(row)
        assert drawn == row.argmax() or top[-1] - top[-2] < 2e-4


def test_a_drawn_seed_is_reported_and_repeats_the_stream(server):
    stream = server.read(text="O", max_tokens=40)
    again = server.read(text="O", max_tokens=40, sampling=s.SamplingParameters(seed=stream.start.sampling.seed))
    assert again.tokens == stream.tokens
    assert server.read(text="O", max_tokens=40).tokens != stream.tokens


def test_a_seed_says_the_same_alone_and_beside_a_hundred_others(server):
    def asked(seed):
        return {"text": "O" * (1 + seed % 7), "max_tokens": 30, "sampling": s.SamplingParameters(seed=seed)}

    alone = [server.read(**asked(seed)).tokens for seed in (0, 50, 100)]
    calls = [server.generate(**asked(seed)) for seed in range(101)]
    beside = [read(call).tokens for call in calls]
    assert [beside[seed] for seed in (0, 50, 100)] == alone


@pytest.mark.parametrize("model", ["tiny", "abc"])
@pytest.mark.parametrize("min_tokens", [0, 9])
def test_a_stop_ends_the_text_before_its_first_character(server, model, min_tokens):
    stops = {"tiny": ["e", "th", "e t", "o"], "abc": ["1/8\nA", "maj\n", "2(", "C", "B"]}[model]
    for seed in range(12):
        asked = {"model": model, "max_tokens": 60, "ignore_eos": True, "sampling": s.SamplingParameters(seed=seed)}
        free = server.read(**asked)
        texts = [server.host(model).model.tokenizer.texts[token] for token in free.tokens]
        expected = naive_stop(texts, stops, min_tokens)
        stopped = server.read(stop=stops, min_tokens=min_tokens, **asked)
        assert expected is not None
        assert (len(stopped.tokens), stopped.text, stopped.end.stop) == expected
        assert stopped.tokens == free.tokens[: expected[0]]


def test_what_might_have_become_a_stop_is_sent_at_the_end(server):
    letters = server.host("tiny").model.tokenizer.texts[1:]
    stops = [letter + "~~" for letter in letters[:16]]  # `~` is no token: none of them can be completed
    stream = server.read(stop=stops, max_tokens=40, max_tokens_per_message=1)
    assert stream.reason == "LENGTH"
    assert stream.text == server.host("tiny").model.tokenizer.decode(stream.tokens)
    withheld = [m for m in stream.messages if m.token_ids and not m.text]
    assert len(withheld) > 0, "nothing was withheld; choose other stops"


def test_a_stop_token_ends_the_stream_and_has_no_text(server):
    ids = server.host("tiny").model.tokenizer.encode("eo")
    stream = server.read(text="O", stop_token_ids=ids, max_tokens=400)
    assert stream.reason == "STOP"
    assert stream.end.stop_token_id == stream.tokens[-1]
    assert stream.end.WhichOneof("matched") == "stop_token_id"
    assert not {"e", "o"} & set(server.host("tiny").model.tokenizer.decode(stream.tokens[:-1]))


def test_no_stop_token_is_drawn_before_min_tokens(server):
    ids = list(range(2, 12))  # all letters but one
    stream = server.read(model="lstm", stop_token_ids=ids, min_tokens=25, max_tokens=400, ignore_eos=True)
    assert not set(stream.tokens[:24]) & set(ids)
    assert stream.reason == "STOP"


def test_the_end_token_ends_a_sequence_and_is_sent_without_text(server):
    stream = server.read(model="gru-after", max_tokens=2_000)
    assert stream.reason == "END_OF_SEQUENCE"
    assert stream.tokens[-1] == 1
    assert 1 not in stream.tokens[:-1]
    assert stream.text == server.host("gru-after").model.tokenizer.decode(stream.tokens[:-1])


def test_ignore_eos_never_draws_the_end_token(server):
    stream = server.read(model="gru-after", max_tokens=300, ignore_eos=True)
    assert stream.reason == "LENGTH"
    assert 1 not in stream.tokens


def test_after_the_end_a_session_goes_on_with_a_start_token(server):
    session = server.create("gru-after")
    ended = server.read(session_id=session, max_tokens=2_000)
    assert ended.reason == "END_OF_SEQUENCE"
    more = server.read(session_id=session, text="ab", max_tokens=5, echo=True, ignore_eos=True)
    assert more.start.prompt_position == ended.end.next_position + 1
    assert more.start.start_position == ended.end.next_position + 3
    assert more.tokens[:2] == [2, 3]
    assert server.session(session).position == more.end.next_position


def test_without_a_session_a_stream_goes_on_from_any_position(server):
    asked = {"text": "O", "max_tokens": 30, "stop": ["e", "th"]}
    whole = server.read(max_tokens_per_message=1, **asked)
    for message in whole.messages:
        rest = server.read(sampling=whole.start.sampling, from_position=message.position, **asked)
        assert rest.tokens == whole.tokens[message.position - 2 :]
        assert whole.text.endswith(rest.text)
        assert rest.text == "".join(m.text for m in whole.messages if m.position >= message.position)
        assert rest.end.stop == whole.end.stop


def test_a_position_beyond_the_end_is_refused_when_the_end_is_known(server):
    failure = refusal(lambda: server.generate(max_tokens=3, from_position=5, sampling=s.SamplingParameters(seed=1)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "POSITION_MISMATCH")
    assert "5" in failure.message
    assert "4" in failure.message
    at_end = server.read(max_tokens=3, from_position=4, sampling=s.SamplingParameters(seed=1))
    assert (at_end.tokens, at_end.reason) == ([], "LENGTH")


def test_the_transcript_ends_at_its_limit(start):
    server = start(sessions=SessionsConfig(max_transcript_tokens=20))
    session = server.create()
    whole = server.read(session_id=session, generation_id="a", text="O Romeo", max_tokens=100)
    assert (whole.reason, whole.end.next_position) == ("LENGTH", 20)
    assert server.read(session_id=session, generation_id="a", text="O Romeo", max_tokens=100).tokens == whole.tokens
    failure = refusal(lambda: server.generate(session_id=session))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TRANSCRIPT_FULL")


@pytest.mark.parametrize("model", ["tiny", *CELL_NAMES])
def test_forty_tokens_then_sixty_are_the_same_as_a_hundred(server, model):
    asked = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 2**64 - 1}
    whole = server.read(model=model, max_tokens=100, ignore_eos=True, sampling=s.SamplingParameters(**asked))
    session = server.create(model)
    head = server.read(session_id=session, max_tokens=40, ignore_eos=True, sampling=s.SamplingParameters(**asked))
    tail = server.read(session_id=session, max_tokens=60, ignore_eos=True)
    assert head.tokens + tail.tokens == whole.tokens


def test_parameters_are_inherited_and_an_empty_bias_ends_an_inherited_one(server):
    session = server.create("lstm")
    bias = s.LogitBias(biases={5: 100.0})
    given = s.SamplingParameters(temperature=0.5, top_k=4, seed=9, logit_bias=bias)
    assert set(server.read(session_id=session, max_tokens=5, sampling=given, stop=["x"]).tokens) == {5}
    inherited = server.read(session_id=session, max_tokens=5)
    assert inherited.start.sampling == server.session(session).sampling
    assert (inherited.start.sampling.temperature, inherited.start.sampling.seed) == (0.5, 9)
    assert set(inherited.tokens) == {5}
    ended = server.read(session_id=session, max_tokens=40, sampling=s.SamplingParameters(logit_bias=s.LogitBias()))
    assert set(ended.tokens) != {5}


def test_a_running_stream_ends_with_its_deadline_and_keeps_what_it_withholds(server, monkeypatch):
    sampling = s.SamplingParameters(seed=4)
    withheld = server.read(max_tokens=1, sampling=sampling).text
    asked = {"session_id": server.create(), "generation_id": "a", "sampling": sampling, "max_tokens": 60}
    asked["stop"] = [withheld + "~"]
    monkeypatch.setattr(validation_generate, "DEADLINE_MARGIN_S", 28.0)
    messages, failure = broken(lambda: server.generate(max_tokens_per_second=HELD, timeout=30.0, **asked))
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert messages[-1].end.finish_reason == g.FINISH_REASON_DEADLINE
    assert messages[-1].end.next_position == server.session(asked["session_id"]).position == 2
    assert Read(messages).text == ""
    monkeypatch.undo()
    rest = server.read(from_position=2, **asked)
    assert rest.text == server.read(sampling=sampling, max_tokens=60).text


def test_a_waiting_stream_ends_with_its_deadline(start, monkeypatch):
    monkeypatch.setattr(validation_generate, "DEADLINE_MARGIN_S", 29.8)
    server = start(slots=1)
    holder = server.generate(max_tokens_per_second=HELD, timeout=None)
    token(holder)
    messages, failure = broken(lambda: server.generate(timeout=30.0))
    assert messages[0].HasField("start")
    assert messages[-1].end.finish_reason == g.FINISH_REASON_DEADLINE
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert holder.is_active()
    holder.cancel()


def test_a_cancelled_stream_frees_its_slot(start):
    server = start(slots=1)
    holder = server.generate(max_tokens_per_second=HELD)
    token(holder)
    waiting = server.generate(max_tokens=3)
    assert next(waiting).HasField("start")
    holder.cancel()
    rest = read(waiting)
    assert rest.reason == "LENGTH"
    assert rest.end.usage.queue_time.ToNanoseconds() > 0


def test_a_cancelled_waiting_stream_frees_its_place(start):
    server = start(slots=1, waiting=1)
    holder = server.generate(max_tokens_per_second=HELD)
    token(holder)
    waiting = server.generate(max_tokens=3)
    next(waiting)
    assert refusal(server.generate).reason == "QUEUE_FULL"
    waiting.cancel()
    until(lambda: server.host("tiny").engine.load == 1)
    next(server.generate(max_tokens=3))
    holder.cancel()


def test_a_full_queue_refuses_at_once_and_answers_everyone_it_took(start):
    server = start(slots=2, waiting=3)
    gate = Gate(server.host("tiny"))
    taken = [server.generate(max_tokens=20, text="O", sampling=s.SamplingParameters(seed=i)) for i in range(5)]
    starts = [next(call) for call in taken]
    failure = refusal(lambda: server.generate(max_tokens=5))
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert failure.retry_after_s == pytest.approx(1.0)
    assert "2 run and 3 wait" in failure.message
    gate.open()
    rest = [read(call) for call in taken]
    assert all(message.HasField("start") for message in starts)
    assert [stream.end.usage.generated_tokens for stream in rest] == [20] * 5


def test_a_deadline_that_the_queue_does_not_allow_is_refused_at_once(start):
    server = start(slots=1)
    server.host("tiny").engine.slot_times.record(seconds=40.0, tokens=10, allowed=10)
    holder = server.generate(max_tokens_per_second=HELD)
    token(holder)
    failure = refusal(lambda: server.generate(timeout=30.0))
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_TOO_SOON")
    assert float(failure.metadata["estimate_s"]) > float(failure.metadata["left_s"]) > 0
    assert failure.retry_after_s == pytest.approx(
        float(failure.metadata["estimate_s"]) - float(failure.metadata["left_s"]), abs=0.01
    )
    next(server.generate(timeout=None))
    holder.cancel()


def test_a_hundred_clients_that_vanish_leave_nothing_behind(server):
    for wave in range(4):
        calls = [server.generate(text="O" * 50, max_tokens=5_000) for _ in range(25)]
        for i, call in enumerate(calls):
            first(call, (i + wave) % 3)
            call.cancel()
    until(lambda: server.host("tiny").engine.load == 0)
    assert server.read(max_tokens=3).reason == "LENGTH"


def test_the_abc_model_cuts_and_joins_its_own_tokens(server):
    stream = server.read(model="abc", text="K:Cmaj\nA2|", max_tokens=20, echo=True, ignore_eos=True)
    assert stream.text.startswith("K:Cmaj\nA2| ")
    texts = ("", "", *ABC_TOKENS)
    assert stream.text == "".join(texts[token] for token in stream.tokens)


def test_a_parameter_means_the_decimal_number_that_was_written(server):
    asked = s.SamplingParameters(temperature=0.8, seed=3)  # 0.8 as a 32-bit float is not 0.8
    logits = oracle_logits(server.host("elman"), [0])[0].astype(np.float32)
    drawn = draw(logits, SamplingParameters(temperature=0.8, seed=3), position=1)
    assert server.read(model="elman", max_tokens=1, sampling=asked, ignore_eos=False).tokens == [drawn]
    assert server.read(max_tokens=1, sampling=s.SamplingParameters(repetition_penalty=0.01)).tokens
    call = server.generate(max_tokens_per_second=0.01)
    assert token(call).token_ids
    call.cancel()


def test_among_many_streams_messages_wait_to_be_fuller_and_the_first_and_last_do_not(server, monkeypatch):
    neighbour = server.generate(max_tokens_per_second=HELD)
    first(neighbour)
    monkeypatch.setattr("gruve.serve.models.host.LONGEST_GAP_S", PATIENCE_S)
    monkeypatch.setattr("gruve.serve.models.host.MESSAGES_PER_S", 1 / PATIENCE_S)
    counts = [len(message.token_ids) for message in server.read(text="O", max_tokens=200).messages]
    assert sum(counts) == 200
    assert len(counts) <= 2  # one, where all were there before the first was written
    neighbour.cancel()
