"""A generation resumed with log-probabilities, which are computed again from a kept state, has its text and its end."""

from __future__ import annotations

import pytest

from conversing import Talk
from gruve.v1 import generation_pb2 as g
from serving import first, read

ASKED = {"generation_id": "a", "text": "O", "max_tokens": 1_000, "ignore_eos": True, "sampling": {"seed": 7}}


def ask(server, session, **more):
    return read(server.generation.Generate(g.GenerateRequest(**{**ASKED, "session_id": session, **more})))


def outcome(stream):
    return stream.tokens, stream.text, stream.end.WhichOneof("matched"), stream.end.next_position


def assert_resumes(server, session, whole, position, **more):
    plain = ask(server, session, from_position=position, **more)
    again = ask(server, session, from_position=position, logprobs=2, **more)
    assert outcome(again) == outcome(plain)
    assert again.logprobs == whole.logprobs[-len(again.tokens) :]


@pytest.mark.parametrize("position", [100, 258, 300, 560])
def test_a_stop_at_the_end_is_found(server, position):
    session = server.create()
    stop = {"stop": ["e"], "min_tokens": 600}
    whole = ask(server, session, logprobs=2, **stop)
    assert whole.end.WhichOneof("matched") == "stop"
    assert_resumes(server, session, whole, position, **stop)


@pytest.mark.parametrize("cut", ["", "$"])
def test_text_is_withheld_where_a_stop_may_come_however_long_it_is(server, cut):
    text = ask(server, server.create(), max_tokens=700).text
    at = 240  # there is a state after 257 tokens
    session, stop = server.create(), {"stop": [text[at : at + 60 - len(cut)] + cut], "max_tokens": 700}
    whole = ask(server, session, logprobs=2, **stop)
    assert bool(cut) == (whole.end.WhichOneof("matched") is None)
    for position in (262, 280, 295):
        assert_resumes(server, session, whole, position, **stop)


def test_so_does_one_that_was_cut_and_one_with_an_inserted_prompt(server):
    stop = {"stop": ["e"], "min_tokens": 900}
    session = server.create()
    asked = g.GenerateRequest(**{**ASKED, **stop, "session_id": session, "max_tokens_per_second": 2_000.0})
    call = server.generation.Generate(asked)
    while first(call)[-1].position < 400:
        pass
    call.cancel()
    whole = ask(server, server.create(), logprobs=2, **stop)
    again = ask(server, session, logprobs=2, from_position=300, **stop)
    assert again.logprobs == whole.logprobs[-len(again.tokens) :]
    assert (whole.text.endswith(again.text), again.end.WhichOneof("matched")) == (True, "stop")
    talk = Talk(server).begin(60_000, **{**ASKED, **stop, "logprobs": 2, "session_id": (session := server.create())})
    talk.insert("KING ", at=500)
    while talk.read() is not None:
        pass
    plain = ask(server, session, from_position=560, **stop)
    again = ask(server, session, from_position=560, logprobs=2, **stop)
    assert outcome(again) == outcome(plain)
    assert talk.text.endswith(again.text)
    assert talk.logprobs[-len(again.tokens) :] == again.logprobs
