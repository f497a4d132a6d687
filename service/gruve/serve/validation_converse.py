"""Validation of the messages that start and steer a conversation, each into a plain value."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, Literal

from gruve.errors import InvalidField, InvalidRequest
from gruve.model.tokenizer import Tokenizer
from gruve.serve.validation import inside, validate_prompt, validate_sampling
from gruve.sessions.generation_request import check_bias, limit_top_k
from gruve.v1 import generation_pb2

DEFAULT_CREDIT = 256
MAX_CREDIT = 65_536

Kind = Literal["change_parameters", "insert_prompt", "pause", "resume", "rewind", "stop"]


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """One control."""

    id: int
    kind: Kind
    at: int | None = None
    """Where it takes effect, for a rewind the first position to take back; None for the next token not yet sent."""
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The parameters to change."""
    prompt: tuple[int, ...] = ()
    seed: int | None = None
    message: generation_pb2.ConverseRequest | None = None
    """The message that it was read from, if it came by `Control`."""
    reply: asyncio.Future[generation_pb2.ControlApplied] | None = None
    """The answer to a `Control` call; None for a control of the stream's own client."""


def validate_start(request: object) -> tuple[generation_pb2.GenerateRequest, int]:
    """The first message's `generate` request and its credit. Raises `InvalidRequest` if it is not a `start`."""
    if not isinstance(request, generation_pb2.ConverseRequest) or request.WhichOneof("message") != "start":
        raise InvalidRequest(f"the first message {_kind_of(request)}; it must be a start")
    _check_no_position(request)
    with inside("start"):
        return request.start.generate, validate_credit(request.start, DEFAULT_CREDIT)


def validate_credit(
    request: generation_pb2.ConverseStart | generation_pb2.StartConversationRequest, default: int
) -> int:
    """How many tokens may be sent before the first grant."""
    credit = request.credit if request.HasField("credit") else default
    if credit > MAX_CREDIT:
        raise InvalidField("credit", f"{credit} is above {MAX_CREDIT}")
    return credit


def validate_grant(request: object) -> int | None:
    """How many tokens a later message grants; None if it is a control, which `validate_control` reads.

    Raises what ends the call: `InvalidRequest` for a message that is neither, `InvalidField` for a grant of 0.
    """
    if not isinstance(request, generation_pb2.ConverseRequest) or request.WhichOneof("message") == "start":
        raise InvalidRequest(f"a later message {_kind_of(request)}; it must be a grant or a control")
    if request.WhichOneof("message") != "grant":
        return None
    _check_no_position(request)
    if not request.grant.tokens:
        raise InvalidField("grant.tokens", "0 grants nothing; at least 1")
    return request.grant.tokens


async def validate_control(request: generation_pb2.ConverseRequest, tokenizer: Tokenizer) -> Control:
    """The control in a message. Raises `InvalidField` or `UnknownCharacter`, which refuse the control alone."""
    kind = request.WhichOneof("message")
    at = request.at_position if request.HasField("at_position") else None
    match kind:
        case "change_parameters":
            sampling = limit_top_k(validate_sampling(request.change_parameters.sampling), tokenizer.size)
            check_bias(sampling.get("logit_bias", ()), tokenizer.size)
            return Control(request.control_id, kind, at, sampling=sampling)
        case "insert_prompt":
            prompt = await validate_prompt(request.insert_prompt).tokens(tokenizer)
            if not prompt:
                raise InvalidField("insert_prompt.prompt", "absent; one of text and tokens must be set")
            return Control(request.control_id, kind, at, prompt=prompt)
        case "rewind":
            _check_no_position(request)
            seed = request.rewind.seed if request.rewind.HasField("seed") else None
            return Control(request.control_id, kind, request.rewind.to_position, seed=seed)
        case "resume":
            _check_no_position(request)
            return Control(request.control_id, kind)
        case "pause" | "stop":
            return Control(request.control_id, kind, at)
    raise InvalidField("message", "absent; it must say what to do")


def _check_no_position(request: generation_pb2.ConverseRequest) -> None:
    if request.HasField("at_position"):
        raise InvalidField("at_position", f"{request.at_position} is given; {request.WhichOneof('message')} takes none")


def _kind_of(request: object) -> str:
    if not isinstance(request, generation_pb2.ConverseRequest):
        return "is missing"
    return f"is a {request.WhichOneof('message')}" if request.WhichOneof("message") else "says nothing"
