"""Conversations of the client: the reader sees one steered stream, whatever happens to the calls in between."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sqlite3
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversing import PROMPT, SEED, START, plain, transcript
from cutting_proxy import CuttingProxy
from gruve.bench.chaos.replicas import free_port
from gruve.client import AsyncClient, CallFailed, Client, Reconnect
from server_process import Process
from serving import until

OPTIONS = {"seed": 5, "max_tokens": 60}
AT_ONCE = {"reconnect": Reconnect(max_reconnects=50, first_reconnects=50, backoff_s=0.001)}


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def encode(server):
    return server.host("tiny").model.tokenizer.encode


class Reader:
    """Reads chunks, keeps the tokens that were not taken back, and sends controls after given numbers of chunks."""

    def __init__(self, conversation, script):
        self.conversation = conversation
        self.script = [*script]
        self.tokens, self.said, self.answers, self.chunks = {}, {}, [], 0

    def begin(self):
        self._say()

    def take(self, chunk):
        self.chunks += 1
        if chunk.answer is None:
            assert chunk.position >= max(self.tokens, default=-1) + 1
            self.tokens |= dict(enumerate(chunk.token_ids, chunk.position))
        else:
            self._note(chunk.answer)
        self._say()

    def _note(self, answer):
        kind, value = self.said.pop(answer.control_id)
        if answer.position is None:
            return
        self.tokens = {at: token for at, token in self.tokens.items() if at < answer.position}
        self.answers.append((kind, answer.position, value))
        if kind == "pause":
            self.said[self.conversation.resume()] = ("resume", None)

    def _say(self):
        here = max(self.tokens, default=START - 1) + 1
        while self.script and self.script[0][0] <= self.chunks:
            _, kind, value, at = self.script.pop(0)
            position = None if at is None else max(START, here + at)
            match kind:
                case "change":
                    control = self.conversation.change(at_position=position, **value)
                case "insert":
                    control = self.conversation.insert(value, at_position=position)
                case "rewind":
                    control = self.conversation.rewind(min(here, position or here), **value)
                case "pause":
                    control = self.conversation.pause(at_position=position)
                case "stop":
                    control = self.conversation.stop(at_position=position)
            self.said[control] = (kind, value)


VALUES = {
    "change": st.sampled_from([{"temperature": 0.5}, {"seed": 8}, {"temperature": 0.0, "repetition_penalty": 1.2}]),
    "insert": st.sampled_from(["O", "\nROMEO:\n"]),
    "rewind": st.sampled_from([{}, {"seed": 77}]),
    "pause": st.none(),
    "stop": st.none(),
}
SCRIPTS = st.lists(
    st.sampled_from(["change", "change", "insert", "insert", "rewind", "pause", "stop"]).flatmap(
        lambda kind: st.tuples(
            st.integers(0, 12), st.just(kind), VALUES[kind], st.one_of(st.none(), st.integers(-6, 12))
        )
    ),
    max_size=5,
).map(lambda script: sorted(script, key=lambda entry: entry[0]))
CUTS = st.lists(st.integers(200, 1_500), max_size=5)


def check(server, encode, reader):
    """Checks that the chunks agree with the answers, and that only controls after the end have no answer."""
    assert reader.conversation.ended or not reader.said
    whole = plain(server, reader.answers, SEED, 60, encode)
    for position, token in reader.tokens.items():
        assert token == whole[position], (position, reader.answers)
    sent = set(range(START, len(whole)))
    missing = sent - set(reader.tokens)
    assert len(missing) <= sum(len(encode(value)) for kind, _, value in reader.answers if kind == "insert")
    if reader.conversation.start.session_id:
        assert transcript(server, reader.conversation.start.session_id) == whole


@pytest.mark.parametrize("examples", [40, pytest.param(150, marks=pytest.mark.slow)])
def test_a_conversation_cut_anywhere_is_what_its_answers_say(server, encode, examples):
    given_faults = given(SCRIPTS, CUTS, st.booleans(), st.integers(1, 4), st.sampled_from([6, 256]))
    settings(max_examples=examples)(given_faults(conversation_is_unbroken))(server, encode)


def conversation_is_unbroken(server, encode, script, cuts, kept, per_message, window):
    options = {**OPTIONS, "max_tokens_per_message": per_message, "window": window, "new_session": False}
    source = {"session_id": server.create()} if kept else {"model": "tiny"}
    with (
        contextlib.closing(CuttingProxy(server.serving.port, [*cuts])) as proxy,
        Client(proxy.address, **AT_ONCE) as client,
    ):
        conversation = client.converse(PROMPT, **source, **options)
        reader = Reader(conversation, script)
        reader.begin()
        for chunk in conversation:
            reader.take(chunk)
    check(server, encode, reader)


@settings(max_examples=15)
@given(SCRIPTS, CUTS, st.booleans())
def test_the_async_client_converses_in_the_same_way(server, encode, script, cuts, kept):
    source = {"session_id": server.create()} if kept else {"model": "tiny"}

    async def converse(address):
        async with AsyncClient(address, **AT_ONCE) as client:
            conversation = client.converse(PROMPT, **source, **OPTIONS, max_tokens_per_message=2)
            reader = Reader(conversation, script)
            reader.begin()
            async for chunk in conversation:
                reader.take(chunk)
            return reader

    with contextlib.closing(CuttingProxy(server.serving.port, [*cuts])) as proxy:
        reader = asyncio.run(converse(proxy.address))
    check(server, encode, reader)


def test_a_client_that_does_not_read_parks_its_stream_exactly(server, client):
    session = server.create()
    conversation = client.converse(PROMPT, session_id=session, window=10, **OPTIONS)
    read = len(next(conversation).token_ids)
    until(lambda: server.session(session).position == START + 10 and server.host("tiny").engine.load == 0)
    assert read + sum(len(chunk.token_ids) for chunk in conversation) == 60
    assert server.session(session).position == START + 60


def test_without_a_window_the_reader_grants(server, client):
    session = server.create()
    with client.converse(PROMPT, session_id=session, window=None, credit=4, **OPTIONS) as conversation:
        read = list(itertools.takewhile(lambda n: n < 4, itertools.accumulate(len(c.token_ids) for c in conversation)))
        assert server.session(session).position == START + 4
        conversation.grant(3)
        tokens = sum(len(next(conversation).token_ids) for _ in range(1))
        assert tokens <= 3
        conversation.stop()
        rest = list(conversation)
        assert 4 + tokens + sum(len(chunk.token_ids) for chunk in rest) <= 7
        assert len(read) < 4
    assert conversation.finish_reason == "cancelled"


def test_a_conversation_that_is_handed_over_goes_on_at_the_next_server(start, encode):
    first, second = start(drain_s=0.0), start()
    with Client([first.address, second.address], **AT_ONCE) as client:
        conversation = client.converse(PROMPT, model="tiny", seed=5, max_tokens=200, max_tokens_per_second=500)
        reader = Reader(conversation, [(3, "change", {"temperature": 0.5}, None), (6, "insert", "O", None)])
        for chunk in conversation:
            reader.take(chunk)
            if len(reader.answers) == 2 and first is not None:
                first, _ = None, first.close()
        whole = plain(second, reader.answers, SEED, 200, encode)
        assert all(whole[at] == token for at, token in reader.tokens.items())
        assert conversation.end.next_position == len(whole)


@pytest.mark.parametrize("chunks", [0, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "script",
    [
        [(3, "change", {"temperature": 0.5}, None)],
        [(3, "insert", "\nROMEO:\n", None), (6, "rewind", {}, -6)],
        [(1, "change", {"temperature": 0.5}, 20), (3, "rewind", {"seed": 77}, -20)],
    ],
)
def test_what_was_answered_while_the_store_failed_outlives_the_server(
    tiny_repository, tmp_path, server, encode, script, chunks
):
    path, port = tmp_path / "sessions.db", free_port()
    flags = ("--port", str(port), "--store", f"sqlite:{path}")
    with (
        Process(tiny_repository, *flags) as killed,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db,
        Client(killed.line and f"127.0.0.1:{port}", reconnect=Reconnect(max_reconnects=500)) as client,
    ):
        long = {**OPTIONS, "max_tokens": 200, "max_tokens_per_second": 100}
        conversation = client.converse(PROMPT, model="tiny", new_session=True, **long)
        reader = Reader(conversation, script)
        reader.take(next(conversation))
        db.execute("BEGIN IMMEDIATE")  # from here on nothing is written
        while reader.script or reader.said:
            reader.take(next(conversation))
        for chunk in itertools.islice(conversation, chunks):
            reader.take(chunk)
        killed.signal(signal.SIGKILL)
        killed.end()
        db.close()
        with Process(tiny_repository, *flags) as again:
            assert again.line
            for chunk in conversation:
                reader.take(chunk)
            whole = plain(server, reader.answers, SEED, 200, encode)
            assert all(whole[at] == token for at, token in reader.tokens.items()), reader.answers
            kept = client.get_session(conversation.start.session_id).token_ids
            assert list(kept) == whole


def test_a_dropped_conversation_is_cancelled_and_leaves_no_thread(server, client):
    before = set(threading.enumerate())
    conversation = client.converse(PROMPT, model="tiny", max_tokens_per_second=5, **OPTIONS)
    next(conversation)
    begun = set(threading.enumerate()) - before
    assert begun
    del conversation
    until(lambda: begun.isdisjoint(threading.enumerate()) and server.host("tiny").engine.load == 0)


def test_a_refused_control_is_an_answer_and_no_error(client):
    conversation = client.converse(PROMPT, model="tiny", max_tokens_per_second=20, **OPTIONS)
    control = conversation.insert("日")
    answer = next(chunk.answer for chunk in conversation if chunk.answer)
    assert (answer.control_id, answer.position, answer.reason) == (control, None, "UNKNOWN_CHARACTER")
    assert "'日'" in answer.message


def test_an_error_of_the_application_is_not_tried_again(client):
    with pytest.raises(CallFailed, match="MODEL_UNKNOWN"):
        next(client.converse(PROMPT, model="none"))
