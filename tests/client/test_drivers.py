"""Both clients behave the same with every server: a scripted transport replaces gRPC."""

from __future__ import annotations

import grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.client import CallFailed, ConnectionLost, DeadlineExceeded, InvalidRequest, SessionBusy, SessionExpired
from gruve.v1 import generation_pb2, session_pb2
from scripted_transport import both

FAILURES = (
    ConnectionLost(grpc.StatusCode.UNAVAILABLE, "Socket closed"),
    SessionBusy(grpc.StatusCode.ABORTED, "in use", reason="SESSION_BUSY", retry_after_s=2.5),
    SessionExpired(grpc.StatusCode.NOT_FOUND, "expired", reason="SESSION_EXPIRED"),
    InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, "top_p", reason="INVALID_FIELD"),
    DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
)


@st.composite
def streams(draw) -> list[list[object]]:
    """The calls of one generation. Most continue where the one before was cut; some break the protocol."""
    calls, position = [], 4
    for _ in range(draw(st.integers(1, 4))):
        digest = draw(st.sampled_from(["d"] * 9 + ["e"]))
        start = {"generation_id": "g", "model_digest": digest, "numerics_id": "n", "sampling": {"seed": 5}}
        call: list[object] = [generation_pb2.GenerateResponse(position=position, start=start)]
        for _ in range(draw(st.integers(0, 3))):
            ids = draw(st.lists(st.integers(0, 9), max_size=3))
            skip = draw(st.sampled_from([0] * 9 + [1, -1]))
            call.append(generation_pb2.GenerateResponse(position=position + skip, token_ids=ids, text="x" * len(ids)))
            position += len(ids)
        ending = draw(st.sampled_from([*FAILURES[:2], *FAILURES, None, "end"]))
        if ending == "end":
            end = {"finish_reason": draw(st.integers(1, 6)), "next_position": position}
            call.append(generation_pb2.GenerateResponse(position=position, end=end))
        elif ending is not None:
            call.append(ending)
        calls.append(call[draw(st.sampled_from([0] * 9 + [1])) :])
    return calls


@settings(max_examples=200)
@given(streams())
def test_a_stream_is_read_alike(calls):
    def read(client):
        with client.generate("x", model="m") as stream:
            return [*stream], stream.finish_reason

    async def read_async(client):
        async with client.generate("x", model="m") as stream:
            return [chunk async for chunk in stream], stream.finish_reason

    sync, asynchronous = both(calls, read, read_async)
    assert sync == asynchronous
    assert len(sync) > 2


@settings(max_examples=100)
@given(streams())
def test_texts_are_completed_alike(calls):
    async def complete_async(client):
        return await client.complete(["x", "y"], model="m", n=2, seed=2**64 - 1)

    sync, asynchronous = both(calls, lambda c: c.complete(["x", "y"], model="m", n=2, seed=2**64 - 1), complete_async)
    assert sync == asynchronous


CONTROLS = st.lists(st.sampled_from(["pause", "resume", "stop", "insert", "change", "rewind"]), max_size=4)
ANSWERS = st.lists(st.tuples(st.integers(1, 4), st.integers(3, 9), st.booleans()), max_size=3)


def steer(conversation, control):
    arguments = {"insert": ("abc",), "rewind": (4,)}.get(control, ())
    return getattr(conversation, control)(*arguments, **({"temperature": 0.5} if control == "change" else {}))


def answer(control_id: int, position: int, applied: bool) -> generation_pb2.ConverseResponse:
    if applied:
        return generation_pb2.ConverseResponse(control_applied={"control_id": control_id, "position": position})
    return generation_pb2.ConverseResponse(control_refused={"control_id": control_id, "message": "no"})


@settings(max_examples=200)
@given(streams(), CONTROLS, ANSWERS)
def test_a_conversation_is_steered_alike(calls, controls, answers):
    script = [
        [step if isinstance(step, CallFailed) else generation_pb2.ConverseResponse(tokens=step) for step in call]
        for call in calls
    ]
    script[0][2:2] = [answer(*values) for values in answers]

    def converse(client):
        conversation = client.converse("x", model="m", window=4)
        ids = [steer(conversation, control) for control in controls]
        return ids, [*conversation]

    async def converse_async(client):
        conversation = client.converse("x", model="m", window=4)
        ids = [steer(conversation, control) for control in controls]
        return ids, [chunk async for chunk in conversation]

    sync, asynchronous = both(script, converse, converse_async)
    assert sync == asynchronous


OUTCOMES = st.lists(st.sampled_from([*FAILURES, "", "", "2"]), max_size=6)


@settings(max_examples=200)
@given(OUTCOMES)
def test_a_transcript_is_read_alike(outcomes):
    calls = [
        [o if isinstance(o, CallFailed) else session_pb2.GetSessionResponse(token_ids=[7], next_page_token=o)]
        for o in outcomes
    ]

    async def read_async(client):
        return list((await client.get_session("s")).token_ids)

    sync, asynchronous = both(calls, lambda client: list(client.get_session("s").token_ids), read_async)
    assert sync == asynchronous


@settings(max_examples=200)
@given(OUTCOMES)
def test_what_must_not_happen_twice_is_called_alike(outcomes):
    outcomes = ["", *outcomes]  # the look-up before a fork succeeds
    calls = [[o if isinstance(o, CallFailed) else session_pb2.ForkSessionResponse()] for o in outcomes]

    async def fork_then_delete(client):
        forks = len(await client.fork_session("s", [1, 2]))
        await client.delete_session("s")
        return forks

    def fork_then_delete_sync(client):
        forks = len(client.fork_session("s", [1, 2]))
        client.delete_session("s")
        return forks

    sync, asynchronous = both(calls, fork_then_delete_sync, fork_then_delete)
    assert sync == asynchronous
