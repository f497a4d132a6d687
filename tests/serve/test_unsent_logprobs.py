"""Streams with log-probabilities whose clients do not read: they wait, keep little, and lose nothing by it."""

from __future__ import annotations

import grpc
import pytest

from conversing import Talk
from gruve.engine.sequence import FinishReason
from gruve.serve.streams import stream as stream_module
from gruve.v1 import generation_pb2 as g
from gruve.v1 import generation_pb2_grpc
from server_process import drain
from serving import PATIENCE_S, broken, read, until

ASKED = {"text": "O", "max_tokens": 2_000, "logprobs": 20, "ignore_eos": True, "sampling": {"seed": 7}}
MOST = 64


@pytest.fixture
def server(start):
    """A server with one slot."""
    return start(slots=1)


@pytest.fixture
def unread(server):
    """Calls over a connection that takes little more than its client reads."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(stream_module, "MAX_UNSENT_LOGPROBS", MOST)
    monkeypatch.setattr(stream_module, "ACKNOWLEDGED_AT_ONCE", MOST // 4)


def wait_for_waiting(server):
    """The server's only stream, once it waits for its client."""
    streams = server.server._generations.streams._streams
    until(lambda: any(stream.sequence_id is None and len(stream._buffer) > MOST // 2 for stream in list(streams)))
    (stream,) = streams
    assert len(stream._buffer) <= MOST
    assert server.host("tiny").engine.load == 0
    return stream


def ask(server, session, **more):
    """A request to continue a new session, or with none."""
    source = {"session_id": server.create(), "generation_id": "a"} if session else {"model": "tiny"}
    return g.GenerateRequest(**{**ASKED, **source, **more})


def assert_same(stream, whole):
    assert stream.tokens == whole.tokens
    assert stream.logprobs == whole.logprobs
    assert stream.text == whole.text
    assert stream.end.finish_reason == whole.end.finish_reason == g.FINISH_REASON_LENGTH


@pytest.mark.parametrize("session", [True, False])
def test_it_gives_its_slot_back_and_goes_on_when_it_is_read(server, unread, monkeypatch, session, request):
    whole = server.read(**ASKED)
    request.getfixturevalue("few")
    call = unread.Generate(ask(server, session), timeout=PATIENCE_S)
    wait_for_waiting(server)
    assert len(server.read(max_tokens=5, ignore_eos=True).tokens) == 5
    assert_same(read(call), whole)
    assert server.metric("gruve_preemptions_total", model="tiny") == 0


def test_what_a_finished_generation_computes_again_waits_too(server, unread, request):
    asked = ask(server, True, echo=True)
    whole = read(server.generation.Generate(asked))
    request.getfixturevalue("few")
    call = unread.Generate(asked, timeout=PATIENCE_S)
    wait_for_waiting(server)
    assert_same(read(call), whole)


def test_a_conversation_waits_whatever_its_credit(server, unread, request):
    whole = server.read(**ASKED)
    request.getfixturevalue("few")
    talk = Talk(stub=unread).begin(credit=60_000, **ASKED)
    wait_for_waiting(server)
    while talk.read() is not None:
        pass
    assert [talk.tokens[at] for at in sorted(talk.tokens)] == whole.tokens
    assert talk.logprobs == whole.logprobs


def test_a_client_that_leaves_frees_its_session(server, unread, few):
    asked = ask(server, True)
    call = unread.Generate(asked, timeout=PATIENCE_S)
    stream = wait_for_waiting(server)
    call.cancel()
    until(stream.ended.is_set)
    rest = read(server.generation.Generate(asked))
    assert len(rest.tokens) == len(rest.logprobs) == ASKED["max_tokens"]


def test_the_deadline_ends_it_while_it_waits(server, unread, few):
    asked = ask(server, True)
    call = unread.Generate(asked, timeout=PATIENCE_S)
    stream = wait_for_waiting(server)

    async def pass_deadline():
        stream._end_overdue()

    server.run(pass_deadline())
    assert stream.finish is FinishReason.DEADLINE
    assert server.session(asked.session_id).position > MOST  # the session is free
    call.cancel()


def test_a_deadline_during_a_write_is_no_error_in_the_log(server, unread, few, caplog):
    call = unread.Generate(ask(server, True), timeout=0.5)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: not server.server.interceptor._open)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_server_that_ends_hands_it_over(server, unread, few):
    call = unread.Generate(ask(server, True), timeout=PATIENCE_S)
    stream = wait_for_waiting(server)
    drain(server, "hand_over")
    server.close()
    until(stream.ended.is_set)
    messages, failure = broken(lambda: call)
    assert failure.reason == "HANDED_OVER"
    assert failure.metadata["next_position"] == str(messages[-1].end.next_position)
