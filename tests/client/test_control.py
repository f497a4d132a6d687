"""Generations that another client steers: what its methods answer, and that the reader still has one stream."""

from __future__ import annotations

import asyncio

import pytest

from conversing import PROMPT, SEED, START, alone, plain
from gruve.bench.chaos.replicas import free_port
from gruve.client import AsyncClient, Client, GenerationUnknown, InvalidRequest, PositionMismatch, Reconnect
from gruve.client.steering import Steering
from gruve.v1 import generation_pb2 as g

OPTIONS = {"seed": 5, "max_tokens": 40}


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def encode(server):
    return server.host("tiny").model.tokenizer.encode


def held(client, **fields):
    """A conversation with credit for five tokens, which are read; its tokens by position; and its control."""
    conversation = client.converse(PROMPT, **{"model": "tiny", **fields}, window=None, credit=5, **OPTIONS)
    tokens = {}
    while len(tokens) < 5:
        keep(tokens, next(conversation))
    start = conversation.start
    return conversation, tokens, client.control(start.generation_id, session_id=start.session_id, timeout_s=20)


def keep(tokens, chunk):
    if chunk.answer is not None:
        for at in [at for at in tokens if at >= chunk.answer.position]:
            del tokens[at]
    tokens.update(enumerate(chunk.token_ids, chunk.position))


def test_each_method_steers_a_stream_that_another_call_reads(server, client, encode):
    conversation, tokens, control = held(client, new_session=True)
    assert control.pause().position == START + 5
    assert control.change(temperature=0.5).position == START + 5
    assert control.insert("O").position == START + 5
    assert control.rewind(START + 3, seed=8).position == START + 3
    assert control.resume().position == START + 3
    control.grant(10)  # fewer than there may be, so that the generation is still running
    assert control.stop().position in range(START + 3, START + 41)
    for chunk in conversation:
        keep(tokens, chunk)
    assert conversation.finish_reason == "cancelled"
    assert list(tokens) == list(range(START, conversation.end.next_position))


def test_the_reader_has_the_tokens_that_the_controls_of_others_ask_for(client, server, encode):
    conversation, tokens, control = held(client)
    applied = [
        ("change", control.change(temperature=0.5).position, {"temperature": 0.5}),
        ("rewind", control.rewind(START + 2, seed=8).position, {"seed": 8}),
        ("insert", control.insert("thou").position, "thou"),
    ]
    conversation.grant(100)
    answers = []
    for chunk in conversation:
        keep(tokens, chunk)
        answers += [chunk.answer] if chunk.answer else []
    whole = plain(server, applied, SEED, 40, encode)
    assert list(tokens.values()) == whole[START : START + 2] + whole[START + 2 + len(encode("thou")) :]
    assert [(answer.control_id, answer.position) for answer in answers] == [(0, at) for _, at, _ in applied]


def test_after_a_handover_the_next_server_gets_the_controls_of_other_clients(start, encode):
    first, second = start(drain_s=0.0), start()
    with Client([first.address, second.address], reconnect=Reconnect(backoff_s=0.01)) as client:
        conversation, tokens, control = held(client)
        applied = [
            ("change", control.change(temperature=0.5).position, {"temperature": 0.5}),
            ("rewind", control.rewind(START + 2, seed=8).position, {"seed": 8}),
        ]
        answered = 0
        while answered < 2:
            keep(tokens, chunk := next(conversation))
            answered += chunk.answer is not None
        first.close()
        conversation.grant(100)
        for chunk in conversation:
            keep(tokens, chunk)
        assert list(tokens.values()) == plain(second, applied, SEED, 40, encode)[START:]


def test_the_async_client_steers_too(server):
    async def converse():
        async with AsyncClient(server.address) as client:
            conversation = client.converse(PROMPT, model="tiny", window=None, credit=5, **OPTIONS)
            await anext(conversation)
            control = client.control(conversation.start.generation_id)
            at = (await control.pause()).position
            assert (await control.resume()).position == at
            await control.grant(100)
            return [token async for chunk in conversation for token in chunk.token_ids]

    tokens = asyncio.run(converse())
    assert tokens == alone(server).tokens[-len(tokens) :]


