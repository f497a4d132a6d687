"""Validation of `Generate`, `Converse` and `Score` requests, each into one plain value."""

from __future__ import annotations

import dataclasses
import secrets
import time

from gruve.errors import InvalidField
from gruve.serve.validation import (
    MAX_LOGPROBS,
    MAX_PROMPT_TOKENS,
    Prompt,
    check_between,
    check_printable,
    check_size,
    optional_int,
    shortest_decimal,
    validate_prompt,
    validate_sampling,
    validate_ttl,
)
from gruve.sessions.generation_request import GenerationRequest
from gruve.sessions.opening import ExistingSession, NewSession, NoSession, OpenRequest, Source
from gruve.v1 import generation_pb2

MAX_MAX_TOKENS = 65_536
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 64
MAX_SCORED_LOGPROBS = 131_072
MAX_ID_CHARACTERS = 128
MAX_TOKENS_PER_MESSAGE = 4_096
MIN_RATE, MAX_RATE = 0.01, 1e6
DEADLINE_MARGIN_S = 0.02
"""A generation ends this long before its call's deadline, so that the last message still arrives."""


@dataclasses.dataclass(frozen=True, slots=True)
class ValidatedGenerate:
    """A `Generate` or `Converse` request whose fields are within their bounds."""

    open: OpenRequest
    max_message_tokens: int
    credit: int | None
    """How many tokens a `Converse` client accepts at first; None for `Generate`, which has no credit."""
    arrived_s: float
    """Monotonic time at which the request arrived."""


def validate_generate(
    request: generation_pb2.GenerateRequest,
    time_remaining_s: float | None,
    max_ttl_s: float,
    credit: int | None = None,
) -> ValidatedGenerate:
    """Validates a request; `time_remaining_s` is the time until its call's deadline, None without one.

    Checks that need the model's vocabulary are made when the prompt's tokens are known. Raises `InvalidField`.
    """
    arrived_s = time.monotonic()
    source = _source(request, max_ttl_s)
    deadline_s = None
    if time_remaining_s is not None:
        deadline_s = arrived_s + max(0.0, time_remaining_s - DEADLINE_MARGIN_S)
    generation = _generation_request(request, deadline_s)
    max_message_tokens = optional_int(request, "max_tokens_per_message", 1, MAX_TOKENS_PER_MESSAGE)
    return ValidatedGenerate(
        OpenRequest(source, validate_prompt(request), generation),
        max_message_tokens or MAX_TOKENS_PER_MESSAGE,
        credit,
        arrived_s,
    )


def _source(request: generation_pb2.GenerateRequest, max_ttl_s: float) -> Source:
    match request.WhichOneof("source"):
        case "session_id":
            return ExistingSession(request.session_id)
        case "new_session":
            ttl_s = validate_ttl(request.new_session, "new_session.idle_ttl", max_ttl_s)
            return NewSession(request.new_session.model, ttl_s or max_ttl_s)
        case "model":
            return NoSession(request.model)
    raise InvalidField("source", "absent; one of model, session_id and new_session must be set")


def _generation_request(request: generation_pb2.GenerateRequest, deadline_s: float | None) -> GenerationRequest:
    generation_id = request.generation_id if request.HasField("generation_id") else secrets.token_hex(16)
    check_size("generation_id", len(generation_id), 1, MAX_ID_CHARACTERS, "characters")
    check_printable("generation_id", generation_id)
    max_tokens = optional_int(request, "max_tokens", 1, MAX_MAX_TOKENS)
    min_tokens = optional_int(request, "min_tokens", 0, MAX_MAX_TOKENS)
    logprobs = optional_int(request, "logprobs", 0, MAX_LOGPROBS)
    check_size("stop", len(request.stop), 0, MAX_STOPS)
    for i, stop in enumerate(request.stop):
        check_size(f"stop[{i}]", len(stop), 1, MAX_STOP_CHARACTERS, "characters")
    check_size("stop_token_ids", len(request.stop_token_ids), 0, MAX_STOPS)
    rate = None
    if request.HasField("max_tokens_per_second"):
        value = shortest_decimal(request.max_tokens_per_second)
        rate = check_between("max_tokens_per_second", value, MIN_RATE, MAX_RATE)
    sampling = validate_sampling(request.sampling)
    if request.WhichOneof("source") == "model" and request.from_position and "seed" not in sampling:
        raise InvalidField("sampling.seed", "absent; without a session, from_position needs the seed that was reported")
    return GenerationRequest(
        generation_id=generation_id,
        prompt=(),
        sampling=sampling,
        fresh_seed=0 if "seed" in sampling else secrets.randbits(64),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=request.ignore_eos,
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        from_position=request.from_position if request.HasField("from_position") else None,
        expected_position=request.expected_position if request.HasField("expected_position") else None,
        logprobs=logprobs,
        echo=request.echo,
        max_tokens_per_second=rate,
        deadline_s=deadline_s,
        allow_numerics_change=request.allow_numerics_change,
        rebase=request.rebase,
    )


def validate_score_content(request: generation_pb2.ScoreRequest) -> Prompt:
    """The text or the tokens to score."""
    field = request.WhichOneof("content")
    if field is None:
        raise InvalidField("content", "absent; one of text and tokens must be set")
    return Prompt(field, request.text, tuple(request.tokens.ids), empty="nothing to measure")


def validate_score(request: generation_pb2.ScoreRequest, token_count: int) -> tuple[int, int | None]:
    """The window in tokens, and the number of alternatives to report for each token; None for no log-probabilities."""
    window = optional_int(request, "window_tokens", 1, MAX_PROMPT_TOKENS) or token_count
    logprobs = optional_int(request, "logprobs", 0, MAX_LOGPROBS)
    if logprobs is not None and token_count * (1 + logprobs) > MAX_SCORED_LOGPROBS:
        raise InvalidField(
            "logprobs", f"{token_count} tokens times {1 + logprobs} log-probabilities; at most {MAX_SCORED_LOGPROBS}"
        )
    return window, logprobs
