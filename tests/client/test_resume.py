"""The client's decisions after lost calls, tested without a network."""

from __future__ import annotations

import grpc
import pytest

from gruve.client import CallFailed, ConnectionLost, Overloaded, Reconnect, SessionBusy
from gruve.client.messages import generate_request
from gruve.client.resume import Resumption
from gruve.client.retry import Attempts, Progress
from gruve.v1 import generation_pb2

LOST = ConnectionLost(grpc.StatusCode.UNAVAILABLE, "Socket closed")
BUSY = SessionBusy(grpc.StatusCode.ABORTED, "in use", reason="SESSION_BUSY", retry_after_s=7.0)


def started(**fields) -> generation_pb2.GenerateResponse:
    start = {"generation_id": "g", "model_digest": "d", "numerics_id": "n", "sampling": {"seed": 5}} | fields
    return generation_pb2.GenerateResponse(position=4, start=start)


def tokens(position: int, *ids: int) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(position=position, token_ids=ids, text="x" * len(ids))


def resumption(**source) -> Resumption:
    source = {"model": "m", "session_id": None, "new_session": False} | source
    return Resumption(generate_request("abc", options={"temperature": 0.5, "stop": ["\n\n"]}, **source))


def test_a_resume_carries_the_whole_request_the_reported_seed_and_the_next_position():
    stream = resumption()
    first = stream.next_request()
    stream.receive(started())
    stream.receive(tokens(4, 1, 2))
    again = stream.next_request()
    expected = generation_pb2.GenerateRequest()
    expected.CopyFrom(first)
    expected.MergeFrom(generation_pb2.GenerateRequest(generation_id="g", sampling={"seed": 5}, from_position=6))
    assert again == expected


def test_a_stream_without_tokens_so_far_resumes_where_it_would_have_begun():
    stream = resumption()
    stream.receive(started())
    assert stream.next_request().from_position == 4


def test_a_new_session_is_created_once_and_then_continued_by_its_id():
    stream = resumption(new_session=True)
    assert stream.next_request().HasField("new_session")
    stream.receive(started(session_id="s1"))
    assert stream.next_request().session_id == "s1"


@pytest.mark.parametrize(
    ("changed", "reason"), [({"model_digest": "e"}, "MODEL_CHANGED"), ({"numerics_id": "o"}, "NUMERICS_CHANGED")]
)
def test_a_sequence_that_nobody_keeps_is_not_continued_by_a_server_that_computes_differently(changed, reason):
    stream = resumption()
    stream.receive(started())
    stream.next_request()
    with pytest.raises(CallFailed) as caught:
        stream.receive(started(**changed))
    assert caught.value.reason == reason


def test_a_session_may_go_on_elsewhere_because_the_server_checks_it():
    stream = resumption(model=None, session_id="s1")
    stream.receive(started(session_id="s1"))
    stream.next_request()
    assert stream.receive(started(session_id="s1", numerics_id="o")) is None


@pytest.mark.parametrize("position", [3, 5])
def test_a_message_that_repeats_or_skips_a_token_is_refused(position):
    stream = resumption()
    stream.receive(started())
    with pytest.raises(CallFailed, match=f"position {position} was sent where 4 comes next"):
        stream.receive(tokens(position, 1))


def test_positions_may_jump_only_over_prompts_that_are_not_sent():
    for echo, passes in [(False, True), (True, False)]:
        request = generate_request("abc", "m", None, False, {"echo": echo})
        stream = Resumption(request, allow_gaps=True)
        stream.receive(started())
        if passes:
            assert stream.receive(tokens(6, 1)).position == 6
        else:
            with pytest.raises(CallFailed, match="position 6 was sent where 4 comes next"):
                stream.receive(tokens(6, 1))


def test_a_call_that_begins_without_its_start_breaks_the_protocol():
    with pytest.raises(CallFailed, match="the first message has no `start`"):
        resumption().receive(tokens(4, 1))