def test_a_refused_control_is_an_exception(client):
    _conversation, _, control = held(client)
    with pytest.raises(PositionMismatch, match=r"rewind.to_position is 99"):
        control.rewind(99)
    with pytest.raises(InvalidRequest, match=r"control.sampling.top_p: 2.0"):
        control.change(top_p=2.0)
    with pytest.raises(TypeError, match="temprature"):
        control.change(temprature=1.0)
    with pytest.raises(GenerationUnknown):
        client.control("none").pause()


def test_of_several_servers_the_one_that_streams_the_generation_is_found(start):
    idle, streaming = start(), start()
    with Client(streaming.address) as reader, Client([idle.address, streaming.address]) as other:
        conversation, _, _ = held(reader)
        id_ = conversation.start.generation_id
        assert other.control(id_).pause().position == START + 5
        other.control(id_).grant(1)
        other.control(id_).resume()
        assert sum(len(next(conversation).token_ids) for _ in range(3)) == 1
    with Client([f"127.0.0.1:{free_port()}", streaming.address]) as other, Client(streaming.address) as reader:
        conversation, _, _ = held(reader)
        assert other.control(conversation.start.generation_id, timeout_s=20).pause().position == START + 5


def tokens_message(position, count, **fields):
    return g.ConverseResponse(tokens=g.GenerateResponse(position=position, token_ids=[7] * count, **fields))


@pytest.mark.parametrize(
    ("control", "kept"),
    [
        (g.ConverseRequest(resume={}), True),
        (g.ConverseRequest(pause={}), True),
        (g.ConverseRequest(change_parameters={"sampling": {"temperature": 0.5}}), True),
        (g.ConverseRequest(rewind={"to_position": START + 20}), False),
    ],
)
def test_a_prompt_stays_in_the_receipt_file_when_a_control_takes_effect_where_it_begins(control, kept):
    steering = Steering(g.GenerateRequest(model="tiny", generation_id="g"))
    steering.first_messages()
    start = g.GenerationStart(generation_id="g", start_position=START)
    steering.take(tokens_message(START, 20, start=start))
    prompt = {"ids": [9, 8, 4]}
    for said, inserted in ((g.ConverseRequest(insert_prompt={"tokens": prompt}), prompt), (control, None)):
        applied = g.ControlApplied(control_id=steering.send(said), position=START + 20, inserted=inserted)
        steering.take(g.ConverseResponse(control_applied=applied))
    assert steering.inserted == ({START + 20: (9, 8, 4)} if kept else {})


def test_a_control_of_others_that_falls_into_a_catch_up_begins_another_call():
    start = g.GenerationStart(generation_id="g", session_id="s", prompt_position=1, start_position=START)
    steering = Steering(g.GenerateRequest(model="tiny", generation_id="g"))
    steering.first_messages()
    steering.take(tokens_message(START, 20, start=start))
    lost = steering.send(g.ConverseRequest(change_parameters={"sampling": {"temperature": 0.5}}))
    assert [m.WhichOneof("message") for m in steering.first_messages()] == ["start", "rewind", "pause", "grant"]
    steering.take(tokens_message(START + 19, 0, start=start))
    change = g.ConverseRequest(change_parameters={"sampling": {"temperature": 0.1}})
    applied = g.ControlApplied(control_id=lost, position=START + 10, control=change)
    chunk = steering.take(g.ConverseResponse(control_applied=applied))
    assert (chunk.answer.control_id, chunk.answer.position) == (0, START + 10)
    assert steering.must_call_again
    begun, rewind, again, pause, _ = steering.first_messages()
    assert begun.start.generate.from_position == rewind.rewind.to_position <= START + 10
    assert (again.at_position, again.change_parameters) == (START + 10, change.change_parameters)
    assert pause.at_position == START + 10
    assert not steering.must_call_again
