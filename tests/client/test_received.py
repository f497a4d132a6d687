"""A stream whose tokens are not those of its receipt is refused, however the loss came about."""

from __future__ import annotations

import pytest

from gruve.client import StreamCorrupted
from gruve.client.messages import generate_request
from gruve.client.resume import Resumption
from gruve.receipt.token_hash import TokenHash
from gruve.v1 import generation_pb2

TOKENS = [7, 8, 9, 7, 7, 1]
BEGIN = 4


def message(position: int, ids: list[int], **fields) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(position=position, token_ids=ids, text="x" * len(ids), **fields)


def stream_of(pieces: list[list[int]]) -> list[generation_pb2.GenerateResponse]:
    """The messages of a server that generated `TOKENS`, with positions that fit together whatever the pieces are."""
    rolling = TokenHash()
    rolling.add(BEGIN, TOKENS)
    receipt = {"start_position": BEGIN, "next_position": BEGIN + len(TOKENS), "tokens_sha256": rolling.digest()}
    end = {"finish_reason": generation_pb2.FINISH_REASON_LENGTH, "next_position": BEGIN + len(TOKENS)}
    messages, position = [message(BEGIN, [], start={"generation_id": "g"})], BEGIN
    for piece in pieces:
        messages.append(message(position, piece))
        position += len(piece)
    return [*messages, message(position, [], end={**end, "receipt": receipt})]


def receive(messages: list[generation_pb2.GenerateResponse]) -> Resumption:
    resumption = Resumption(generate_request("abc", "m", None, False, {}))
    for each in messages:
        resumption.receive(each)
    return resumption


@pytest.mark.parametrize("pieces", [[TOKENS], [TOKENS[:1], TOKENS[1:4], TOKENS[4:]]])
def test_the_tokens_that_were_generated_pass_however_they_are_cut(pieces):
    stream = receive(stream_of(pieces))
    assert stream.finish_reason == "length"
    assert stream.received.generated(stream.end.receipt) == TOKENS


@pytest.mark.parametrize(
    "pieces",
    [[TOKENS[:2], TOKENS[3:]], [TOKENS[:2], TOKENS[:2], TOKENS[2:]], [TOKENS[:2], [0], TOKENS[3:]], [TOKENS[::-1]], []],
    ids=["lost", "repeated", "altered", "reordered", "nothing"],
)
def test_other_tokens_are_refused_even_if_their_positions_fit(pieces):
    with pytest.raises(StreamCorrupted, match="lost, repeated or altered"):
        receive(stream_of(pieces))


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("times", [0, 2])
def test_a_message_that_is_dropped_or_doubled_is_refused(at, times):
    messages = stream_of([TOKENS[:2], TOKENS[2:4], TOKENS[4:]])
    with pytest.raises(StreamCorrupted):
        receive([*messages[:at], *[messages[at]] * times, *messages[at + 1 :]])


def test_a_stream_that_began_in_the_middle_cannot_be_checked():
    messages = stream_of([TOKENS])
    messages[0].position = messages[1].position = BEGIN + 2
    del messages[1].token_ids[:2]
    assert receive(messages).finish_reason == "length"
