"""Sessions on the wire: how clients use them, and how a stream continues wherever it was cut."""

from __future__ import annotations

import gc
import itertools

import grpc
import pytest
from google.protobuf import duration_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.serve.callers.ledger import Ledger
from gruve.serve.generation_service import GenerationServicer
from gruve.sessions.opening import GenerationOpener
from gruve.sessions.record import Session
from gruve.v1 import generation_pb2 as g
from gruve.v1 import sampling_pb2 as s
from gruve.v1 import session_pb2 as p
from serving import HELD, Gate, Read, broken, first, refusal, token, until
from session_calls import delete, get


def test_a_deleted_session_leaves_nothing_behind(server):
    session = server.create()
    server.read(session_id=session, max_tokens=3)
    server.sessions.DeleteSession(p.DeleteSessionRequest(session_id=session))
    # The calls' own objects are freed shortly after their answers.
    until(lambda: gc.collect() >= 0 and not any(type(o) is Session and o.id == session for o in gc.get_objects()))


def test_a_new_session_holds_the_start_token_alone(server):
    session = server.session(server.create(idle_ttl=duration_pb2.Duration(seconds=90)))
    host = server.host("tiny")
    assert (session.model, session.position, session.in_use) == ("tiny", 1, False)
    assert (session.model_digest, session.numerics_id) == (host.model.digest, host.backend.numerics_id)
    assert session.location == p.SESSION_LOCATION_MEMORY
    assert (session.idle_ttl.seconds, session.expire_time.seconds) == (90, session.update_time.seconds + 90)
    assert not session.HasField("sampling")


def test_a_stream_may_create_its_session(server):
    stream = server.read(new_session=g.NewSession(model="tiny"), text="O", max_tokens=4)
    session = server.session(stream.start.session_id)
    assert (session.position, session.in_use) == (6, False)
    assert server.read(session_id=session.id, expected_position=6, max_tokens=1).end.next_position == 7


def test_a_stream_that_is_refused_creates_no_session(server):
    before = len(server.server.table)
    new = g.NewSession(model="tiny")
    assert refusal(lambda: server.generate(new_session=new, stop_token_ids=[66])).reason == "INVALID_FIELD"
    assert refusal(lambda: server.generate(new_session=new, expected_position=3)).reason == "POSITION_MISMATCH"
    assert len(server.server.table) == before


@settings(max_examples=25)
@given(data=st.data())
def test_a_generation_resumed_anywhere_goes_on_with_the_same_tokens_and_text(server, data):
    stop = data.draw(st.lists(st.sampled_from(["e", "the", "a t", "\nT", "ou", "~~", "o~", "zzz"]), max_size=4))
    session = server.create()
    asked = {"session_id": session, "generation_id": "a", "text": "O", "stop": stop, "max_tokens": 25}
    asked |= {"min_tokens": data.draw(st.integers(0, 10)), "sampling": s.SamplingParameters(seed=len(stop))}
    whole = server.read(max_tokens_per_message=1, **asked)
    position = data.draw(st.integers(0, whole.end.next_position))
    rest = server.read(from_position=position, logprobs=data.draw(st.sampled_from([None, 1])), **asked)
    missing = [message for message in whole.messages if message.position >= position]
    assert rest.tokens == [token for message in missing for token in message.token_ids]
    assert rest.text == "".join(message.text for message in missing)
    assert (rest.reason, rest.end.stop) == (whole.reason, whole.end.stop)
    assert server.session(session).position == whole.end.next_position


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 4), max_size=5), stops=st.booleans())
def test_a_stream_that_is_cut_again_and_again_loses_nothing(server, cuts, stops):
    asked = {"text": "To be", "max_tokens": 24, "stop": ["th", "e~"] if stops else []}
    whole = server.read(sampling=s.SamplingParameters(seed=5), **asked)
    session, tokens, text, position = server.create(), [], "", 0
    for messages in [*cuts, None]:
        call = server.generate(
            session_id=session,
            generation_id="a",
            from_position=position,
            max_tokens_per_message=1,
            sampling=s.SamplingParameters(seed=5),
            **asked,
        )
        for message in itertools.islice(call, messages):
            tokens += message.token_ids
            text += message.text
            position = message.position + len(message.token_ids)
        call.cancel()
    assert (tokens, text) == (whole.tokens, whole.text)


def test_a_generation_cut_in_the_middle_of_its_prompt_reads_on_where_it_was(start):
    server = start()
    asked = {"text": "O Romeo " * 30, "max_tokens": 10, "sampling": s.SamplingParameters(seed=1)}
    whole = server.read(**asked)
    session, gate = server.create(), Gate(server.host("tiny"))
    call = server.generate(session_id=session, generation_id="a", **asked)
    next(call)
    gate.let(2)
    call.cancel()
    until(lambda: server.handled("Generate", "CANCELLED") == 1)
    gate.open()
    until(lambda: not server.session(session).in_use)
    assert 0 < server.server.table.get(session).consumed < 240
    rest = server.read(session_id=session, generation_id="a", **asked)
    assert rest.tokens == whole.tokens