def test_text_that_comes_without_tokens_is_passed_on():
    stream = resumption()
    stream.receive(started())
    chunk = stream.receive(generation_pb2.GenerateResponse(position=4, text="withheld"))
    assert (chunk.position, chunk.token_ids, chunk.text) == (4, (), "withheld")


@pytest.mark.parametrize(("reason", "ends"), [("HANDED_OVER", False), ("DEADLINE", False), ("CANCELLED", True)])
def test_an_end_of_the_call_alone_does_not_end_the_generation(reason, ends):
    stream = resumption()
    stream.receive(started())
    value = generation_pb2.FinishReason.Value(f"FINISH_REASON_{reason}")
    stream.receive(generation_pb2.GenerateResponse(position=4, end={"finish_reason": value}))
    assert (stream.end is not None) == ends
    assert stream.finish_reason == (reason.lower() if ends else "")


def test_the_wait_doubles_up_to_its_bound_less_up_to_a_half():
    attempts = Attempts(Reconnect(max_reconnects=5, backoff_s=1, backoff_max_s=5), addresses=1, answered=True)
    waits = [attempts.failed(LOST) for _ in range(5)]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, [1, 2, 4, 5, 5], strict=True))


def test_waits_are_spread_over_the_half():
    waits = [Attempts(Reconnect(backoff_s=1), addresses=1, answered=True).failed(LOST) for _ in range(100)]
    assert min(waits) < 0.6
    assert max(waits) > 0.9


def test_the_wait_is_never_shorter_than_the_server_asks_for():
    assert Attempts(Reconnect(backoff_max_s=1), addresses=1, answered=True).failed(BUSY) == 7.0


def test_every_address_is_tried_before_there_is_any_wait():
    attempts = Attempts(Reconnect(backoff_s=1), addresses=3, answered=True)
    assert [attempts.failed(LOST) > 0 for _ in range(6)] == [False, False, True, False, False, True]


def test_it_gives_up_after_so_many_failures_in_a_row():
    attempts = Attempts(Reconnect(max_reconnects=2, backoff_s=0), addresses=1, answered=True)
    for _ in range(5):
        attempts.failed(LOST)
        attempts.succeeded()
    attempts.failed(LOST)
    attempts.failed(LOST)
    with pytest.raises(CallFailed, match="Socket closed"):
        attempts.failed(LOST)


def test_generations_made_together_give_up_only_when_none_of_them_makes_progress():
    progress = Progress()
    one, other = (Attempts(Reconnect(max_reconnects=1), 1, True, progress) for _ in range(2))
    for _ in range(5):
        one.failed(BUSY)
        other.succeeded()
    assert one.failed_in_a_row == 5  # so the delays go on growing
    one.failed(BUSY)
    with pytest.raises(CallFailed):
        one.failed(BUSY)


def test_it_gives_up_sooner_where_no_server_has_ever_answered():
    attempts = Attempts(Reconnect(max_reconnects=9, first_reconnects=1, backoff_s=0), addresses=1, answered=False)
    attempts.failed(LOST)
    with pytest.raises(CallFailed):
        attempts.failed(LOST)


def test_a_server_that_has_answered_once_is_waited_for_longer():
    attempts = Attempts(Reconnect(max_reconnects=9, first_reconnects=0, backoff_s=0), addresses=1, answered=False)
    attempts.succeeded()
    assert [attempts.failed(LOST) for _ in range(9)] == [0.0] * 9


@pytest.mark.parametrize("failure", [BUSY, Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="QUEUE_FULL")])
def test_a_program_that_does_not_wait_gets_the_refusal_at_once(failure):
    attempts = Attempts(Reconnect(wait_when_refused=False, backoff_s=0), addresses=1, answered=True)
    assert attempts.failed(LOST) == 0.0
    with pytest.raises(type(failure)):
        attempts.failed(failure)


def test_a_refusal_shows_that_somebody_is_there():
    attempts = Attempts(Reconnect(first_reconnects=0, backoff_s=0), addresses=1, answered=False)
    assert attempts.failed(BUSY) == 7.0
