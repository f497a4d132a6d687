"""The canonical form of a receipt: JSON by RFC 8785, which every language can write, and which is signed."""

from __future__ import annotations

import json
import math
from typing import Any

from gruve.v1 import generation_pb2, sampling_pb2

VERSION = 1
"""The version of the format. Any change of it is another version."""


def receipt_json(receipt: generation_pb2.Receipt) -> dict[str, Any]:
    """The JSON form of a receipt, without its signature. Every field is present; hashes are hex, the seed a string."""
    return {
        "version": receipt.version,
        "model_digest": receipt.model_digest,
        "numerics_id": receipt.numerics_id,
        "computed_from": receipt.computed_from,
        "start_position": receipt.start_position,
        "next_position": receipt.next_position,
        "sampling": _sampling_json(receipt.sampling),
        "changes": [
            {"position": c.position, "sampling": _sampling_json(c.sampling), "inserted": c.inserted}
            for c in receipt.changes
        ],
        "max_tokens": receipt.max_tokens,
        "min_tokens": receipt.min_tokens,
        "ignore_eos": receipt.ignore_eos,
        "stop": list(receipt.stop),
        "stop_token_ids": list(receipt.stop_token_ids),
        "finish_reason": finish_reason_name(receipt.finish_reason),
        "prompt_sha256": receipt.prompt_sha256.hex(),
        "tokens_sha256": receipt.tokens_sha256.hex(),
    }


def finish_reason_name(reason: int) -> str:
    """The name of a `FinishReason` as receipts have it: in lower case, without the prefix."""
    return generation_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


def canonical(receipt: generation_pb2.Receipt) -> bytes:
    """The bytes that are signed: the canonical JSON of a receipt without its signature."""
    return canonical_json(receipt_json(receipt)).encode()


def canonical_json(value: Any) -> str:
    """The JSON of a value by RFC 8785: keys sorted, no spaces, numbers as ECMAScript writes them."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)}:{canonical_json(value[key])}" for key in sorted(value))
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical_json, value)) + "]"
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value, ensure_ascii=False)


def _sampling_json(sampling: sampling_pb2.SamplingParameters) -> dict[str, Any]:
    """Floats are the wire's 32 bits, widened; the seed is a string, because JSON's numbers end at 2**53."""
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "repetition_window": sampling.repetition_window,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.biases.items()},
        "seed": str(sampling.seed),
    }


def _number(value: float) -> str:
    """A finite float as ECMAScript writes it: the fewest digits that tell it from its neighbours."""
    if not math.isfinite(value):
        raise ValueError(f"{value} has no JSON form")
    if value == 0.0:
        return "0"
    sign, number = ("-", -value) if value < 0 else ("", value)
    mantissa, _, power = repr(number).partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(power or 0) - (len(whole + fraction) - len(digits))  # digits before the decimal point
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    exponent = f"e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return f"{sign}{digits[0]}{'.' + digits[1:] if digits[1:] else ''}{exponent}"