def test_a_finished_generation_is_repeated_and_nothing_is_generated(server):
    session = server.create()
    asked = {"session_id": session, "generation_id": "a", "text": "O", "max_tokens": 20}
    whole = server.read(**asked)
    generated = server.metric("gruve_generation_tokens_total", model="tiny")
    again = server.read(**asked)
    assert (again.tokens, again.text, again.reason) == (whole.tokens, whole.text, whole.reason)
    assert again.start == whole.start
    assert again.end.next_position == whole.end.next_position
    assert not again.end.usage.HasField("generation_time")
    assert server.metric("gruve_generation_tokens_total", model="tiny") == generated


def test_log_probabilities_of_a_finished_generation_are_computed_again(server):
    session = server.create()
    asked = {"session_id": session, "generation_id": "a", "text": "O", "max_tokens": 20, "stop": ["e"]}
    whole = server.read(logprobs=2, echo=True, **asked)
    again = server.read(logprobs=2, echo=True, **asked)
    assert (again.tokens, again.logprobs, again.reason) == (whole.tokens, whole.logprobs, whole.reason)
    later = server.read(logprobs=2, from_position=4, **asked)
    assert later.logprobs == whole.logprobs[3:]
    assert server.session(session).position == whole.end.next_position


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("prompt", {"text": "A"}),
        ("max_tokens", {"max_tokens": 6}),
        ("stop", {"stop": ["y"]}),
        ("ignore_eos", {"ignore_eos": True}),
        ("sampling.seed", {"sampling": s.SamplingParameters(seed=8)}),
        ("sampling.top_k", {"sampling": s.SamplingParameters(top_k=3)}),
    ],
)
def test_another_request_under_the_same_generation_id_is_refused_by_field(server, field, other):
    session = server.create()
    asked = {"text": "O", "max_tokens": 5, "stop": ["x"], "sampling": s.SamplingParameters(seed=7)}
    server.read(session_id=session, generation_id="a", **asked)
    failure = refusal(lambda: server.generate(session_id=session, generation_id="a", **{**asked, **other}))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GENERATION_MISMATCH")
    assert failure.metadata["field"] == field


def test_fields_that_are_absent_are_taken_from_the_record(server):
    session = server.create()
    whole = server.read(session_id=session, generation_id="a", text="O", max_tokens=9, stop=["~"])
    assert server.read(session_id=session, generation_id="a").tokens == whole.tokens


def test_a_resume_takes_the_older_stream_over(server):
    session = server.create()
    asked = {"session_id": session, "generation_id": "a", "max_tokens": 3}
    older = server.generate(max_tokens_per_second=HELD, **asked)
    begun = token(older)
    newer = server.read(from_position=begun.position, **asked)
    failure = refusal(lambda: older)
    assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "TAKEN_OVER")
    assert newer.tokens[0] == begun.token_ids[0]
    assert len(newer.tokens) == 3


def test_a_stream_whose_reader_stands_still_is_taken_over_all_the_same(server):
    session = server.create()

    class Context:
        def time_remaining(self):
            return None

    async def scenario():
        opener = GenerationOpener(server.server.persistence, server.server.models)
        servicer = GenerationServicer(server.server.models, opener, Ledger())
        asked = g.GenerateRequest(session_id=session, generation_id="a", max_tokens=5)
        held = g.GenerateRequest(session_id=session, generation_id="a", max_tokens=5, max_tokens_per_second=HELD)
        older = servicer.Generate(held, Context())
        await anext(older)  # it never asks for the next message, so its call waits in a write
        newer = [message async for message in servicer.Generate(asked, Context())]
        await older.aclose()
        return newer

    assert len(Read(server.run(scenario())).tokens) == 5


def test_a_request_that_does_not_fit_takes_nothing_over(server):
    session = server.create()
    older = server.generate(session_id=session, generation_id="a", max_tokens_per_second=HELD)
    token(older)
    failure = refusal(lambda: server.generate(session_id=session, generation_id="a", max_tokens=5))
    assert failure.reason == "GENERATION_MISMATCH"
    assert older.is_active()
    assert server.session(session).in_use
    older.cancel()


def test_another_generation_of_a_session_in_use_is_refused(server):
    session = server.create()
    call = server.generate(session_id=session, generation_id="a", max_tokens_per_second=HELD)
    token(call)
    for attempt in (lambda: server.generate(session_id=session), lambda: delete(server, session)):
        failure = refusal(attempt)
        assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "SESSION_BUSY")
        assert failure.retry_after_s == pytest.approx(0.5)
    call.cancel()


