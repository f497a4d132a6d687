"""Conversations: a control takes effect exactly at its position, and changes nothing else."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversing import LONG, SEED, START, alone, plain, talk, transcript
from gruve.v1 import generation_pb2 as g
from serving import HELD, until


@pytest.fixture(scope="module")
def encode(server):
    return server.host("tiny").model.tokenizer.encode


@pytest.fixture(scope="module")
def busy(server):
    """Other streams in the batch, in changing number."""
    enough = threading.Event()

    def load(seed):
        while not enough.is_set():
            server.read(text="O", max_tokens=100 + 50 * seed, sampling={"seed": seed})

    threads = [threading.Thread(target=load, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    yield
    enough.set()
    for thread in threads:
        thread.join()


VALUES = {
    "change": st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0.0, 0.5, 1.5]),
            "seed": st.integers(0, 9),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
        },
    ),
    "insert": st.sampled_from(["O", "\nROMEO:\n", "thou art "]),
    "rewind": st.sampled_from([{}, {"seed": 77}]),
    "pause": st.none(),
    "stop": st.none(),
}
KINDS = ["change", "change", "insert", "rewind", "pause", "stop"]
CONTROLS = st.lists(
    st.sampled_from(KINDS).flatmap(
        lambda kind: st.tuples(
            st.just(kind), VALUES[kind], st.integers(1, 12), st.one_of(st.none(), st.integers(-8, 20))
        )
    ),
    max_size=6,
)


def say(conversation, kind, value, at):
    match kind:
        case "change":
            return conversation.change(at, **value)
        case "insert":
            return conversation.insert(value, at)
        case "rewind":
            return conversation.say(rewind={"to_position": at, **value})
        case "pause":
            return conversation.say(at_position=at, pause={})
    return conversation.say(at_position=at, stop={})


def step(conversation, said):
    """Reads a message and resumes a paused stream; False at the end of the call."""
    message = conversation.read()
    if message is not None and said.get(message.control_applied.control_id, ("",))[0] == "pause":
        conversation.say(resume={})
    return message is not None


@pytest.mark.parametrize("examples", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_any_controls_are_what_they_are_one_by_one(server, busy, encode, examples):
    given_controls = given(CONTROLS, st.sampled_from([0, 3, 256]), st.booleans(), st.booleans(), st.booleans())
    settings(max_examples=examples)(given_controls(controls_are_what_they_are))(server, encode)


def controls_are_what_they_are(server, encode, controls, credit, echo, kept, logprobs):
    source = {"new_session": g.NewSession(model="tiny")} if kept else {}
    fields = {"echo": echo, "logprobs": 1 if logprobs else None, **source}
    conversation, said = talk(server, credit, **fields), {}
    for kind, value, after, at in controls:
        if credit:
            conversation.grant(after)
            upto = conversation.sent + after
            while conversation.sent < upto and step(conversation, said):
                pass
        here = max(conversation.tokens, default=START) + 1
        position = None if at is None else max(0, here + at)
        if kind == "rewind":
            position = here - 1 if at is None else max(START, here - abs(at))
        said[say(conversation, kind, value, position)] = (kind, value)
    conversation.grant(2_000)
    while step(conversation, said):
        pass
    applied = [
        (said[i][0], answer.position, said[i][1])
        for i, answer in conversation.answers.items()
        if i in said and isinstance(answer, g.ControlApplied)
    ]
    whole = plain(server, applied, SEED, 40, encode)
    for position, token in conversation.tokens.items():
        assert token == whole[position], (position, applied)
    assert conversation.end.next_position == len(whole), applied
    if kept:
        assert transcript(server, conversation.start.session_id) == whole


def test_never_a_token_more_than_granted_is_sent_or_computed(start):
    server = start()
    conversation = talk(server, 7, new_session=g.NewSession(model="tiny")).until(7)
    session = conversation.start.session_id
    until(lambda: server.session(session).position == START + 7 and server.host("tiny").engine.load == 0)
    conversation.grant(3)
    until(lambda: server.session(session).position == START + 10 and server.host("tiny").engine.load == 0)
    conversation.say(stop={})
    assert conversation.rest().sent == 10
    assert conversation.finish == "CANCELLED"


def test_a_resume_also_ends_a_pause_that_waits_for_the_end_of_an_inserted_prompt(server):
    conversation = talk(server, 20, echo=True).until(20)
    begin = conversation.position(conversation.insert("thou art"))
    conversation.grant(2)
    conversation.until(22)
    pause, resume = conversation.say(pause={}), conversation.say(resume={})
    assert conversation.position(pause) == conversation.position(resume) == begin + 2
    conversation.grant(200)
    assert conversation.rest().finish == "LENGTH"


def test_every_echoed_token_uses_credit_and_a_skipped_one_none(server):
    conversation = talk(server, 3, echo=True).until(3)
    conversation.grant(2)
    assert list(conversation.until(5).tokens) == [1, 2, 3, 4, 5]
    conversation.hang_up()
    assert (conversation.rest().sent, conversation.finish, conversation.end.next_position) == (5, "CANCELLED", START)
    skipping = talk(server, 4, from_position=START + 10).until(4)
    assert list(skipping.tokens) == [START + 10 + i for i in range(4)]


@pytest.mark.parametrize("how", ["without credit", "paused"])
def test_a_waiting_client_does_not_slow_others(start, how):
    server = start(slots=1, waiting=0)
    conversation = talk(server, 2).until(2)
    if how == "paused":
        assert conversation.position(conversation.say(pause={})) == START + 2
        conversation.grant(100)
    until(lambda: server.host("tiny").engine.load == 0)
    assert server.read(text="O", max_tokens=9).reason == "LENGTH"
    if how == "paused":
        assert conversation.position(conversation.say(resume={})) == START + 2
    conversation.grant(100)
    assert list(conversation.rest().tokens.values()) == alone(server).tokens


def test_who_comes_back_finds_no_queue_too_full(start):
    server = start(slots=1, waiting=0)
    conversation = talk(server, max_tokens=LONG, max_tokens_per_second=50).until(1)
    change = conversation.change(temperature=0.5)
    assert conversation.position(change) >= START + 1


def test_a_client_that_closes_its_side_gets_what_it_has_granted(server):
    conversation = talk(server, 9)
    conversation.hang_up()
    assert list(conversation.rest().tokens.values()) == alone(server, max_tokens=9).tokens
    assert (conversation.finish, conversation.end.next_position) == ("CANCELLED", START + 9)
    whole = talk(server, 40)
    whole.hang_up()
    assert whole.rest().finish == "LENGTH"


def test_a_client_that_pauses_and_closes_its_side_ends_the_generation(server):
    conversation = talk(server, 100, max_tokens_per_second=20).until(1)
    pause = conversation.say(pause={})
    conversation.hang_up()
    assert conversation.position(pause) == conversation.rest().end.next_position
    assert conversation.finish == "CANCELLED"


def test_controls_of_one_position_take_effect_in_the_order_of_arrival(server, encode):
    conversation = talk(server, 2)
    at = START + 5
    first, second = conversation.insert("O", at), conversation.insert("thou", at)
    third = conversation.change(at, temperature=0.0)
    conversation.grant(1_000)
    assert [conversation.position(control) for control in (first, second, third)] == [at, at + 1, at + 5]
    inserted = [list(conversation.answers[control].inserted.ids) for control in (first, second, third)]
    assert inserted == [list(encode("O")), list(encode("thou")), []]
    applied = [("insert", at, "O"), ("insert", at + 1, "thou"), ("change", at + 5, {"temperature": 0.0})]
    whole = plain(server, applied, SEED, 40, encode)
    assert list(conversation.rest().tokens.values()) == whole[START:at] + whole[at + 5 :]


def test_a_position_that_was_sent_is_taken_back(server):
    conversation = talk(server, 30).until(30)
    change = conversation.change(START + 4, seed=9)
    assert conversation.position(change) == START + 4
    conversation.grant(100)
    assert conversation.rest().sent == 30 + 36
    assert list(conversation.tokens) == list(range(START, START + 40))


def test_a_rewind_without_a_seed_repeats_and_with_one_does_not(server):
    whole = alone(server).tokens
    conversation = talk(server, 20).until(20)
    conversation.answer(conversation.say(rewind={"to_position": START}))
    conversation.grant(20)
    assert list(conversation.until(40).tokens.values()) == whole[:20]
    conversation.answer(conversation.say(rewind={"to_position": START, "seed": 6}))
    conversation.grant(100)
    assert list(conversation.rest().tokens.values()) == alone(server, sampling={"seed": 6}).tokens


def test_what_was_finished_but_not_sent_can_be_taken_back(server):
    conversation = talk(server, 30, new_session=g.NewSession(model="tiny"), max_tokens=33).until(30)
    conversation.grant(1)
    change = conversation.change(START + 28, temperature=0.0)
    assert conversation.position(change) == START + 28
    conversation.grant(100)
    assert conversation.rest().finish == "LENGTH"
    assert server.session(conversation.start.session_id).position == START + 33


def test_a_steered_parameter_is_what_the_next_request_inherits(server):
    conversation = talk(server, 10, new_session=g.NewSession(model="tiny")).until(10)
    conversation.answer(conversation.change(temperature=0.25))
    conversation.grant(100)
    session = server.session(conversation.rest().start.session_id)
    assert (session.sampling.temperature, session.sampling.seed) == (0.25, 5)


def test_the_pace_is_kept_however_often_it_is_steered(server):
    conversation = talk(server, 100, max_tokens=LONG, max_tokens_per_second=HELD).until(1)
    for control in [conversation.change(temperature=0.5) for _ in range(20)]:
        assert conversation.position(control) == START + 1
    assert conversation.sent == 1
