"""Builds the contract's requests from plain Python values, and joins what comes in pages.

What cannot be written as a request is refused as a server would refuse it.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import grpc

from gruve.client.errors import CallFailed, FieldViolation, InvalidRequest
from gruve.v1 import generation_pb2, sampling_pb2, session_pb2

Text = str | Sequence[int]
"""A text, or the ids of its tokens."""


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen; see `SamplingParameters`. None is the same as absent."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    repetition_window: int | None
    logit_bias: Mapping[int, float] | None
    seed: int | None


class GenerateOptions(SamplingOptions, total=False):
    """What a generation may be told beside its source and prompt; see `GenerateRequest` and `SamplingParameters`.

    None is the same as absent: the value of the session, or the contract's default.
    """

    generation_id: str | None
    from_position: int | None
    expected_position: int | None
    max_tokens: int | None
    min_tokens: int | None
    ignore_eos: bool | None
    stop: Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    logprobs: int | None
    echo: bool | None
    max_tokens_per_message: int | None
    max_tokens_per_second: float | None
    allow_numerics_change: bool | None
    rebase: bool | None


SAMPLING = frozenset(sampling_pb2.SamplingParameters.DESCRIPTOR.fields_by_name)


def generate_request(
    prompt: Text | None, model: str | None, session: str | None, new_session: bool, options: GenerateOptions
) -> generation_pb2.GenerateRequest:
    """The request for a generation, with a generation_id of its own so that it can be resumed."""
    if (model is None) == (session is None):
        raise _refused("source", f"model is {model!r} and session is {session!r}; give one of the two")
    if new_session and model is None:
        raise _refused("new_session", "a new session needs a model, not a session")
    request = generation_pb2.GenerateRequest(generation_id=uuid.uuid4().hex)
    if session is not None:
        _set(request, "session_id", session)
    elif new_session:
        _set(request.new_session, "model", model)
    else:
        _set(request, "model", model)
    if prompt is not None:
        _set_text(request, prompt)
    for name, value in options.items():
        if value is None:
            continue
        target = request.sampling if name in SAMPLING else request
        _set(target, name, value)
    return request


def score_request(
    content: Text, model: str, window_tokens: int | None, logprobs: int | None
) -> generation_pb2.ScoreRequest:
    """The request to measure a text."""
    request = generation_pb2.ScoreRequest()
    _set(request, "model", model)
    _set_text(request, content)
    for name, value in (("window_tokens", window_tokens), ("logprobs", logprobs)):
        if value is not None:
            _set(request, name, value)
    return request


def create_request(model: str, idle_ttl_s: float | None) -> session_pb2.CreateSessionRequest:
    """The request for a new session."""
    request = session_pb2.CreateSessionRequest()
    _set(request.session, "model", model)
    _set_ttl(request.session, "session.idle_ttl", idle_ttl_s)
    return request


def fork_request(session: str, seeds: Sequence[int | None]) -> session_pb2.ForkSessionRequest:
    """The request for copies of a session."""
    request = session_pb2.ForkSessionRequest()
    _set(request, "session_id", session)
    for seed in seeds:
        branch = request.branches.add()
        if seed is not None:
            _set(branch, "seed", seed)
    return request


def rewind_session_request(session: str, to_position: int, seed: int | None) -> session_pb2.RewindSessionRequest:
    """The request to take back the end of a session."""
    request = session_pb2.RewindSessionRequest()
    _set(request, "session_id", session)
    _set(request, "to_position", to_position)
    if seed is not None:
        _set(request, "seed", seed)
    return request


def import_request(blob: bytes, idle_ttl_s: float | None) -> session_pb2.ImportSessionRequest:
    """The request to import a session."""
    request = session_pb2.ImportSessionRequest()
    _set(request, "blob", blob)
    _set_ttl(request, "idle_ttl", idle_ttl_s)
    return request


def change_request(sampling: SamplingOptions, at_position: int | None) -> generation_pb2.ConverseRequest:
    """The control that changes how tokens are chosen."""
    request = steer_request("change_parameters", at_position)
    for name, value in sampling.items():
        if value is not None:
            _set(request.change_parameters.sampling, name, value)
    return request


def insert_request(prompt: Text, at_position: int | None) -> generation_pb2.ConverseRequest:
    """The control that makes the model read something."""
    request = steer_request("insert_prompt", at_position)
    _set_text(request.insert_prompt, prompt)
    return request


def rewind_request(to_position: int, seed: int | None) -> generation_pb2.ConverseRequest:
    """The control that takes back tokens."""
    request = steer_request("rewind", None)
    _set(request.rewind, "to_position", to_position)
    if seed is not None:
        _set(request.rewind, "seed", seed)
    return request


def steer_request(what: str, at_position: int | None) -> generation_pb2.ConverseRequest:
    """A control of that name with nothing in it."""
    request = generation_pb2.ConverseRequest()
    getattr(request, what).SetInParent()
    if at_position is not None:
        _set(request, "at_position", at_position)
    return request


def add_page(whole: session_pb2.GetSessionResponse, page: session_pb2.GetSessionResponse) -> None:
    """Appends the next page of a transcript."""
    whole.token_ids.extend(page.token_ids)
    whole.text += page.text
    whole.generations.extend(page.generations)
    whole.next_page_token = page.next_page_token


def _set_ttl(message: Any, field: str, idle_ttl_s: float | None) -> None:
    if idle_ttl_s is None:
        return
    try:
        message.idle_ttl.FromTimedelta(datetime.timedelta(seconds=idle_ttl_s))
    except (OverflowError, ValueError) as error:
        raise _refused(field, f"{idle_ttl_s} s is no duration: {error}") from error


def _set_text(request: Any, text: Text) -> None:
    if isinstance(text, str):
        _set(request, "text", text)
    else:
        request.tokens.SetInParent()
        _set(request.tokens, "ids", text)


def _set(message: Any, name: str, value: Any) -> None:
    """Sets a field of a message; refuses a value that the field's type cannot hold."""
    try:
        if name == "logit_bias":
            message.logit_bias.SetInParent()
            message.logit_bias.biases.update(value)
        elif name in ("ids", "stop", "stop_token_ids"):
            getattr(message, name).extend([value] if isinstance(value, str) else value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError, AttributeError) as error:
        raise _refused(name, f"{value!r:.80} cannot be sent: {error}") from error


def _refused(field: str, why: str) -> CallFailed:
    return InvalidRequest(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"{field}: {why}",
        reason="INVALID_FIELD",
        violations=(FieldViolation(field, why),),
    )
