"""Errors on the wire: one status and one reason each, with details, and no internals for the client."""

from __future__ import annotations

import inspect
import itertools
import logging
import re
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from gruve import errors
from gruve.decode.reference import ReferenceBackend
from gruve.decode.tiles import Tiles
from gruve.serve.calls.status import RETRIES, status_code, trailer
from gruve.serve.streams import stream
from gruve.v1 import error_pb2
from gruve.v1 import sampling_pb2 as s
from serving import Gate, broken, read, refusal, until

PROTO = Path(__file__).parents[2] / "proto" / "gruve" / "v1" / "error.proto"
TREE = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.GruveError)]
# Errors of rooms that no request reaches, or that are never raised themselves.
NOT_ON_THE_WIRE = {
    errors.TuneError,
    errors.ModelError,
    errors.ModelExists,
    errors.CorpusError,
    errors.SessionError,
    errors.Unavailable,
    errors.CannotListen,
    errors.CredentialsBroken,
    errors.StoreBroken,
}
ON_THE_WIRE = [c for c in TREE if c not in NOT_ON_THE_WIRE]
MADE_WITH = {
    errors.InvalidField: ("field", "why"),
    errors.UnknownCharacter: ("é", "é", 0),
    errors.HandedOver: (7,),
    errors.EngineFailed: ("abc",),
    errors.DeadlineTooSoon: ("what happened", 9.0, 5.0),
    errors.LimitExceeded: ("what happened", "streams", 4, 1.0),
}


def contract():
    """The status of each reason by error.proto, and whether a RetryInfo comes with it."""
    text = PROTO.read_text()
    found = re.findall(r"((?:  //.*\n)+)  ERROR_REASON_(\w+) = \d+;", text)
    said = {name: re.sub(r"\s*//\s*", " ", comment).strip() for comment, name in found}
    return {
        name: (comment.split(":")[0].split(",")[0], ", with RetryInfo:" in comment)
        for name, comment in said.items()
        if name != "UNSPECIFIED"
    }


def make(kind):
    return kind(*MADE_WITH.get(kind, ("what happened",)))


@pytest.mark.parametrize("kind", ON_THE_WIRE, ids=lambda kind: kind.__name__)
def test_an_error_has_the_status_that_the_contract_gives_its_reason(kind):
    status, retry = contract()[kind.reason]
    assert status_code(make(kind)).name == status
    assert issubclass(kind, RETRIES) == retry
    assert f"ERROR_REASON_{kind.reason}" in error_pb2.ErrorReason.keys()  # noqa: SIM118 - no dict


def test_every_reason_of_the_contract_is_an_errors_or_a_later_releases():
    assert {kind.reason for kind in ON_THE_WIRE} | {"RELOAD_REFUSED"} == set(contract())


def test_details_fit_into_the_trailers_whatever_a_message_quotes():
    huge = "\U0001d11e" * 5_000
    for error in (errors.InvalidField(huge[:50], huge), errors.ModelBroken(huge, state_reason=huge)):
        key, packed = trailer(error)
        status = status_pb2.Status.FromString(packed)
        assert key.endswith("-bin")
        assert len(packed) * 4 / 3 + 3 * len(status.message.encode()) < 8_000
        assert status.message.endswith("…")


def test_the_details_say_what_the_error_knows():
    _, packed = trailer(errors.SessionBusy("busy", retry_after_s=1.25))
    status = status_pb2.Status.FromString(packed)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("gruve", "SESSION_BUSY")
    assert status.details[1].Unpack(retry)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 250_000_000)


