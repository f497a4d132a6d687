"""Receipts: what a server says about a generation is what anyone else computes from it."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from gruve.client import Client, StreamCorrupted
from gruve.decode.choose import DecodeConfig, choose_backend
from gruve.receipt.file import ReceiptFile
from gruve.sessions.receipts import parse_receipt
from gruve.sessions.table import SessionsConfig
from gruve.sessions.verification import Evidence, Verdict, verify
from gruve.v1 import session_pb2 as p
from lying_proxy import LyingProxy
from serving import PATIENCE_S, first, read, until
from session_calls import fork, stop

MODELS = ("abc", "tiny")


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address) as client:
        yield client


def check(server, name: str, file: ReceiptFile, context: list[int], **changed) -> Verdict:
    """What a machine that has never seen the server says."""
    model = server.host(name).model
    receipt = dataclasses.replace(parse_receipt(ReceiptFile.parse(json.dumps(file.to_json())).receipt), **changed)
    evidence = Evidence(context, file.inserted_token_ids, file.token_ids)
    assert evidence.matches_prompt(receipt)
    return verify(receipt, evidence, model, choose_backend(model, DecodeConfig("cpu", 1)))


def steered(client: Client, model: str, dice: random.Random):
    """A conversation of random parameters, with random controls at random times, read to its end."""
    options = {
        "seed": dice.getrandbits(64),
        "temperature": dice.choice([0.0, 0.7, 1.3]),
        "top_p": dice.choice([1.0, 0.8]),
        "repetition_penalty": dice.choice([1.0, 1.2]),
        "max_tokens": dice.randint(20, 60),
        "min_tokens": dice.randint(0, 20),
        "stop": dice.choice([[], ["ab"], ["|", "e"]]),
        "max_tokens_per_message": dice.randint(1, 9),
        "echo": dice.random() < 0.5,
    }
    with client.converse([5, 3, 2], model=model, window=64, timeout_s=PATIENCE_S, **options) as stream:
        for chunk in stream:
            act, start = dice.randint(0, 12), stream.start.start_position
            if act == 0:
                stream.change(temperature=dice.random() * 2, seed=dice.getrandbits(64))
            elif act == 1:
                stream.insert([dice.randint(2, 9) for _ in range(dice.randint(1, 5))])
            elif act == 2:
                stream.rewind(dice.randint(start, max(start, chunk.position)), seed=dice.choice([None, 7]))
            elif act == 3:
                stream.pause()
                stream.change(top_k=dice.randint(1, 5))
                stream.resume()
            elif act == 4 and dice.random() < 0.2:
                stream.stop()
    return stream


@pytest.mark.parametrize("seed", range(24))
def test_a_generation_with_random_controls_is_recomputed_from_its_receipt(server, client, seed):
    dice = random.Random(seed)
    name = dice.choice(MODELS)
    file = steered(client, name, dice).receipt()
    assert check(server, name, file, [0, 5, 3, 2]) == Verdict(True)


def test_a_token_that_was_altered_is_found_at_its_position(server, client):
    with client.generate([5, 3], model="tiny", max_tokens=40, ignore_eos=True, seed=1) as stream:
        assert stream.text()
    file = stream.receipt()
    tokens = list(file.token_ids)
    tokens[17] ^= 1
    verdict = check(server, "tiny", dataclasses.replace(file, token_ids=tuple(tokens)), [0, 5, 3])
    assert (verdict.identical, verdict.position) == (False, file.receipt["start_position"] + 17)
    without = dataclasses.replace(file, token_ids=None)
    assert check(server, "tiny", without, [0, 5, 3]).identical
    assert check(server, "tiny", without, [0, 5, 3], tokens_sha256=bytes(32)) == Verdict(
        False, None, "the tokens have another hash than the receipt says"
    )


def test_a_token_after_an_inserted_prompt_is_recomputed_if_this_model_has_computed_it(server, client):
    with client.converse([5, 3], model="tiny", window=8, max_tokens=40, ignore_eos=True, seed=1) as stream:
        for number, _ in enumerate(stream):
            if number == 0:
                stream.insert([2, 4, 6, 8])
    file = stream.receipt()
    (change,) = file.receipt["changes"]
    computed_from = change["position"] + change["inserted"]
    tokens = list(file.token_ids)
    tokens[change["position"] - file.receipt["start_position"]] ^= 1  # the first one after the prompt
    altered = dataclasses.replace(file, token_ids=tuple(tokens))
    assert check(server, "tiny", altered, [0, 5, 3], computed_from=computed_from).position == computed_from
    assert check(server, "tiny", file, [0, 5, 3], computed_from=computed_from) == Verdict(True)


@pytest.mark.parametrize(
    "altered",
    [{"seed": 2}, {"temperature": 0.5}, {"top_k": 1}, {"logit_bias": ((5, 20.0),)}],
    ids=lambda a: next(iter(a)),
)
def test_another_seed_or_parameter_gives_other_tokens(server, client, altered):
    with client.generate([5, 3], model="tiny", max_tokens=60, ignore_eos=True, seed=1) as stream:
        stream.text()
    file = stream.receipt()
    sampling = dataclasses.replace(parse_receipt(file.receipt).sampling, **altered)
    assert check(server, "tiny", file, [0, 5, 3], sampling=sampling).position is not None


@pytest.mark.parametrize("altered", [{"max_tokens": 41}, {"max_tokens": 39}, {"next_position": 42}])
def test_another_end_is_found(server, client, altered):
    with client.generate([5, 3], model="tiny", max_tokens=40, ignore_eos=True, seed=1) as stream:
        stream.text()
    assert not check(server, "tiny", stream.receipt(), [0, 5, 3], **altered).identical


def test_a_receipt_is_the_same_after_a_cut_and_after_a_later_generation(server):
    whole = server.read(text="ab", max_tokens=50, ignore_eos=True, sampling={"seed": 9}).end.receipt
    session, request = server.create(), {"generation_id": "g", "max_tokens": 50, "ignore_eos": True}
    call = server.generate(session_id=session, text="ab", sampling={"seed": 9}, **request, max_tokens_per_second=90)
    first(call, 3)
    call.cancel()
    resumed = server.read(session_id=session, **request).end.receipt
    assert resumed == whole
    server.read(session_id=session, max_tokens=5, ignore_eos=True)
    assert read(server.generate(session_id=session, **request)).end.receipt == whole


def test_a_receipt_counts_the_whole_session_as_the_prompt(server):
    session = server.create()
    with Client(server.address) as client:
        for prompt in ("ab", "cd"):
            stream = client.generate(prompt, session_id=session, max_tokens=9, ignore_eos=True, seed=3)
            stream.text()
        ids = list(client.get_session(session).token_ids)
    file = stream.receipt()
    assert check(server, "tiny", file, ids[: file.receipt["start_position"]]).identical


def drop(messages):
    return (message for number, message in enumerate(messages) if number != 5)


def double(messages):
    for number, message in enumerate(messages):
        yield from [message] * (2 if number == 5 else 1)


def drop_and_renumber(messages):
    lost = 0
    for number, message in enumerate(messages):
        if number == 5:
            lost = len(message.token_ids)
            continue
        message.position -= lost
        yield message


def double_and_renumber(messages):
    more = 0
    for number, message in enumerate(messages):
        message.position += more
        yield message
        if number == 5:
            more = len(message.token_ids)
            message.position += more
            yield message


def alter(messages):
    for number, message in enumerate(messages):
        if number == 5:
            message.token_ids[0] ^= 1
        yield message


LIES = [drop, double, drop_and_renumber, double_and_renumber, alter]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_client_behind_a_lying_proxy_gets_an_error_instead_of_other_tokens(server, lie):
    proxy = LyingProxy(server.address, lie)
    try:
        with Client(proxy.address) as client, pytest.raises(StreamCorrupted, match="lost, repeated or altered"):
            client.generate(
                "ab", model="tiny", max_tokens=40, max_tokens_per_message=2, ignore_eos=True, timeout_s=20
            ).text()
    finally:
        proxy.close()


def ends_alike(server, session: str, **asked) -> Verdict:
    """What a generation's receipt is worth to a machine that has never seen the server, with the record's prompt."""
    with Client(server.address) as client:
        stream = client.generate(session_id=session, **asked)
        stream.text()
        ids = list(client.get_session(session).token_ids)
    file = stream.receipt()
    assert file.receipt["next_position"] == len(ids)
    return check(server, "tiny", file, ids[: file.receipt["start_position"]])


def cut(server, session: str, **asked) -> None:
    """Begins a generation and cancels its stream after some tokens."""
    call = server.generate(session_id=session, max_tokens_per_second=90, **asked)
    first(call, 3)
    call.cancel()
    until(lambda: not server.session(session).in_use)


ASKED = {"generation_id": "g", "text": "ab", "max_tokens": 50, "ignore_eos": True}
CUT = {"max_tokens": 50, "ignore_eos": True, "generation_id": "g"}


def test_a_branch_finishes_a_generation_with_the_same_receipt_and_goes_on_with_its_own_seed(server):
    session = server.create()
    cut(server, session, sampling={"seed": 9}, **ASKED)
    (branch,) = fork(server, session, 5)
    assert ends_alike(server, branch.id, **CUT) == ends_alike(server, session, **CUT) == Verdict(True)
    assert server.read(session_id=session, **CUT).end.receipt == server.read(session_id=branch.id, **CUT).end.receipt
    assert ends_alike(server, branch.id, max_tokens=20, ignore_eos=True) == Verdict(True)
    assert ends_alike(server, session, max_tokens=20, ignore_eos=True) == Verdict(True)


def test_a_receipt_is_the_same_after_a_restart_in_the_middle_and_after_one_at_the_end(start, sqlite):
    server = start(store=sqlite)
    whole = server.read(text="ab", max_tokens=50, ignore_eos=True, sampling={"seed": 9}).end.receipt
    session = server.create()
    cut(server, session, sampling={"seed": 9}, **ASKED)
    stop(server)
    server = start(store=sqlite)
    assert ends_alike(server, session, **CUT) == Verdict(True)
    assert server.read(session_id=session, **CUT).end.receipt == whole
    stop(server)
    server = start(store=sqlite)
    assert server.read(session_id=session, **CUT).end.receipt == whole


def test_a_receipt_is_the_same_after_its_session_was_evicted_and_came_back(start, sqlite):
    small = start(store=sqlite, sessions=SessionsConfig(budget_bytes=1), slots=32)
    whole = small.read(text="ab", max_tokens=50, ignore_eos=True, sampling={"seed": 9}).end.receipt
    session = small.create()
    cut(small, session, sampling={"seed": 9}, **ASKED)
    until(lambda: small.session(session).location == p.SESSION_LOCATION_STORE)
    assert ends_alike(small, session, **CUT) == Verdict(True)
    until(lambda: small.session(session).location == p.SESSION_LOCATION_STORE)
    assert small.read(session_id=session, **CUT).end.receipt == whole
    until(lambda: small.session(session).location == p.SESSION_LOCATION_STORE)
    assert ends_alike(small, session, prompt="cd", max_tokens=9, ignore_eos=True, seed=4) == Verdict(True)
