"""A stream whose tokens are not those of its receipt is refused, however the loss came about."""

from __future__ import annotations

import pytest

from gruve.client import StreamCorrupted
from gruve.client.messages import generate_request
from gruve.client.received import ReceivedTokens
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


def receipt_of(tokens: dict[int, int], changes: list[tuple[int, int]], end: int) -> generation_pb2.Receipt:
    """The receipt of generated tokens by position, among prompts that controls inserted."""
    rolling = TokenHash()
    for position, token in tokens.items():
        rolling.add(position, [token])
    inserted = [{"position": position, "inserted": size} for position, size in changes]
    return generation_pb2.Receipt(
        start_position=BEGIN, next_position=end, tokens_sha256=rolling.digest(), changes=inserted
    )


@pytest.mark.parametrize("echo", [True, False])
def test_tokens_around_prompts_are_those_of_the_receipt_whether_or_not_prompts_are_sent(echo):
    received = ReceivedTokens()
    received.began = BEGIN
    prompts = {4: 50, 7: 51, 8: 52}
    tokens = {5: 1, 6: 2, 9: 3, 10: 4, 11: 5}
    for position, token in sorted((tokens | prompts if echo else tokens).items()):
        received.add(position, [token])
    receipt = receipt_of(tokens, [(4, 1), (7, 2), (10, 0)], 12)
    assert received.generated(receipt) == [1, 2, 3, 4, 5]
    received.check(receipt)
    with pytest.raises(StreamCorrupted, match="the tokens from 4 to 11 have the hash"):
        received.check(receipt_of(tokens | {11: 6}, [(4, 1), (7, 2), (10, 0)], 12))
    longer = receipt_of(tokens | {12: 6}, [(4, 1), (7, 2)], 13)
    assert received.generated(longer) is None
    with pytest.raises(StreamCorrupted, match="not all tokens from 9 to 12 arrived"):
        received.check(longer)


def test_tokens_that_a_control_has_replaced_are_forgotten():
    received = ReceivedTokens()
    for position, tokens in ((4, [1, 2, 3]), (10, [4, 5]), (20, [6])):
        received.add(position, tokens)
    received.cut(11)
    assert received.generated(receipt_of({}, [(7, 3)], 11)) == [1, 2, 3, 4]
    received.cut(5)
    received.add(5, [9])
    assert received.generated(receipt_of({}, [], 6)) == [1, 9]
    assert received.generated(receipt_of({}, [], 7)) is None
