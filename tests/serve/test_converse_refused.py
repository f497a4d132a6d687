"""Controls and messages of Converse that are refused, and floods of them."""

from __future__ import annotations

import threading

import pytest

from conversing import LONG, START, R, alone, talk
from gruve.sessions import steering
from gruve.sessions.table import SessionsConfig
from gruve.v1 import generation_pb2 as g
from serving import refusal

REFUSED = [
    (
        {"at_position": START - 1, "pause": {}},
        "POSITION_MISMATCH",
        f"at_position is {START - 1}; the generation starts",
    ),
    ({"at_position": 9_999, "stop": {}}, "POSITION_MISMATCH", "at_position is 9999; the generation ended at 46"),
    ({"rewind": {"to_position": 9_999}}, "POSITION_MISMATCH", "rewind.to_position is 9999; the next token is that of"),
    ({"rewind": {"to_position": 0}}, "POSITION_MISMATCH", "rewind.to_position is 0; the generation starts at 6"),
    ({"at_position": 9, "rewind": {"to_position": 9}}, "INVALID_FIELD", "at_position: 9 is given; rewind takes none"),
    ({"at_position": 9, "resume": {}}, "INVALID_FIELD", "at_position: 9 is given; resume takes none"),
    ({}, "INVALID_FIELD", "message: absent"),
    ({"change_parameters": {"sampling": {"top_p": 2}}}, "INVALID_FIELD", "sampling.top_p: 2.0 is not between"),
    ({"change_parameters": {"sampling": {"logit_bias": {"biases": {99: 1}}}}}, "INVALID_FIELD", "token id 99 does not"),
    ({"insert_prompt": {}}, "INVALID_FIELD", "insert_prompt.prompt: absent"),
    ({"insert_prompt": {"text": ""}}, "INVALID_FIELD", "text: an empty prompt"),
    ({"insert_prompt": {"tokens": {"ids": [66]}}}, "INVALID_FIELD", "66 is not a token id"),
    ({"insert_prompt": {"text": "日"}}, "UNKNOWN_CHARACTER", "'日'"),
]


@pytest.mark.parametrize(("control", "reason", "why"), REFUSED)
def test_a_control_that_cannot_be_carried_out_disturbs_nothing(server, control, reason, why):
    conversation = talk(server, 5)
    refused = conversation.say(**control)
    conversation.grant(100)
    assert conversation.reason(refused) == reason
    assert why in conversation.answers[refused].message
    assert list(conversation.rest().tokens.values()) == alone(server).tokens


def test_a_prompt_that_fills_the_transcript_is_refused(start):
    server = start(sessions=SessionsConfig(max_transcript_tokens=60))
    conversation = talk(server, 10, max_tokens=LONG).until(10)
    refused = conversation.insert("O" * 60)
    assert conversation.reason(refused) == "TRANSCRIPT_FULL"
    assert "would have 60 tokens; at most 59" in conversation.answers[refused].message
    conversation.grant(100)
    assert conversation.rest().finish == "LENGTH"


def started(credit=0, **fields):
    return R(start=g.ConverseStart(generate=g.GenerateRequest(**({"model": "tiny"} | fields)), credit=credit))


BROKEN = [
    ([], "REQUEST_MALFORMED", "the first message is missing"),
    ([R(grant={"tokens": 1})], "REQUEST_MALFORMED", "the first message is a grant; it must be a start"),
    ([started(), started()], "REQUEST_MALFORMED", "a later message is a start"),
    ([started(65_537)], "INVALID_FIELD", "start.credit: 65537 is above 65536"),
    ([R(start={})], "INVALID_FIELD", "start.generate.source: absent"),
    ([started(max_tokens=0)], "INVALID_FIELD", "start.generate.max_tokens: 0 is not between"),
    ([started(model="none")], "MODEL_UNKNOWN", "'none'"),
    ([R(at_position=4, start=started().start)], "INVALID_FIELD", "at_position: 4 is given; start takes none"),
    ([started(), R(grant={})], "INVALID_FIELD", "grant.tokens: 0 grants nothing"),
    ([started(), R(at_position=4, grant={"tokens": 1})], "INVALID_FIELD", "at_position: 4 is given; grant takes none"),
    (
        [started(65_000, max_tokens=65_536), R(pause={}), R(grant={"tokens": 65_536})],
        "INVALID_FIELD",
        "not yet used are above 65536",
    ),
]


@pytest.mark.parametrize(("messages", "reason", "why"), BROKEN)
def test_a_message_that_cannot_be_understood_ends_the_call(server, messages, reason, why):
    held = threading.Event()

    def said():
        yield from messages
        if messages:
            held.wait(60)

    failure = refusal(lambda: server.generation.Converse(said(), timeout=60))
    held.set()
    assert failure.reason == reason
    assert why in failure.message


def test_bytes_that_are_no_message_end_the_call(server):
    call = server.channel.stream_stream("/gruve.v1.GenerationService/Converse")
    assert refusal(lambda: call(iter([started().SerializeToString(), b"\xff\xff"]))).reason == "REQUEST_MALFORMED"


def test_a_flood_of_controls_is_answered_one_by_one_and_harms_nobody(server):
    conversation = talk(server, 10).until(10)
    controls = [conversation.say(at_position=START + 4 * (i < 1_500), change_parameters={}) for i in range(3_000)]
    assert server.read(text="O", max_tokens=50).reason == "LENGTH"
    assert [conversation.position(c) for c in controls] == [START + 4] * 1_500 + [START] * 1_500
    conversation.grant(100)
    assert list(conversation.rest().tokens.values()) == alone(server).tokens


def test_only_so_many_changes_are_recorded_and_a_rewind_makes_room(server, monkeypatch):
    monkeypatch.setattr(steering, "MAX_CHANGES", 3)
    conversation = talk(server, 4).until(4)
    for _ in range(3):
        conversation.answer(conversation.insert("O"))
    for refused in (conversation.insert("O"), conversation.change(seed=3)):
        assert conversation.reason(refused) == "LIMIT_EXCEEDED"
    for to in (START + 3, START + 2, START + 1):
        assert conversation.position(conversation.say(rewind={"to_position": to, "seed": 7})) == to
    assert conversation.position(conversation.insert("O")) == START + 1
    conversation.grant(100)
    assert conversation.rest().finish == "LENGTH"


def test_only_so_many_logit_biases_are_recorded_in_changes(server, monkeypatch):
    monkeypatch.setattr(steering, "MAX_BIASES", 5)
    conversation = talk(server, 4).until(4)
    bias = {"logit_bias": {"biases": {3: 1.0, 4: 1.0}}}
    for _ in range(2):
        conversation.position(conversation.change(**bias))
        conversation.position(conversation.insert("O"))
    assert conversation.reason(conversation.insert("O")) == "LIMIT_EXCEEDED"


def test_only_so_many_controls_may_wait(server):
    conversation = talk(server, 5)
    waiting = [conversation.change(START + 30, seed=3) for _ in range(1_024)]
    assert conversation.reason(conversation.change(START + 30, seed=4)) == "INVALID_FIELD"
    conversation.grant(100)
    assert conversation.position(waiting[-1]) == START + 30
