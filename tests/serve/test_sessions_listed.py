"""What a server shows of its sessions, and when they expire or are deleted."""

from __future__ import annotations

import dataclasses

import grpc
import pytest
from google.protobuf import duration_pb2

from gruve.sessions.table import SessionsConfig
from gruve.v1 import generation_pb2 as g
from gruve.v1 import sampling_pb2 as s
from serving import HELD, refusal, token
from session_calls import Clock, delete, get, listed


def pages(server, session_id, page_size):
    """Every page of a session's transcript."""
    page = get(server, session_id, page_size=page_size)
    yield page
    while page.next_page_token:
        page = get(server, session_id, page_size=page_size, page_token=page.next_page_token)
        yield page


def test_a_transcript_is_read_page_by_page(server):
    session = server.create("abc")
    for i, prompt in enumerate(["K:Cmaj\nA2|", "", "B", "C2"]):
        text = {"text": prompt} if prompt else {}
        server.read(session_id=session, generation_id=str(i), max_tokens=3 + i, ignore_eos=True, **text)
    whole = get(server, session)
    for size in (1, 2, 5, 100):
        read_ = list(pages(server, session, size))
        assert [token for page in read_ for token in page.token_ids] == list(whole.token_ids)
        assert "".join(page.text for page in read_) == whole.text
        assert [x.id for page in read_ for x in page.generations] == ["0", "1", "2", "3"]
        assert [page.position for page in read_] == list(range(0, len(whole.token_ids), size))
    assert len(whole.token_ids) == whole.session.position
    assert list(whole.token_ids[:4]) == [0, 4, 8, 17]


def test_a_page_lists_every_field_of_a_generation(server):
    session = server.create()
    stream = server.read(session_id=session, generation_id="a", text="To be", max_tokens=6)
    recorded = get(server, session).generations[0]
    assert (recorded.id, recorded.prompt_position, recorded.start_position, recorded.next_position) == ("a", 1, 6, 12)
    assert (recorded.sampling, recorded.max_tokens) == (stream.start.sampling, 6)
    assert (recorded.finish_reason, recorded.finished) == (g.FINISH_REASON_LENGTH, True)
    assert (recorded.model_digest, recorded.numerics_id) == (stream.start.model_digest, stream.start.numerics_id)


def test_a_page_of_size_zero_leaves_the_transcript_out(server):
    session = server.create()
    server.read(session_id=session, max_tokens=2)
    page = get(server, session, page_size=0)
    assert page.session.position == 3
    assert [*page.token_ids, *page.generations, page.text, page.next_page_token] == ["", ""]


def test_a_page_of_many_generations_or_biases_fits_into_a_message(start):
    server = start()
    session = server.create()
    bias = s.LogitBias(biases=dict.fromkeys(range(66), -0.5))
    server.read(session_id=session, max_tokens=1, sampling=s.SamplingParameters(logit_bias=bias))
    kept = server.server.table.get(session)
    kept.transcript.extend([5] * 6_000)
    kept.generations = [
        dataclasses.replace(kept.generations[0], id=str(i), prompt_position=i // 3, start_position=i // 3)
        for i in range(6_000)
    ]
    read_ = list(pages(server, session, 65_536))
    assert [x.id for page in read_ for x in page.generations] == [str(i) for i in range(6_000)]
    assert [token for page in read_ for token in page.token_ids] == kept.transcript.tolist()
    assert max(page.ByteSize() for page in read_) < 2 << 20 < sum(page.ByteSize() for page in read_)


def test_sessions_are_listed_the_latest_first_page_by_page(start, repository):
    server = start(models=repository)
    created = [server.create(("tiny", "lstm")[i % 2]) for i in range(7)]
    server.read(session_id=created[0], max_tokens=1)  # use does not change the order
    assert list(listed(server)) == [created[::-1]]
    assert list(listed(server, page_size=3)) == [created[:3:-1], created[3:0:-1], created[:1]]
    assert list(listed(server, page_size=3, model="lstm")) == [created[5::-2]]
    assert list(listed(server, model="nobody")) == [[]]


def test_sessions_created_at_the_same_moment_are_listed_once_each(start):
    server = start(clock=Clock())
    created = {server.create() for _ in range(5)}
    found = [session for page in listed(server, page_size=2) for session in page]
    assert len(found) == 5
    assert set(found) == created


@pytest.mark.parametrize("make", [get, delete, lambda server, i: server.generate(session_id=i)])
def test_a_deleted_session_has_expired_and_a_forged_one_is_unknown(server, make):
    session = server.create()
    delete(server, session)
    failure = refusal(lambda: make(server, session))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_EXPIRED")
    forged = session[:-1] + ("a" if session[-1] != "a" else "b")
    for unknown in (forged, session.upper(), "", "x" * 500, "é" * 48):
        failure = refusal(lambda: make(server, unknown))  # noqa: B023 - called at once
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_UNKNOWN")


def test_an_idle_session_expires_and_use_puts_that_off(start):
    clock = Clock()
    server = start(clock=clock)
    session = server.create(idle_ttl=duration_pb2.Duration(seconds=10))
    clock.now_s += 9
    server.read(session_id=session, max_tokens=1)
    clock.now_s += 9
    assert server.session(session).position == 2
    clock.now_s += 1
    assert refusal(lambda: get(server, session)).reason == "SESSION_EXPIRED"
    assert server.metric("gruve_session_moves_total", reason="expired") == 1
    assert server.metric("gruve_sessions", where="memory") == 0


def test_a_session_in_use_does_not_expire(start):
    clock = Clock()
    server = start(clock=clock)
    session = server.create(idle_ttl=duration_pb2.Duration(seconds=10))
    call = server.generate(session_id=session, max_tokens_per_second=HELD)
    token(call)
    clock.now_s += 100
    assert server.session(session).in_use
    call.cancel()


def test_the_least_recently_used_sessions_leave_when_memory_is_short(start):
    server = start(sessions=SessionsConfig(budget_bytes=20_000))
    created = [server.create() for _ in range(40)]
    server.read(session_id=created[-1], max_tokens=1)
    left = next(listed(server))
    assert left == created[::-1][: len(left)]
    assert 5 < len(left) < 40
    assert server.metric("gruve_session_moves_total", reason="evicted") == 40 - len(left)
    assert server.metric("gruve_session_memory_bytes") <= 20_000


def test_a_time_to_live_beyond_the_servers_limit_is_refused(server):
    for seconds, nanos in ((3_601, 0), (0, 999_999_999), (-1, 0)):
        ttl = duration_pb2.Duration(seconds=seconds, nanos=nanos)
        failure = refusal(lambda: server.create(idle_ttl=ttl))  # noqa: B023 - called at once
        assert failure.reason == "INVALID_FIELD"
        assert failure.violations[0].field == "session.idle_ttl"
        assert "3600" in failure.message
