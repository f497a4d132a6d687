"""Conversations: what a client says while tokens flow takes effect exactly where it says, and nowhere else."""

from __future__ import annotations

import signal
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversing import PROMPT, SEED, START, R, Talk, plain, transcript
from gruve.sessions.table import SessionsConfig
from gruve.v1 import generation_pb2 as g
from gruve.v1 import generation_pb2_grpc
from server_process import Process
from serving import HELD, broken, read, refusal, until

LONG = 400


def talk(server, credit=None, **fields):
    return Talk(server).begin(credit, **({"text": PROMPT, "sampling": SEED, "max_tokens": 40} | fields))


def alone(server, **fields):
    return server.read(**({"text": PROMPT, "sampling": SEED, "max_tokens": 40} | fields))


@pytest.fixture(scope="module")
def encode(server):
    return server.host("tiny").model.tokenizer.encode


@pytest.fixture(scope="module")
def busy(server):
    """Others who share the batch, more and fewer of them."""
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
    """Reads a message, and lets what is paused go on; False at the end of the call."""
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


def test_every_echoed_token_uses_credit_and_a_skipped_one_none(server):
    conversation = talk(server, 3, echo=True).until(3)
    conversation.grant(2)
    assert list(conversation.until(5).tokens) == [1, 2, 3, 4, 5]
    conversation.hang_up()
    assert (conversation.rest().sent, conversation.finish, conversation.end.next_position) == (5, "CANCELLED", START)
    skipping = talk(server, 4, from_position=START + 10).until(4)
    assert list(skipping.tokens) == [START + 10 + i for i in range(4)]


@pytest.mark.parametrize("how", ["without credit", "paused"])
def test_one_who_waits_costs_others_nothing(start, how):
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


def test_one_who_pauses_and_closes_its_side_has_had_enough(server):
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
    assert conversation.reason(conversation.insert("O" * 60)) == "TRANSCRIPT_FULL"
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
    ([started(65_000), R(pause={}), R(grant={"tokens": 65_536})], "INVALID_FIELD", "not yet used are above 65536"),
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


def test_the_pace_is_kept_however_often_it_is_steered(server):
    conversation = talk(server, 100, max_tokens=LONG, max_tokens_per_second=HELD).until(1)
    for control in [conversation.change(temperature=0.5) for _ in range(20)]:
        assert conversation.position(control) == START + 1
    assert conversation.sent == 1


def test_a_flood_of_controls_is_answered_one_by_one_and_harms_nobody(server):
    conversation = talk(server, 10).until(10)
    controls = [conversation.say(at_position=START + 4 * (i < 1_500), change_parameters={}) for i in range(3_000)]
    assert server.read(text="O", max_tokens=50).reason == "LENGTH"
    assert [conversation.position(c) for c in controls] == [START + 4] * 1_500 + [START] * 1_500
    conversation.grant(100)
    assert list(conversation.rest().tokens.values()) == alone(server).tokens


def test_only_so_many_controls_may_wait(server):
    conversation = talk(server, 5)
    waiting = [conversation.change(START + 30, seed=3) for _ in range(1_024)]
    assert conversation.reason(conversation.change(START + 30, seed=4)) == "INVALID_FIELD"
    conversation.grant(100)
    assert conversation.position(waiting[-1]) == START + 30


WAITS = ["running", "without credit", "paused"]


def waiting_talk(server, how, **fields):
    """A conversation of a session that has sent three tokens and goes on, or waits."""
    credit = 3 if how == "without credit" else 200
    fields = {"session_id": server.create(), "generation_id": "a", "max_tokens": 120} | fields
    conversation = talk(server, credit, max_tokens_per_second=HELD if how == "running" else 1_000, **fields)
    conversation.until(1 if how == "running" else 3)
    if how == "paused":
        conversation.answer(conversation.say(pause={}))
    return conversation, fields["session_id"]


@pytest.mark.parametrize("how", WAITS)
def test_a_lost_call_frees_its_session_and_is_resumed(server, how):
    conversation, session = waiting_talk(server, how)
    sent = dict(conversation.tokens)
    conversation.call.cancel()
    rest = server.read(session_id=session, generation_id="a", from_position=START + len(sent))
    assert list(sent.values()) + rest.tokens == alone(server, max_tokens=120).tokens


