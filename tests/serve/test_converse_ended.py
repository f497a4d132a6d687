"""How a Converse stream ends and is resumed: lost calls, takeovers, deadlines, a server that closes or is killed."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversing import PROMPT, SEED, START, Talk, alone, plain, talk
from gruve.v1 import generation_pb2 as g
from gruve.v1 import generation_pb2_grpc
from server_process import Process
from serving import HELD, broken, read

WAITS = ["running", "without credit", "paused"]


def waiting_talk(server, how, **fields):
    """A conversation of a session that has sent three tokens and runs, waits for credit, or is paused."""
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


def stopped_before_its_first_token(server):
    """What resumes a generation that a `stop` has ended before its first token."""
    asked = {"session_id": server.create(), "generation_id": "a"}
    conversation = talk(server, 0, **asked)
    conversation.say(stop={})
    assert conversation.rest().end.next_position == START
    return asked


def test_a_stopped_generation_goes_on_from_its_end_after_a_rewind(server):
    again = talk(server, 0, **stopped_before_its_first_token(server))
    assert again.position(again.say(rewind={"to_position": START})) == START
    again.grant(100)
    assert list(again.rest().tokens.values()) == alone(server).tokens


def test_a_call_without_credit_ends_after_its_first_message(server):
    asked = stopped_before_its_first_token(server)
    again = talk(server, 0, **asked)
    start = again.read()
    assert start.tokens.HasField("start")
    assert not start.tokens.HasField("end")
    again.grant(1)
    assert again.rest().finish == "CANCELLED"
    assert server.session(asked["session_id"]).position == START


def test_a_call_without_credit_ends_when_its_client_hangs_up(server):
    again = talk(server, 0, **stopped_before_its_first_token(server))
    again.hang_up()
    assert again.rest().finish == "CANCELLED"


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


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_finished_generation_that_is_read_in_part_stays_as_it_is(server, later, logprobs):
    session = server.create()
    asked = {"session_id": session, "generation_id": "a", "text": PROMPT, "sampling": SEED, "max_tokens": 60}
    whole = server.read(**asked, logprobs=2)
    if later:
        server.read(session_id=session, generation_id="b", max_tokens=20)
    position = server.session(session).position
    conversation = Talk(server).begin(10, **asked, logprobs=logprobs)
    conversation.hang_up()
    while conversation.read() is not None:
        pass
    assert conversation.sent == 10
    assert conversation.end.finish_reason == g.FINISH_REASON_CANCELLED
    assert conversation.end.next_position == START + 10
    assert server.session(session).position == position
    again = server.read(**asked, logprobs=2)
    assert (again.tokens, again.reason, again.logprobs) == (whole.tokens, "LENGTH", whole.logprobs)


@pytest.mark.parametrize("how", WAITS)
def test_a_server_that_closes_hands_over(start, how):
    server = start()
    conversation, _ = waiting_talk(server, how)
    server.close()
    _, failure = broken(lambda: iter(conversation))
    assert (failure.reason, failure.metadata["next_position"]) == ("HANDED_OVER", str(START + conversation.sent))
    assert conversation.finish == "HANDED_OVER"


@pytest.mark.parametrize("sent", [0, 1, 30])
def test_a_killed_servers_steered_stream_goes_on_bit_for_bit_after_its_restart(tiny_repository, tmp_path, server, sent):
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
    whole = plain(server, applied, SEED, 200, server.host("tiny").model.tokenizer.encode)
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