def test_what_fails_inside_is_answered_with_an_incident_and_nothing_else(start, monkeypatch, caplog):
    server = start()

    def fail(session_id, tenant):
        raise RuntimeError("secret of the house")

    monkeypatch.setattr(server.server.table, "find", fail)
    failure = refusal(lambda: server.session("any"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in failure.message
    record = next(r for r in caplog.records if r.levelno == logging.ERROR)
    assert record.incident == failure.metadata["incident"]
    assert record.incident in failure.message
    assert "secret of the house" in str(record.exc_info[1])


def test_a_stream_that_fails_inside_frees_its_session(start, monkeypatch):
    server = start()
    session = server.create()

    def fail(*args):
        raise RuntimeError("secret of the house")

    with monkeypatch.context() as broken:
        broken.setattr(stream, "logprobs_message", fail)
        failure = refusal(lambda: server.generate(session_id=session, generation_id="a", logprobs=1, max_tokens=50))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    until(lambda: not server.session(session).in_use)
    assert len(server.read(session_id=session, generation_id="a", max_tokens=50).tokens) == 50


def test_a_stream_that_cannot_be_recorded_fails_alone(start, monkeypatch, caplog):
    server = start()
    session, gate = server.create(), Gate(server.host("tiny"))
    lost = server.generate(session_id=session, generation_id="a", max_tokens=20)
    other = server.generate(text="O", max_tokens=20, sampling=s.SamplingParameters(seed=3))
    starts = [next(lost), next(other)]
    record = stream.apply_progress

    def fail(kept, *args):
        if kept.id == session:
            raise RuntimeError("secret of the house")
        return record(kept, *args)

    monkeypatch.setattr(stream, "apply_progress", fail)
    gate.open()
    failure = refusal(lambda: lost)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert failure.metadata["incident"] in {getattr(r, "incident", None) for r in caplog.records}
    assert [len(starts), len(read(other).tokens)] == [2, 20]
    until(lambda: not server.session(session).in_use and server.host("tiny").engine.load == 0)
    monkeypatch.undo()
    assert len(server.read(session_id=session, generation_id="a", max_tokens=20).tokens) == 20


def test_a_computation_that_fails_ends_its_streams_and_loses_nothing(start, caplog):
    server = start()
    session, host = server.create(), server.host("tiny")
    asked = {"text": "O Romeo", "max_tokens": 30, "stop": ["e~"], "sampling": s.SamplingParameters(seed=6)}
    whole, decode, calls = server.read(**asked), host.backend.decode, itertools.count()

    def fail(slots, limits, steps, **more):
        if next(calls) < 20:
            return decode(slots, limits, 1, **more)
        host.backend.decode = decode
        raise MemoryError("secret of the house")

    host.backend.decode = fail
    messages, failure = broken(lambda: server.generate(session_id=session, generation_id="a", **asked))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_FAILED")
    assert "secret" not in failure.message
    assert failure.metadata["incident"] in caplog.text
    assert server.metric("gruve_requests_total", model="tiny", finish_reason="failed") == 1
    assert 8 < server.session(session).position < 38
    for position in (0, messages[-1].position):  # the state is before the prompt, the record after it
        resumed = server.read(session_id=session, generation_id="a", from_position=position, **asked)
        assert resumed.tokens == whole.tokens[max(0, position - 8) :]
    assert server.read(session_id=session, generation_id="a").text == whole.text


def test_a_backend_that_cannot_be_exact_makes_its_model_broken_and_no_other(start, repository, monkeypatch):
    check = Tiles._check_exactness

    def refuse(self):
        if self._config.cell == "lstm":
            raise errors.ModelBroken("not exact here")
        check(self)

    monkeypatch.setattr(Tiles, "_check_exactness", refuse)
    monkeypatch.setattr(
        "gruve.serve.server.choose_backend", lambda model, config: ReferenceBackend(model, config.slots)
    )
    server = start(models=repository)
    assert "not exact here" in refusal(lambda: server.generate(model="lstm")).message
    assert server.read(model="elman", max_tokens=2).tokens
    assert ("lstm", "not exact here") in server.serving.broken


def test_a_model_made_again_or_under_other_arithmetic_is_not_gone_on_with_unawares(start):
    server = start()
    session = server.create()
    server.read(session_id=session, max_tokens=3)
    kept = server.server.table.get(session)
    kept.numerics_id = "elsewhere"
    failure = refusal(lambda: server.generate(session_id=session))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NUMERICS_CHANGED")
    assert set(failure.metadata) == {"session_numerics_id", "server_numerics_id"}
    kept.digest = "other"
    failure = refusal(lambda: server.generate(session_id=session, allow_numerics_change=True))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_CHANGED")
    assert set(failure.metadata) == {"session_digest", "model_digest"}
    assert server.session(session).position == 4
    assert server.read(session_id=session, rebase=True, max_tokens=2).end.next_position == 6
