"""The door: reads requests field by field, checks every bound, and speaks the engine's plain values afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf import duration_pb2, timestamp_pb2

from gruve.engine.sequence import FinishReason, TokenLogprobs
from gruve.errors import InvalidField
from gruve.model.sampling import SamplingParameters
from gruve.model.tokenizer import Tokenizer
from gruve.sessions.generations import GenerationRequest
from gruve.v1 import generation_pb2, sampling_pb2

MAX_PROMPT_TOKENS = 65_536
MAX_MAX_TOKENS = 65_536
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 64
MAX_LOGPROBS = 20
MAX_SCORED_LOGPROBS = 131_072
MAX_GENERATION_ID = 128
MAX_TOKENS_PER_MESSAGE = 4_096
LONG_TEXT_CHARACTERS = 4_096
"""A longer text is cut into tokens on another thread, for the streams go on meanwhile."""
MIN_RATE, MAX_RATE = 0.01, 1e6
MIN_TTL_S = 1.0
DEADLINE_MARGIN_S = 0.02
"""How long before a call's deadline its generation ends, so that the last message still arrives."""

FINISH = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.END_OF_SEQUENCE: generation_pb2.FINISH_REASON_END_OF_SEQUENCE,
    FinishReason.CANCELLED: generation_pb2.FINISH_REASON_CANCELLED,
    FinishReason.DEADLINE: generation_pb2.FINISH_REASON_DEADLINE,
    FinishReason.HANDED_OVER: generation_pb2.FINISH_REASON_HANDED_OVER,
}


@contextlib.contextmanager
def inside(path: str) -> Iterator[None]:
    """Names the fields of a message that stands inside another by their path in that."""
    try:
        yield
    except InvalidField as error:
        raise InvalidField(f"{path}.{error.field}", error.why) from error