def test_a_lost_client_leaves_the_session_to_the_next_generation(server):
    session = server.create()
    call = server.generate(session_id=session, generation_id="a", text="O", max_tokens_per_second=HELD)
    token(call)
    call.cancel()
    until(lambda: not server.session(session).in_use)
    recorded = get(server, session).generations[0]
    assert (recorded.finish_reason, recorded.finished) == (g.FINISH_REASON_CANCELLED, False)
    server.read(session_id=session, generation_id="b", max_tokens=2)
    assert get(server, session).generations[0].finished
    again = server.read(session_id=session, generation_id="a")
    assert (again.reason, len(again.tokens)) == ("CANCELLED", 1)


def test_the_record_distinguishes_a_streaming_generation_from_an_interrupted_one(server):
    session = server.create()
    call = server.generate(session_id=session, generation_id="a", max_tokens_per_second=HELD)
    token(call)
    assert server.session(session).in_use
    assert get(server, session).generations[0].finish_reason == g.FINISH_REASON_UNSPECIFIED
    call.cancel()
    until(lambda: not server.session(session).in_use)
    resumed = server.generate(session_id=session, generation_id="a", from_position=2, max_tokens_per_second=HELD)
    token(resumed)
    assert get(server, session).generations[0].finish_reason == g.FINISH_REASON_UNSPECIFIED
    resumed.cancel()


def test_a_generation_that_finds_no_room_leaves_its_session_as_it_was(start):
    server = start(slots=1, waiting=0)
    session = server.create()
    server.read(session_id=session, generation_id="a", text="O", max_tokens=3)
    holder = server.generate(max_tokens_per_second=HELD)
    token(holder)
    before = get(server, session)
    assert refusal(lambda: server.generate(session_id=session, generation_id="b", text="A")).reason == "QUEUE_FULL"
    after = get(server, session)
    assert (after.token_ids, after.generations, after.session.in_use) == (before.token_ids, before.generations, False)
    holder.cancel()


def test_a_session_where_the_client_does_not_expect_it_is_left_alone(server):
    session = server.create()
    server.read(session_id=session, max_tokens=4)
    failure = refusal(lambda: server.generate(session_id=session, expected_position=4))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "POSITION_MISMATCH")
    assert failure.metadata["position"] == "5"
    assert server.session(session).position == 5


def test_a_session_deleted_while_a_resume_waits_has_expired(start):
    server = start()
    session, gate = server.create(), Gate(server.host("tiny"))
    older = server.generate(session_id=session, generation_id="a")
    next(older)
    gate.let(0)
    newer = server.generate(session_id=session, generation_id="a")
    assert refusal(lambda: older).reason == "TAKEN_OVER"
    server.server.table._table.pop(session)  # as if it had been evicted just then
    gate.open()
    assert refusal(lambda: newer).reason == "SESSION_EXPIRED"


def test_a_resume_that_is_cancelled_while_it_waits_leaves_the_session_free(start):
    server = start()
    session, gate = server.create(), Gate(server.host("tiny"))
    older = server.generate(session_id=session, generation_id="a", max_tokens=5)
    next(older)
    gate.let(0)
    newer = server.generate(session_id=session, generation_id="a", max_tokens=5)
    assert refusal(lambda: older).reason == "TAKEN_OVER"
    newer.cancel()
    gate.open()
    until(lambda: not server.session(session).in_use)
    assert len(server.read(session_id=session, generation_id="a", max_tokens=5).tokens) == 5


def test_many_resumes_at_once_leave_one_stream_that_has_it_all(server):
    session = server.create()
    asked = {"session_id": session, "generation_id": "a", "text": "O", "max_tokens": 300}
    calls = [server.generate(**asked) for _ in range(8)]
    ends = [broken(lambda: call) for call in calls]  # noqa: B023 - called at once
    reads = [Read(messages) for messages, failure in ends if failure is None]
    assert {failure.code for _, failure in ends if failure is not None} <= {grpc.StatusCode.ABORTED}
    assert {len(stream.tokens) for stream in reads} == {300}
    assert len(server.read(**asked).tokens) == 300


def test_a_client_that_vanishes_right_after_it_asked_frees_the_session(server):
    session = server.create()
    for messages in (0, 0, 1, 0, 2):
        call = server.generate(
            session_id=session, generation_id="a", text="O" * 30, max_tokens=40, max_tokens_per_message=1
        )
        first(call, messages)
        call.cancel()
    assert len(server.read(session_id=session, generation_id="a", text="O" * 30, max_tokens=40).tokens) == 40
    until(lambda: not server.session(session).in_use)
