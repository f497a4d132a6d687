"""Builds the protocol's requests from plain Python values, and joins the pages of a response.

A value that a request cannot hold raises `InvalidRequest`, as it would from a server. A keyword that is no option
raises `TypeError`.
"""

from __future__ import annotations

import datetime
import difflib
import inspect
import operator
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypedDict, TypeVar

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gruve.client.errors import CallFailed, FieldViolation, InvalidRequest
from gruve.v1 import generation_pb2, sampling_pb2, session_pb2

MAX_CREDIT: Final = 65_536
"""The most tokens that a conversation may be granted."""
Text = str | Sequence[int]
"""A text, or the ids of its tokens."""


class SamplingOptions(TypedDict, total=False):
    """How tokens are sampled; bounds and defaults are those of `SamplingParameters` in proto/gruve/v1/sampling.proto.

    None is the same as absent: the value of the session, or the default.

    temperature: 0 always takes the most probable token, 1 samples the model's distribution and is the default. What a
        model recommends is `default_temperature` of its `Model`; the commands send that, this client does not.
    top_k: keeps the k most probable tokens.
    top_p: keeps the fewest tokens that have this probability together.
    min_p: keeps tokens with at least this fraction of the highest probability.
    repetition_penalty: above 1, makes tokens less probable that are in the window.
    repetition_window: the number of last tokens that count as a repetition.
    logit_bias: token id -> number that is added to its logit.
    seed: the same seed and request give the same tokens; absent, the server draws one and reports it.
    """

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    repetition_window: int | None
    logit_bias: Mapping[int, float] | None
    seed: int | None


class CompletionOptions(SamplingOptions, total=False):
    """The options of a text that is read whole: those of `SamplingOptions`, and these fields of `GenerateRequest`.

    max_tokens, min_tokens: the bounds of the number of generated tokens.
    ignore_eos: never samples the end token.
    stop: texts that end the generation; they are not sent.
    stop_token_ids: tokens that end the generation.
    echo: sends the prompt as well.
    """

    max_tokens: int | None
    min_tokens: int | None
    ignore_eos: bool | None
    stop: Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    echo: bool | None


class GenerateOptions(CompletionOptions, total=False):
    """The options of a stream: those of `CompletionOptions`, and these fields of `GenerateRequest`.

    generation_id: the idempotency key; absent, the client chooses one.
    from_position: the position of the first token to send.
    expected_position: fails with `PositionMismatch` if the session is at another position.
    logprobs: the number of most probable tokens to report for each token; 0 reports the sampled one alone.
    max_tokens_per_message: the bound of a chunk.
    max_tokens_per_second: the pace of the generation.
    allow_numerics_change: continues a session on a server with another `numerics_id`.
    rebase: continues a session after its model was replaced, by reading its transcript with the new one.
    """

    generation_id: str | None
    from_position: int | None
    expected_position: int | None
    logprobs: int | None
    max_tokens_per_message: int | None
    max_tokens_per_second: float | None
    allow_numerics_change: bool | None
    rebase: bool | None


Method = TypeVar("Method", bound=Callable[..., Any])
M = TypeVar("M")


def lists_options(options: type) -> Callable[[Method], Method]:
    """Gives a method with `**options` a signature that lists each option, for `help` and `inspect.signature`."""

    def with_signature(method: Method) -> Method:
        signature = inspect.signature(method)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        listed = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint.__forward_arg__)
            for name, hint in options.__annotations__.items()
        ]
        method.__signature__ = signature.replace(parameters=[*own, *listed])  # type: ignore[attr-defined] # of any function
        return method

    return with_signature


def check_names(given: Iterable[str], options: type, parameters: Iterable[str] = ()) -> None:
    """Raises `TypeError` for the first keyword argument that is not one of the options.

    `parameters` are the method's other keywords, which may have been meant.
    """
    for name in given:
        if name not in options.__annotations__:
            near = difflib.get_close_matches(name, [*parameters, *options.__annotations__], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(options.__annotations__)}"
            raise TypeError(f"unexpected keyword argument {name!r}; {hint}")


SOURCES = ("model", "session_id", "new_session")
"""The keywords that say what to generate from."""
SAMPLING = frozenset(sampling_pb2.SamplingParameters.DESCRIPTOR.fields_by_name)


def generate_request(
    prompt: Text | None, model: str | None, session_id: str | None, new_session: bool, options: GenerateOptions
) -> generation_pb2.GenerateRequest:
    """The request for a generation, with a new generation_id by which it can be resumed."""
    check_names(options, GenerateOptions, SOURCES)
    if (model is None) == (session_id is None):
        raise refused("source", f"model is {model!r} and session_id is {session_id!r}; give one of the two")
    if new_session and model is None:
        raise refused("new_session", "a new session needs a model, not a session_id")
    request = generation_pb2.GenerateRequest(generation_id=uuid.uuid4().hex)
    if session_id is not None:
        _set(request, "session_id", session_id)
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


