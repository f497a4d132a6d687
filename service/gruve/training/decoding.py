"""Decodes whole sequences with a CPU's backend, as a server does: to draw samples, and to score with its arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from gruve.decode import Arithmetic, Backend, Row, RowStatus
from gruve.decode.choose import DecodeConfig, choose_backend
from gruve.model.repository import Model
from gruve.model.sampling import SamplingParameters

ROWS = 128
"""Sequences that are decoded side by side, which does not change them."""
STEPS = 32
"""The steps of one call."""


@dataclasses.dataclass(slots=True)
class Decoded:
    """A decoded sequence."""

    ids: list[int]
    """All tokens after the start token: the forced ones, then the sampled ones, the end token included."""
    nats: list[float]
    """What each token costs; empty unless the row asked for log-probabilities."""


def row_of(
    model: Model,
    forced: Sequence[int] = (),
    max_tokens: int = 0,
    sampling: SamplingParameters | None = None,
    logprobs: int | None = None,
) -> Row:
    """A sequence that begins with the start token and `forced`, and ends after `max_tokens` sampled tokens at most."""
    return Row(
        np.array([model.tokenizer.start_id], dtype=np.int32),
        0,
        np.array(forced, dtype=np.int32),
        sampling or SamplingParameters(),
        max_tokens,
        end_id=model.tokenizer.end_id,
        logprobs=logprobs,
    )


def decode_all(
    model: Model, rows: Sequence[Row], arithmetic: Arithmetic = "int8", side_by_side: int = ROWS
) -> list[Decoded]:
    """Decodes every row from the zero state to its end, with the bits of a server on this CPU."""
    backend = choose_backend(model, DecodeConfig("cpu", side_by_side, arithmetic=arithmetic))
    size, decoded = min(side_by_side, backend.max_rows), []
    try:
        for first in range(0, len(rows), size):
            decoded += _decode(backend, rows[first : first + size])
    finally:
        backend.close()
    return decoded


def _decode(backend: Backend, rows: Sequence[Row]) -> list[Decoded]:
    decoded = [Decoded([], []) for _ in rows]
    for slot, row in enumerate(rows):
        backend.admit(slot, row, None)
    running = list(range(len(rows)))
    while running:
        block = backend.decode(running, [STEPS] * len(running), STEPS)
        for at, slot in enumerate(running):
            taken = int(block.steps_taken[at])
            decoded[slot].ids += block.tokens[:taken, at].tolist()
            if rows[slot].logprobs is not None and block.logprobs is not None:
                decoded[slot].nats += (-block.logprobs.chosen[:taken, at]).tolist()
        running = [slot for at, slot in enumerate(running) if block.statuses[at] == RowStatus.RUNNING]
    for slot in range(len(rows)):
        backend.release(slot)
    return decoded


def decoded_loss(model: Model, sequences: Sequence[Sequence[int]], arithmetic: Arithmetic) -> float:
    """Nats per token of whole sequences, each from the zero state behind a start token, as a server computes them."""
    decoded = decode_all(model, [row_of(model, ids, logprobs=0) for ids in sequences], arithmetic)
    return math.fsum(nats for each in decoded for nats in each.nats) / sum(len(ids) for ids in sequences)
