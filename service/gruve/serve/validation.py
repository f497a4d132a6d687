"""Request validation that several services share: reads fields, checks their bounds, and returns plain values.

Everything here raises `InvalidField`, which names the field and quotes the value and the bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import unicodedata
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gruve.errors import InvalidField
from gruve.model.sampling import SamplingParameters
from gruve.model.tokenizer import Tokenizer
from gruve.serve.callers.identity import current_identity
from gruve.v1 import generation_pb2, sampling_pb2

MAX_PROMPT_TOKENS = 65_536
MAX_LOGPROBS = 20
LONG_TEXT_CHARACTERS = 4_096
"""A longer text is tokenized on a thread, so that streams are not held up."""
MIN_TTL_S = 1.0
_turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
"""The turn of each tenant that has a long text tokenized, so that those of one do not hold up those of others."""
UNPRINTABLE = ("Cc", "Zl", "Zp")
"""The Unicode categories of control characters, line separators and paragraph separators."""


@contextlib.contextmanager
def inside(path: str) -> Iterator[None]:
    """Prefixes the field of an `InvalidField` with the path of the message that contains it."""
    try:
        yield
    except InvalidField as error:
        raise InvalidField(f"{path}.{error.field}", error.why) from error


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as it was sent: a text, token ids, or neither."""

    field: str
    """The field that it was sent in; "" if there is none."""
    text: str = ""
    ids: tuple[int, ...] = ()
    empty: str = "an empty prompt; leave the field out"
    """Why a prompt that is sent and empty is refused."""

    async def tokens(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The prompt's tokens, () if there is none. Raises `InvalidField` or `UnknownCharacter`."""
        if not self.field:
            return ()
        if self.field == "text":
            ids: Sequence[int] = await tokenize(tokenizer, self.text)
        else:
            ids = self.ids
            check_ids(f"{self.field}.ids", ids, tokenizer)
        if not ids:
            raise InvalidField(self.field, self.empty)
        check_size(self.field, len(ids), 1, MAX_PROMPT_TOKENS, "tokens")
        return tuple(ids)


def validate_prompt(request: generation_pb2.GenerateRequest | generation_pb2.InsertPrompt) -> Prompt:
    """The `prompt` of a request; its tokens are checked when they are known."""
    field = request.WhichOneof("prompt")
    if field is None:
        return Prompt("")
    return Prompt(field, request.text, tuple(request.tokens.ids))


def validate_sampling(message: sampling_pb2.SamplingParameters) -> dict[str, Any]:
    """The fields that are present, as `SamplingParameters` takes them."""
    fields: dict[str, Any] = {
        name: getattr(message, name) for name in ("top_k", "repetition_window", "seed") if message.HasField(name)
    } | {
        name: shortest_decimal(getattr(message, name))
        for name in ("temperature", "top_p", "min_p", "repetition_penalty")
        if message.HasField(name)
    }
    if message.HasField("logit_bias"):
        fields["logit_bias"] = tuple(sorted(message.logit_bias.biases.items()))
    SamplingParameters(**fields)
    return fields


def validate_ttl(message: Any, field: str, max_s: float) -> float | None:
    """The `idle_ttl` of a message in seconds; None if it is absent."""
    if not message.HasField("idle_ttl"):
        return None
    seconds = message.idle_ttl.seconds + message.idle_ttl.nanos / 1e9
    return check_between(field, seconds, MIN_TTL_S, max_s)


async def tokenize(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of the field `text`; a long one is tokenized on a thread, one of a tenant at a time.

    Raises `UnknownCharacter`, and `InvalidField` if it has more than a prompt may have.
    """
    if len(text) <= LONG_TEXT_CHARACTERS:
        return tokenizer.encode(text)
    async with _turns.setdefault(current_identity().tenant, asyncio.Lock()):
        ids = await asyncio.to_thread(tokenizer.encode, text, MAX_PROMPT_TOKENS)
    if len(ids) > MAX_PROMPT_TOKENS:
        raise InvalidField("text", f"{len(ids)} tokens or more; must be at most {MAX_PROMPT_TOKENS}")
    return ids


def check_ids(field: str, ids: Sequence[int], tokenizer: Tokenizer) -> None:
    """Refuses a token id that is not in the vocabulary."""
    if ids and max(ids) >= tokenizer.size:
        index = next(i for i, token in enumerate(ids) if token >= tokenizer.size)
        raise InvalidField(f"{field}[{index}]", f"{ids[index]} is not a token id; ids are 0 to {tokenizer.size - 1}")


def optional_int(request: Any, field: str, minimum: int, maximum: int) -> int | None:
    """The value of an optional integer field; None if it is absent."""
    if not request.HasField(field):
        return None
    value: int = getattr(request, field)
    return int(check_between(field, value, minimum, maximum))


def check_between(field: str, value: float, minimum: float, maximum: float) -> float:
    """The value, if it is between the bounds; NaN is not."""
    if not minimum <= value <= maximum:
        raise InvalidField(field, f"{_shown(value)} is not between {_shown(minimum)} and {_shown(maximum)}")
    return value


def check_size(field: str, size: int, minimum: int, maximum: int, unit: str = "entries") -> None:
    """Refuses a number of entries, or of another unit, that is out of bounds."""
    if not minimum <= size <= maximum:
        raise InvalidField(field, f"{size} {unit}; must be {minimum} to {maximum}")


def check_printable(field: str, text: str) -> None:
    """Refuses control characters and line breaks, which would break logs and terminals."""
    for offset, character in enumerate(text):
        if unicodedata.category(character) in UNPRINTABLE:
            raise InvalidField(
                field,
                f"{character!r} (U+{ord(character):04X}) at offset {offset} is a control character or a line break; "
                "every other character is allowed",
            )


@functools.lru_cache(1_024)
def shortest_decimal(value: float) -> float:
    """The shortest decimal that rounds to a 32-bit float.

    0.01 as a 32-bit float is slightly less than 0.01, and must not be refused for that.
    """
    return float(str(np.float32(value)))


def _shown(value: float) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)