def fork_request(session_id: str, seeds: Sequence[int | None]) -> session_pb2.ForkSessionRequest:
    """The request for copies of a session."""
    request = session_pb2.ForkSessionRequest()
    _set(request, "session_id", session_id)
    for seed in seeds:
        branch = request.branches.add()
        if seed is not None:
            _set(branch, "seed", seed)
    return request


def rewind_session_request(session_id: str, to_position: int, seed: int | None) -> session_pb2.RewindSessionRequest:
    """The request to remove the end of a session."""
    request = session_pb2.RewindSessionRequest()
    _set(request, "session_id", session_id)
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


def request_of(kind: type[M], **fields: Any) -> M:
    """A request of a kind with these fields; None leaves a field absent."""
    request = kind()
    for name, value in fields.items():
        if value is not None:
            _set(request, name, value)
    return request


def change_request(sampling: SamplingOptions, at_position: int | None) -> generation_pb2.ConverseRequest:
    """The control that changes the sampling."""
    check_names(sampling, SamplingOptions)
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
    """The control that removes tokens."""
    request = steer_request("rewind", None)
    _set(request.rewind, "to_position", to_position)
    if seed is not None:
        _set(request.rewind, "seed", seed)
    return request


def steer_request(control: str, at_position: int | None) -> generation_pb2.ConverseRequest:
    """An empty control of that name."""
    request = generation_pb2.ConverseRequest()
    getattr(request, control).SetInParent()
    if at_position is not None:
        _set(request, "at_position", at_position)
    return request


def grant_request(tokens: int) -> generation_pb2.ConverseRequest:
    """The message that allows the server to send more tokens."""
    request = generation_pb2.ConverseRequest()
    _set(request.grant, "tokens", tokens)
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
        raise refused(field, f"{idle_ttl_s} s is no duration: {error}") from error


def _set_text(request: Any, text: Text) -> None:
    if isinstance(text, bytes | bytearray | memoryview):  # would be taken for token ids
        raise refused("text", f"{text!r:.80} is {type(text).__name__}; must be a str, or the ids of tokens")
    if isinstance(text, str):
        _set(request, "text", text)
    else:
        request.tokens.SetInParent()
        _set(request.tokens, "ids", text)


_ALLOWED: Final = {
    FieldDescriptor.TYPE_STRING: "a str without lone surrogates",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "True or False",
    FieldDescriptor.TYPE_FLOAT: "a number",
    FieldDescriptor.TYPE_UINT32: f"a whole number from 0 to {2**32 - 1}",
    FieldDescriptor.TYPE_UINT64: f"a whole number from 0 to {2**64 - 1}",
    FieldDescriptor.TYPE_FIXED64: f"a whole number from 0 to {2**64 - 1}",
    FieldDescriptor.TYPE_MESSAGE: "a mapping of token ids to numbers",  # logit_bias, the only one that is set here
}


def _set(message: Any, name: str, value: Any) -> None:
    """Sets a field of a message; refuses a value that the field's type cannot hold."""
    try:
        if name == "logit_bias":
            message.logit_bias.SetInParent()
            message.logit_bias.biases.update(value)
        elif name in ("ids", "token_ids", "stop", "stop_token_ids"):
            getattr(message, name).extend([value] if isinstance(value, str) else value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError, AttributeError) as error:
        raise refused(name, f"{value!r:.80} cannot be sent; must be {_allowed(message.DESCRIPTOR, name)}") from error


def _allowed(message: Descriptor, name: str) -> str:
    """What a field can hold, in words."""
    field = message.fields_by_name[name]
    words = _ALLOWED[field.type]
    return f"a list, each {words}" if field.is_repeated else words


def whole_number(value: Any) -> int | None:
    """The value as an `int`, that of numpy as well; None if it is no whole number."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_tokens(field: str, tokens: int, least: int) -> None:
    """Raises `InvalidRequest` unless `tokens` is a whole number from `least` to `MAX_CREDIT`."""
    number = whole_number(tokens)
    if number is None or not least <= number <= MAX_CREDIT:
        raise refused(field, f"{tokens!r:.80} must be a whole number from {least} to {MAX_CREDIT}")


def refused(field: str, why: str) -> CallFailed:
    """The error for a value that no request can have."""
    return InvalidRequest(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"{field}: {why}",
        reason="INVALID_FIELD",
        violations=(FieldViolation(field, why),),
    )
