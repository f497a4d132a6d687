"""The JSON form of a receipt."""

from __future__ import annotations

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
    """The name of a `FinishReason` in lower case, without the prefix."""
    return generation_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


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