async def generation_request(
    request: generation_pb2.GenerateRequest, tokenizer: Tokenizer, time_remaining_s: float | None
) -> GenerationRequest:
    """The request as plain values; raises `InvalidField` or `UnknownCharacter`."""
    deadline_s = None
    if time_remaining_s is not None:
        deadline_s = time.monotonic() + max(0.0, time_remaining_s - DEADLINE_MARGIN_S)
    generation_id = request.generation_id if request.HasField("generation_id") else secrets.token_hex(16)
    _length("generation_id", generation_id, 1, MAX_GENERATION_ID)
    max_tokens = _optional(request, "max_tokens", 1, MAX_MAX_TOKENS)
    min_tokens = _optional(request, "min_tokens", 0, MAX_MAX_TOKENS)
    logprobs = _optional(request, "logprobs", 0, MAX_LOGPROBS)
    _count("stop", len(request.stop), 0, MAX_STOPS)
    for i, stop in enumerate(request.stop):
        _length(f"stop[{i}]", stop, 1, MAX_STOP_CHARACTERS)
    _count("stop_token_ids", len(request.stop_token_ids), 0, MAX_STOPS)
    rate = None
    if request.HasField("max_tokens_per_second"):
        rate = _between("max_tokens_per_second", _decimal(request.max_tokens_per_second), MIN_RATE, MAX_RATE)
    sampling = sampling_of(request.sampling, tokenizer.size)
    if request.WhichOneof("source") == "model" and request.from_position and "seed" not in sampling:
        raise InvalidField("sampling.seed", "absent; without a session, from_position needs the seed that was reported")
    return GenerationRequest(
        generation_id=generation_id,
        prompt=await prompt_of(request, tokenizer),
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


def measures_of(request: generation_pb2.ScoreRequest, count: int) -> tuple[int, int | None]:
    """How many of `count` tokens make a window, and how many alternatives are asked for; None: no log-probabilities."""
    window = _optional(request, "window_tokens", 1, MAX_PROMPT_TOKENS) or count
    logprobs = _optional(request, "logprobs", 0, MAX_LOGPROBS)
    if logprobs is not None and count * (1 + logprobs) > MAX_SCORED_LOGPROBS:
        raise InvalidField(
            "logprobs", f"{count} tokens times {1 + logprobs} log-probabilities; at most {MAX_SCORED_LOGPROBS}"
        )
    return window, logprobs


def tokens_per_message(request: generation_pb2.GenerateRequest) -> int:
    """The most tokens a message may hold."""
    return _optional(request, "max_tokens_per_message", 1, MAX_TOKENS_PER_MESSAGE) or MAX_TOKENS_PER_MESSAGE


def sampling_of(message: sampling_pb2.SamplingParameters, vocabulary_size: int) -> dict[str, Any]:
    """The fields that are present, as `SamplingParameters` takes them; checks each."""
    fields: dict[str, Any] = {
        name: getattr(message, name) for name in ("top_k", "repetition_window", "seed") if message.HasField(name)
    } | {
        name: _decimal(getattr(message, name))
        for name in ("temperature", "top_p", "min_p", "repetition_penalty")
        if message.HasField(name)
    }
    if message.HasField("logit_bias"):
        fields["logit_bias"] = tuple(sorted(message.logit_bias.biases.items()))
    SamplingParameters(**fields)
    if fields.get("top_k", 0) >= vocabulary_size:
        fields["top_k"] = None  # it keeps all, however it was said
    return fields


async def prompt_of(
    request: generation_pb2.GenerateRequest | generation_pb2.ScoreRequest | generation_pb2.InsertPrompt,
    tokenizer: Tokenizer,
    *,
    oneof: str = "prompt",
) -> tuple[int, ...]:
    """The prompt's tokens, () when it is absent; present and empty it is refused."""
    kind = request.WhichOneof(oneof)
    if kind is None:
        return ()
    if kind == "text":
        ids: Sequence[int] = await encode(tokenizer, request.text)
    else:
        ids = request.tokens.ids
        check_ids(f"{kind}.ids", ids, tokenizer)
    if not ids:
        raise InvalidField(
            kind, f"an empty {oneof}; leave the field out" if oneof == "prompt" else "nothing to measure"
        )
    _count(kind, len(ids), 1, MAX_PROMPT_TOKENS, "tokens")
    return tuple(ids)


async def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, cut on another thread if that takes long; raises `UnknownCharacter`."""
    if len(text) <= LONG_TEXT_CHARACTERS:
        return tokenizer.encode(text)
    return await asyncio.to_thread(tokenizer.encode, text)


def check_count(field: str, ids: Sequence[int]) -> None:
    """Refuses more tokens than a prompt may have."""
    _count(field, len(ids), 0, MAX_PROMPT_TOKENS, "tokens")


def check_ids(field: str, ids: Sequence[int], tokenizer: Tokenizer) -> None:
    """Refuses an id outside the vocabulary, naming it and where it stands."""
    if ids and max(ids) >= tokenizer.size:
        index = next(i for i, token in enumerate(ids) if token >= tokenizer.size)
        raise InvalidField(f"{field}[{index}]", f"{ids[index]} is not a token id; ids are 0 to {tokenizer.size - 1}")


def ttl_of(message: Any, field: str, longest_s: float) -> float | None:
    """The time to live that a message asks for, in seconds, or None."""
    if not message.HasField("idle_ttl"):
        return None
    seconds = message.idle_ttl.seconds + message.idle_ttl.nanos / 1e9
    return _between(field, seconds, MIN_TTL_S, longest_s)


def sampling_message(parameters: SamplingParameters, vocabulary_size: int) -> sampling_pb2.SamplingParameters:
    """The parameters in force, every field present."""
    return sampling_pb2.SamplingParameters(
        temperature=parameters.temperature,
        top_k=min(parameters.top_k or vocabulary_size, vocabulary_size),
        top_p=parameters.top_p,
        min_p=parameters.min_p,
        repetition_penalty=parameters.repetition_penalty,
        repetition_window=parameters.repetition_window,
        logit_bias=sampling_pb2.LogitBias(biases=dict(parameters.logit_bias)),
        seed=parameters.seed,
    )


def logprobs_message(logprobs: TokenLogprobs, texts: Sequence[str]) -> sampling_pb2.TokenLogprobs:
    """One token's log-probabilities with the alternatives' texts."""
    return sampling_pb2.TokenLogprobs(
        logprob=logprobs.logprob,
        alternatives=[
            sampling_pb2.TokenAlternative(token_id=token, text=texts[token], logprob=value)
            for token, value in logprobs.alternatives
        ],
    )


def duration(seconds: float) -> duration_pb2.Duration:
    """Seconds as a Duration."""
    return duration_pb2.Duration(seconds=int(seconds), nanos=int((seconds - int(seconds)) * 1e9))


def timestamp(unix_s: float) -> timestamp_pb2.Timestamp:
    """Unix time as a Timestamp."""
    return timestamp_pb2.Timestamp(seconds=int(unix_s), nanos=int((unix_s - int(unix_s)) * 1e9))


def _optional(request: Any, field: str, least: int, most: int) -> int | None:
    if not request.HasField(field):
        return None
    value: int = getattr(request, field)
    return int(_between(field, value, least, most))


def _between(field: str, value: float, least: float, most: float) -> float:
    if not least <= value <= most:  # NaN is not either
        raise InvalidField(field, f"{_shown(value)} is not between {_shown(least)} and {_shown(most)}")
    return value


def _shown(value: float) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)


@functools.lru_cache(1_024)
def _decimal(value: float) -> float:
    """The number that was meant by a 32-bit float: the shortest decimal that rounds to it.

    0.01 as a 32-bit float is a little less than 0.01, and must not be refused for it.
    """
    return float(str(np.float32(value)))


def _count(field: str, count: int, least: int, most: int, unit: str = "entries") -> None:
    if not least <= count <= most:
        raise InvalidField(field, f"{count} {unit}; allowed are {least} to {most}")


def _length(field: str, text: str, least: int, most: int) -> None:
    if not least <= len(text) <= most:
        raise InvalidField(field, f"{len(text)} characters; allowed are {least} to {most}")
