"""The request to generate, validated and free of the wire, and what of it must match when a generation is resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from gruve.errors import GenerationMismatch, InvalidField
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import Generation, Session


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request to generate. None and empty mean that the client did not set the field."""

    generation_id: str
    prompt: tuple[int, ...]
    sampling: Mapping[str, Any]
    """The `SamplingParameters` fields that are set; the others are inherited."""
    fresh_seed: int
    """The seed if none is given or inherited."""
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    from_position: int | None = None
    expected_position: int | None = None
    logprobs: int | None = None
    echo: bool = False
    max_tokens_per_second: float | None = None
    deadline_s: float | None = None
    """Monotonic."""
    allow_numerics_change: bool = False
    rebase: bool = False


def inherit_sampling(inherited: SamplingParameters | None, request: GenerationRequest) -> SamplingParameters:
    """The parameters of a generation: the request's, else the inherited ones, else the defaults; always with a seed."""
    if inherited is not None:
        return dataclasses.replace(inherited, **request.sampling)
    return SamplingParameters(**{"seed": request.fresh_seed, **request.sampling})


def limit_top_k(sampling: Mapping[str, Any], vocabulary_size: int) -> dict[str, Any]:
    """The fields with a `top_k` that keeps every token replaced by None, so that all spellings of it are equal."""
    if (sampling.get("top_k") or 0) < vocabulary_size:
        return dict(sampling)
    return {**sampling, "top_k": None}


def check_bias(logit_bias: Iterable[tuple[int, float]], vocabulary_size: int) -> None:
    """Refuses a bias for a token that does not exist."""
    for token, _ in logit_bias:
        if token >= vocabulary_size:
            raise InvalidField(
                "sampling.logit_bias", f"token id {token} does not exist; ids are 0 to {vocabulary_size - 1}"
            )


def check_same_request(session: Session, generation: Generation, request: GenerationRequest) -> None:
    """Raises `GenerationMismatch` if a field that the request sets differs from the recorded generation's."""
    given: dict[str, tuple[object, object]] = {
        f"sampling.{name}": (value, getattr(generation.sampling, name)) for name, value in request.sampling.items()
    }
    if request.prompt:
        prompt = tuple(session.transcript[generation.prompt_position : generation.start_position])
        given["prompt"] = (request.prompt, prompt)
    for name in ("max_tokens", "min_tokens"):
        if (number := getattr(request, name)) is not None:
            given[name] = (number, getattr(generation, name))
    for name in ("stop", "stop_token_ids", "ignore_eos"):
        if value := getattr(request, name):
            given[name] = (value, getattr(generation, name))
    for name, (value, recorded) in given.items():
        if value != recorded:
            shown = "another prompt" if name == "prompt" else f"{name} {recorded!r}; the request now says {value!r}"
            raise GenerationMismatch(f"generation {generation.id!r} was made from {shown}", field=name)