@pytest.mark.parametrize("how", WAITS)
def test_a_resume_takes_over(server, how):
    conversation, session = waiting_talk(server, how)
    again = talk(server, 500, session_id=session, generation_id="a", max_tokens=None)
    assert list(again.rest().tokens.values()) == alone(server, max_tokens=120).tokens
    assert broken(lambda: conversation.call)[1].reason == "TAKEN_OVER"


@pytest.mark.parametrize("how", WAITS)
def test_a_deadline_ends_the_call_alone(server, how):
    session = server.create()
    fields = {"session_id": session, "generation_id": "a", "text": PROMPT, "sampling": SEED, "max_tokens": 120}
    conversation = Talk(server, timeout=1.0)
    pace = HELD if how == "running" else 1_000
    conversation.begin(3 if how == "without credit" else 200, **fields, max_tokens_per_second=pace)
    if how == "paused":
        conversation.say(at_position=START + 4, pause={})
    _, failure = broken(lambda: iter(conversation))
    assert failure.code.name == "DEADLINE_EXCEEDED"
    rest = server.read(**fields, from_position=START + len(conversation.tokens))
    assert list(conversation.tokens.values()) + rest.tokens == alone(server, max_tokens=120).tokens


@pytest.mark.parametrize("how", WAITS)
def test_a_server_that_closes_hands_over(start, how):
    server = start()
    conversation, _ = waiting_talk(server, how)
    server.close()
    _, failure = broken(lambda: iter(conversation))
    assert (failure.reason, failure.metadata["next_position"]) == ("HANDED_OVER", str(START + conversation.sent))
    assert conversation.finish == "HANDED_OVER"


@pytest.mark.parametrize("sent", [0, 1, 30])
def test_a_killed_servers_steered_stream_goes_on_bit_for_bit_after_its_restart(
    tiny_repository, tmp_path, server, encode, sent
):
    asked = {"generation_id": "a", "text": PROMPT, "sampling": SEED, "max_tokens": 200}
    stored = ("--store", f"sqlite:{tmp_path}/sessions.db")
    with Process(tiny_repository, *stored) as killed, killed.connect() as channel:
        conversation = Talk(stub=generation_pb2_grpc.GenerationServiceStub(channel))
        conversation.begin(100, new_session=g.NewSession(model="tiny"), max_tokens_per_second=400, **asked).until(40)
        changed = conversation.position(conversation.change(temperature=0.5, repetition_penalty=1.2))
        inserted = conversation.position(conversation.insert("ROMEO:\n"))
        conversation.until(conversation.sent + sent)
        killed.signal(signal.SIGKILL)
    broken(lambda: iter(conversation))
    applied = [("change", changed, {"temperature": 0.5, "repetition_penalty": 1.2}), ("insert", inserted, "ROMEO:\n")]
    whole = plain(server, applied, SEED, 200, encode)
    with Process(tiny_repository, *stored) as again, again.connect() as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        next_position = max(conversation.tokens) + 1
        session = conversation.start.session_id
        rest = read(stub.Generate(g.GenerateRequest(session_id=session, from_position=next_position, **asked)))
    assert (conversation.tokens | dict(enumerate(rest.tokens, rest.end.next_position - len(rest.tokens)))) == {
        at: token for at, token in enumerate(whole) if START <= at < inserted or at >= inserted + 7
    }


STOPS = st.lists(st.sampled_from(["e", "th", " t", "ou", "an", "in", "O\n"]), max_size=3)


@settings(max_examples=40)
@given(
    stop=STOPS,
    inserts=st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["O", "th", "\nROMEO:\n"])), max_size=3),
    echo=st.booleans(),
    min_tokens=st.integers(0, 30),
    data=st.data(),
)
def test_a_steered_generation_resumed_anywhere_has_the_same_tokens_and_text(
    server, stop, inserts, echo, min_tokens, data
):
    asked = {"session_id": server.create(), "generation_id": "a", "stop": stop, "echo": echo, "min_tokens": min_tokens}
    conversation = talk(server, 0, max_tokens_per_message=1, **asked)
    for after, text in inserts:
        conversation.insert(text, START + after)
    conversation.grant(1_000)
    messages = [message.tokens for message in conversation if message.HasField("tokens")]
    position = data.draw(st.integers(1, conversation.end.next_position))
    again = server.read(from_position=position, max_tokens=40, **asked)
    missing = [message for message in messages if message.position >= position]
    assert again.tokens == [token for message in missing for token in message.token_ids]
    assert again.text == "".join(message.text for message in missing)
    assert (again.end.finish_reason, again.end.stop) == (conversation.end.finish_reason, conversation.end.stop)
