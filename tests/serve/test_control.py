"""Control: a conversation is steered by other calls, exactly as by its own client, and by its tenant alone."""

from __future__ import annotations

import threading

import pytest

from conversing import LONG, PROMPT, SEED, START, R, alone, plain, talk, transcript
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from gruve.serve.streams import control_queue
from gruve.v1 import generation_pb2 as g
from serving import HELD, PATIENCE_S, refusal, until


@pytest.fixture(scope="module")
def encode(server):
    return server.host("tiny").model.tokenizer.encode


class Started:
    """One call of StartConversation, and controls for it. `tokens` has the tokens that were not taken back."""

    def __init__(self, server, credit=None, metadata=None, **fields):
        if not {"model", "session_id", "new_session"} & set(fields):
            fields["model"] = "tiny"
        generate = g.GenerateRequest(**({"text": PROMPT, "sampling": SEED, "max_tokens": 40} | fields))
        self._server = server
        self.call = server.generation.StartConversation(
            g.StartConversationRequest(generate=generate, credit=credit), timeout=PATIENCE_S, metadata=metadata
        )
        self.tokens, self.sent, self.applied, self.end = {}, 0, [], None
        self.start = next(self.call).tokens.start

    def control(self, metadata=None, /, **fields):
        return steer(self._server, self.start, metadata, **fields)

    def read(self):
        message = next(self.call, None)
        if message is None:
            return False
        if message.HasField("control_applied"):
            self.applied.append(message.control_applied)
            self.tokens = {at: t for at, t in self.tokens.items() if at < message.control_applied.position}
            return True
        self.tokens |= dict(enumerate(message.tokens.token_ids, message.tokens.position))
        self.sent += len(message.tokens.token_ids)
        self.end = message.tokens.end if message.tokens.HasField("end") else None
        return True

    def until(self, tokens):
        while self.sent < tokens:
            assert self.read(), f"the call ended after {self.sent} tokens"
        return self

    def rest(self):
        while self.read():
            pass
        return self


def steer(server, start, metadata=None, /, **fields):
    request = g.ControlRequest(generation_id=start.generation_id, session_id=start.session_id, control=R(**fields))
    return server.generation.Control(request, timeout=PATIENCE_S, metadata=metadata).applied


def kept():
    return {"new_session": g.NewSession(model="tiny")}


CHANGE = {"change_parameters": {"sampling": {"temperature": 0.5}}}
SCRIPT = [
    (10, {"change_parameters": {"sampling": {"temperature": 0.5}}}, ("change", {"temperature": 0.5})),
    (16, {"insert_prompt": {"text": "\nROMEO:\n"}}, ("insert", "\nROMEO:\n")),
    (12, {"rewind": {"to_position": START + 6, "seed": 9}}, ("rewind", {"seed": 9})),
    (30, {"at_position": START + 20, "stop": {}}, ("stop", None)),
]
"""Tokens to grant, then the control to send, and what it means to `plain`."""


@pytest.mark.parametrize("echo", [False, True])
def test_steered_by_control_is_steered_by_converse_token_for_token(server, encode, echo):
    started, conversation = Started(server, 0, echo=echo, **kept()), talk(server, 0, echo=echo, **kept())
    applied = []
    for tokens, control, (kind, value) in SCRIPT:
        for granting in (lambda n: started.control(grant={"tokens": n}), conversation.grant):
            granting(tokens)
        started.until(started.sent + tokens)
        conversation.until(conversation.sent + tokens)
        answer = started.control(**control)
        assert conversation.position(conversation.say(**control)) == answer.position
        applied.append((kind, answer.position, value))
    assert started.rest().tokens == conversation.rest().tokens
    assert started.end.finish_reason == conversation.end.finish_reason == g.FINISH_REASON_CANCELLED
    assert transcript(server, started.start.session_id) == transcript(server, conversation.start.session_id)
    assert transcript(server, started.start.session_id) == plain(server, applied, SEED, 40, encode)


def test_the_stream_says_where_a_control_took_effect_and_what_it_was(server):
    started = Started(server, 5).until(5)
    answer = started.control(control_id=7, insert_prompt={"text": "O"})
    assert (answer.control_id, answer.position, list(answer.inserted.ids)) == (7, START + 5, [answer.inserted.ids[0]])
    started.control(grant={"tokens": 100})
    (told,) = started.rest().applied
    assert told.control == R(control_id=7, insert_prompt={"text": "O"})
    assert (told.control_id, told.position, told.inserted) == (7, START + 5, answer.inserted)


def test_a_conversation_without_a_word_is_a_generation(server):
    assert list(Started(server).rest().tokens.values()) == alone(server).tokens


def test_a_stream_of_converse_is_steered_from_elsewhere_and_hears_of_it(server):
    conversation = talk(server, 5).until(5)
    assert steer(server, conversation.start, control_id=1, pause={}).position == START + 5
    conversation.grant(100)
    assert steer(server, conversation.start, control_id=2, resume={}).position == START + 5
    assert list(conversation.rest().tokens.values()) == alone(server).tokens
    assert [answer.control.WhichOneof("message") for answer in conversation.answers.values()] == ["pause", "resume"]


