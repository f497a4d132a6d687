"""What the client's conversation makes of a call whose answers were lost, whatever the server did of it."""

from __future__ import annotations

import queue

import pytest

from conversing import PROMPT, SEED, START, plain, transcript
from gruve.client import InvalidRequest
from gruve.client.steering import Steering
from gruve.v1 import generation_pb2 as g

Request = g.ConverseRequest


def carry(steering, server, take):
    """Carries one call to its end; `take` gets every message, and what the client then wants to send is sent."""
    requests = queue.SimpleQueue()
    for message in steering.first_messages():
        requests.put(message)
    for response in server.generation.Converse(iter(requests.get, None), timeout=60):
        take(response)
        while steering.outgoing:
            requests.put(steering.outgoing.popleft())
    requests.put(None)


@pytest.mark.parametrize("received", [0, 1], ids=["nothing", "the start"])
@pytest.mark.parametrize(
    "controls",
    [
        [("stop", None)],
        [("insert", "O"), ("stop", None)],
        [("insert", "O"), ("change", {"seed": 8}), ("insert", "\n"), ("stop", None)],
        [("change", {"seed": 8}), ("insert", "O"), ("rewind", {}), ("stop", None)],
    ],
    ids=lambda controls: " ".join(kind for kind, _ in controls),
)
def test_a_stop_whose_answer_was_lost_comes_after_the_controls_before_it(server, controls, received):
    encode = server.host("tiny").model.tokenizer.encode
    session = server.create()
    asked = g.GenerateRequest(session_id=session, generation_id="a", text=PROMPT, sampling=SEED, max_tokens=60)
    steering = Steering(asked, window=None, credit=0)
    said, answers, tokens = {}, [], {}
    messages = {
        "stop": lambda _: Request(stop={}),
        "insert": lambda text: Request(insert_prompt={"text": text}),
        "change": lambda sampling: Request(change_parameters={"sampling": sampling}),
        "rewind": lambda _: Request(rewind={"to_position": START}),
    }
    for kind, value in controls:
        said[steering.send(messages[kind](value))] = (kind, value)
    lost = []
    carry(steering, server, lambda response: (lost.append(response), len(lost) <= received and steering.take(response)))
    assert lost[-1].tokens.end.finish_reason == g.FINISH_REASON_CANCELLED

    def take(response):
        chunk = steering.take(response)
        if chunk is not None and chunk.answer is not None:
            kind, value = said.pop(chunk.answer.control_id)
            answers.append((kind, chunk.answer.position, value))
        elif chunk is not None:
            tokens.update(enumerate(chunk.token_ids, chunk.position))

    carry(steering, server, take)
    assert not said
    assert steering.end.finish_reason == g.FINISH_REASON_CANCELLED
    assert [kind for kind, *_ in answers] == [kind for kind, _ in controls]
    assert transcript(server, session) == plain(server, answers, SEED, 60, encode)


@pytest.mark.parametrize(
    ("window", "credit"), [(0, None), (-1, None), (2**40, None), ("5", None), (None, -1), (None, 0.5)]
)
def test_a_window_or_credit_that_no_conversation_can_have_is_refused(window, credit):
    with pytest.raises(InvalidRequest, match=r"must be a whole number from [01] to 65536"):
        Steering(g.GenerateRequest(model="tiny"), window, credit)


@pytest.mark.parametrize("tokens", [0, -3, 2.5, 65_537])
def test_a_grant_of_nothing_is_refused(tokens):
    steering = Steering(g.GenerateRequest(model="tiny"), window=None, credit=0)
    with pytest.raises(InvalidRequest, match="tokens"):
        steering.grant(tokens)
