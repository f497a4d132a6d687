"""What a client may say while tokens flow, read field by field and free of the wire."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from gruve.errors import InvalidField, InvalidRequest
from gruve.model.tokenizer import Tokenizer
from gruve.serve import validation
from gruve.sessions.generations import check_bias
from gruve.v1 import generation_pb2

DEFAULT_CREDIT = 256
MAX_CREDIT = 65_536

Kind = Literal["change_parameters", "insert_prompt", "pause", "resume", "rewind", "stop"]


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """One message that steers."""

    id: int
    kind: Kind
    at: int | None = None
    """Where it takes effect, for a rewind the first position to take back; None for the next token not yet sent."""
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The parameters to change."""
    prompt: tuple[int, ...] = ()
    seed: int | None = None


def start_of(request: object) -> tuple[generation_pb2.GenerateRequest, int]:
    """What the first message asks to be generated, and its credit; raises `InvalidRequest` if it is no `start`."""
    if not isinstance(request, generation_pb2.ConverseRequest) or request.WhichOneof("message") != "start":
        raise InvalidRequest(f"the first message {_named(request)}; it must be a start")
    _no_position(request)
    credit = request.start.credit if request.start.HasField("credit") else DEFAULT_CREDIT
    if credit > MAX_CREDIT:
        raise InvalidField("start.credit", f"{credit} is above {MAX_CREDIT}")
    return request.start.generate, credit


def grant_of(request: object) -> int | None:
    """How many tokens a later message grants; None if it is a control, which `control_of` reads.

    Raises what ends the call: `InvalidRequest` for what is neither, `InvalidField` for a grant that is none.
    """
    if not isinstance(request, generation_pb2.ConverseRequest) or request.WhichOneof("message") == "start":
        raise InvalidRequest(f"a later message {_named(request)}; it must be a grant or a control")
    if request.WhichOneof("message") != "grant":
        return None
    _no_position(request)
    if not request.grant.tokens:
        raise InvalidField("grant.tokens", "0 grants nothing; at least 1")
    return request.grant.tokens


async def control_of(request: generation_pb2.ConverseRequest, tokenizer: Tokenizer) -> Control:
    """A message that steers, checked; raises `InvalidField` or `UnknownCharacter`, which refuse it."""
    kind = request.WhichOneof("message")
    at = request.at_position if request.HasField("at_position") else None
    match kind:
        case "change_parameters":
            sampling = validation.sampling_of(request.change_parameters.sampling, tokenizer.size)
            check_bias(sampling.get("logit_bias", ()), tokenizer.size)
            return Control(request.control_id, kind, at, sampling=sampling)
        case "insert_prompt":
            prompt = await validation.prompt_of(request.insert_prompt, tokenizer)
            if not prompt:
                raise InvalidField("insert_prompt.prompt", "absent; one of text and tokens must be set")
            return Control(request.control_id, kind, at, prompt=prompt)
        case "rewind":
            _no_position(request)
            seed = request.rewind.seed if request.rewind.HasField("seed") else None
            return Control(request.control_id, kind, request.rewind.to_position, seed=seed)
        case "resume":
            _no_position(request)
            return Control(request.control_id, kind)
        case "pause" | "stop":
            return Control(request.control_id, kind, at)
    raise InvalidField("message", "absent; it must say what to do")


def _no_position(request: generation_pb2.ConverseRequest) -> None:
    if request.HasField("at_position"):
        raise InvalidField("at_position", f"{request.at_position} is given; {request.WhichOneof('message')} takes none")


def _named(request: object) -> str:
    if not isinstance(request, generation_pb2.ConverseRequest):
        return "is missing"
    return f"is a {request.WhichOneof('message')}" if request.WhichOneof("message") else "says nothing"