def test_a_pause_holds_and_a_stop_ends(server):
    started = Started(server, max_tokens=LONG, max_tokens_per_second=HELD).until(1)
    assert started.control(pause={}).position == START + 1
    until(lambda: not server.host("tiny").engine.load)
    assert started.control(stop={}).position == START + 1
    assert started.rest().end.next_position == START + 1


def test_a_control_for_later_is_answered_when_its_position_is_reached(server):
    started = Started(server, 5).until(5)
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(started.control(at_position=START + 9, stop={})))
    waiting.start()
    started.control(grant={"tokens": 2})
    started.until(7)
    assert not answers
    started.control(grant={"tokens": 9})
    assert list(started.rest().tokens) == [START + i for i in range(9)]
    waiting.join()
    assert answers[0].position == START + 9


REFUSED = [
    ({"start": {}}, "INVALID_FIELD", "control.message is a start"),
    ({}, "INVALID_FIELD", "control.message: absent"),
    ({"grant": {}}, "INVALID_FIELD", "control.grant.tokens: 0 grants nothing"),
    ({"grant": {"tokens": 65_537}}, "INVALID_FIELD", "65537 and 0 not yet used are above 65536"),
    ({"at_position": 9, "resume": {}}, "INVALID_FIELD", "control.at_position: 9 is given; resume takes none"),
    ({"change_parameters": {"sampling": {"top_p": 2}}}, "INVALID_FIELD", "control.sampling.top_p: 2.0 is not between"),
    ({"insert_prompt": {"text": "日"}}, "UNKNOWN_CHARACTER", "'日'"),
    ({"rewind": {"to_position": 0}}, "POSITION_MISMATCH", "rewind.to_position is 0; the generation starts at 6"),
    ({"rewind": {"to_position": 99}}, "POSITION_MISMATCH", "rewind.to_position is 99; the next token is that of 11"),
]


@pytest.mark.parametrize(("control", "reason", "why"), REFUSED)
def test_a_control_that_cannot_be_carried_out_is_refused_to_its_caller_alone(server, control, reason, why):
    started = Started(server, 5).until(5)
    failure = refusal(lambda: started.control(**control))
    assert failure.reason == reason
    assert why in failure.message
    started.control(grant={"tokens": 100})
    assert list(started.rest().tokens.values()) == alone(server).tokens
    assert not started.applied


def test_a_generation_that_is_not_streamed_so_is_unknown(server):
    ended = Started(server, **kept()).rest()
    plainly = server.generate(text=PROMPT, max_tokens=LONG, max_tokens_per_second=HELD)
    never = g.GenerationStart(generation_id="never")
    for start in (ended.start, next(plainly).start, never):
        assert refusal(lambda start=start: steer(server, start, pause={})).reason == "GENERATION_UNKNOWN"
    started = Started(server, 0, **kept())
    without = g.GenerationStart(generation_id=started.start.generation_id)
    assert refusal(lambda: steer(server, without, pause={})).reason == "GENERATION_UNKNOWN"
    plainly.cancel()
    started.call.cancel()


def test_another_tenants_generation_is_answered_as_an_unknown_one(start, tmp_path):
    keys = tmp_path / "keys.json"
    ann, bob = ([("authorization", f"Bearer {add_key(keys, name, name)}")] for name in ("ann", "bob"))
    server = start(access=AccessConfig(keys=keys))
    started = Started(server, 5, metadata=ann, generation_id="mine").until(5)
    foreign = refusal(lambda: started.control(bob, stop={}))
    unknown = refusal(lambda: steer(server, g.GenerationStart(generation_id="none"), bob, stop={}))
    assert foreign.reason == unknown.reason == "GENERATION_UNKNOWN"
    assert foreign.message.replace("mine", "none") == unknown.message
    assert started.control(ann, stop={}).position == START + 5
    assert started.rest().end.finish_reason == g.FINISH_REASON_CANCELLED


def test_a_control_that_waits_when_the_client_leaves_is_answered(server):
    started = Started(server, 5).until(5)
    failures = []
    waiting = threading.Thread(
        target=lambda: failures.append(refusal(lambda: started.control(at_position=START + 9, pause={})))
    )
    waiting.start()
    (conversation,) = server.server._generations.streams._streams
    until(lambda: conversation._controls.next_position)
    started.call.cancel()
    waiting.join()
    assert failures[0].reason == "GENERATION_UNKNOWN"


def test_controls_without_an_answer_are_bounded(server, monkeypatch):
    started = Started(server, 0)
    monkeypatch.setattr(control_queue, "MAX_UNANSWERED", 0)
    failure = refusal(lambda: started.control(**CHANGE))
    assert (failure.reason, failure.metadata["limit"], failure.retry_after_s) == ("LIMIT_EXCEEDED", "controls", 1.0)
    started.call.cancel()


def test_a_server_that_drains_lets_its_streams_be_steered(start):
    server = start()
    started = Started(server, 5).until(5)
    server.server.interceptor.draining = True
    assert refusal(lambda: server.read(text="O")).reason == "DRAINING"
    started.control(grant={"tokens": 100})
    assert started.rest().end.finish_reason == g.FINISH_REASON_LENGTH
