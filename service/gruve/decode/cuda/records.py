"""What the device stores of a row, and the checks of every value before it is written there.

A token or a state out of bounds would become an address out of bounds on the device and end all sequences, so such rows
are refused here. Knows the contract's `Row`, not tensors.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
from numpy.typing import NDArray

from gruve.decode import HISTORY_TOKENS, Row, RowStatus
from gruve.decode.stops import MATCHED, StopTable
from gruve.model import sampling

MASK32 = 0xFFFFFFFF
MAX_POSITION = (1 << 31) - (1 << 20)
NEVER = -(1 << 31)
"""The position of a token that does not occur in the transcript."""
MAX_LOGPROBS = 1_024
BIASED, MASKED = 1, 2
"""Bits of `Field.DENSE`: which of the slot's vectors over the vocabulary are used."""
ALWAYS, EARLY = 1, 2
"""Bits of a mask: the token may never be sampled; it may not be sampled before `min_tokens`."""


class Field(enum.IntEnum):
    """Columns of a slot's integers. A step changes the first five; the last four belong to one call."""

    PENDING = 0
    POSITION = 1
    GENERATED = 2
    STOP_STATE = 3
    STATUS = 4
    KEY_LOW = 5
    KEY_HIGH = 6
    GREEDY = 7
    TOP_K = 8
    TOP_P = 9
    MIN_P = 10
    WINDOW = 11
    MAX_TOKENS = 12
    MIN_TOKENS = 13
    END_ID = 14
    STOP_BASE = 15
    DENSE = 16
    LOGPROBS = 17
    TAKEN = 18
    LIMIT = 19
    FORCED = 20
    ACTIVE = 21


FIELDS = 24
"""The number of integer columns. Two are unused, so that rows are aligned."""


class Real(enum.IntEnum):
    """Columns of a slot's fp32 numbers."""

    SCALE = 0
    PENALTY = 1
    INVERSE = 2


REALS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One row in the form of the device. The vectors over the vocabulary are None if the row does not use them."""

    integers: NDArray[np.int64]
    """(FIELDS,)"""
    reals: NDArray[np.float32]
    """(REALS,)"""
    seen: NDArray[np.int32] | None
    """(V,): the last position of each token in the transcript; `NEVER` if it does not occur"""
    bias: NDArray[np.float32] | None
    """(V,)"""
    masks: NDArray[np.int8] | None
    """(V,): bits `ALWAYS` and `EARLY`"""


def build_record(row: Row, vocabulary_size: int, stop_base: int) -> Record:
    """Returns the record of a row that has passed `check_row`.

    `stop_base` is where its stop table begins, -1 for none.
    """
    p, integers, reals = row.sampling, np.zeros(FIELDS, dtype=np.int64), np.ones(REALS, dtype=np.float32)
    penalised = p.repetition_penalty != 1.0 and p.repetition_window > 0
    bias, masks = _bias(p, vocabulary_size), _masks(row, vocabulary_size)
    for field, value in {
        Field.PENDING: int(row.history[-1]),
        Field.POSITION: row.position,
        Field.GENERATED: row.generated,
        Field.STOP_STATE: row.stop_state,
        Field.STATUS: int(RowStatus.RUNNING),
        Field.KEY_LOW: p.seed & MASK32,
        Field.KEY_HIGH: p.seed >> 32,
        Field.GREEDY: p.temperature == 0.0,
        Field.TOP_K: min(p.top_k or vocabulary_size, vocabulary_size),
        Field.TOP_P: sampling.share(p.top_p) if p.top_p < 1.0 else -1,
        Field.MIN_P: sampling.share(p.min_p),
        Field.WINDOW: p.repetition_window if penalised else 0,
        Field.MAX_TOKENS: row.max_tokens,
        Field.MIN_TOKENS: row.min_tokens,
        Field.END_ID: -1 if row.end_id is None else row.end_id,
        Field.STOP_BASE: stop_base,
        Field.DENSE: BIASED * (bias is not None) + MASKED * (masks is not None),
        Field.LOGPROBS: row.logprobs is not None,
    }.items():
        integers[field] = value
    reals[Real.SCALE] = sampling.scale(p.temperature or 1.0)
    reals[Real.PENALTY] = p.repetition_penalty
    reals[Real.INVERSE] = sampling.inverse_penalty(p.repetition_penalty)
    return Record(integers, reals, _seen(row, vocabulary_size) if penalised else None, bias, masks)


def is_plain(record: Record, vocabulary_size: int) -> bool:
    """Whether sampling depends only on temperature, seed and stops, and no log-probabilities are requested."""
    i = record.integers
    truncated = i[Field.TOP_K] < vocabulary_size or i[Field.TOP_P] >= 0 or i[Field.MIN_P] > 0
    dense = record.seen is not None or record.bias is not None or record.masks is not None
    return not (truncated or dense or i[Field.LOGPROBS])


def check_row(row: Row, vocabulary_size: int) -> None:
    """Raises `ValueError` for a value out of bounds."""
    if not len(row.history):
        raise ValueError("history's size 0 is below 1: the pending token is its last")
    for what, tokens in (
        ("history token", row.history[-HISTORY_TOKENS:]),
        ("forced token", row.forced),
        ("logit_bias token", np.array([token for token, _ in row.sampling.logit_bias], dtype=np.int64)),
        ("end_id", np.array([] if row.end_id is None else [row.end_id])),
    ):
        bad = tokens[(tokens < 0) | (tokens >= vocabulary_size)]
        if len(bad):
            raise ValueError(f"{what} {int(bad[0])} is not between 0 and {vocabulary_size - 1}")
    for what, value, bound in (
        ("position", row.position, MAX_POSITION),
        ("max_tokens", row.max_tokens, MAX_POSITION),
        ("min_tokens", row.min_tokens, MAX_POSITION),
        ("generated", row.generated, MAX_POSITION),
        ("logprobs", row.logprobs or 0, MAX_LOGPROBS),
    ):
        if not 0 <= value <= bound:
            raise ValueError(f"{what} {value} is not between 0 and {bound}")
    _check_stops(row.stops, row.stop_state, vocabulary_size)


def _check_stops(stops: StopTable | None, state: int, vocabulary_size: int) -> None:
    states = 1 if stops is None else len(stops.table)
    if not 0 <= state < states:
        raise ValueError(f"stop_state {state} is not between 0 and {states - 1}")
    if stops is None:
        return
    if stops.table.ndim != 2 or stops.table.shape[1] != vocabulary_size:
        raise ValueError(f"a stop table of shape {stops.table.shape}; this model's have {vocabulary_size} columns")
    after = stops.table & ~np.int32(MATCHED)
    least, most = int(after.min()), int(after.max())
    if least < 0 or most >= states:
        outside = least if least < 0 else most
        raise ValueError(f"a stop table's next state {outside} is not between 0 and {states - 1}")


def _seen(row: Row, vocabulary_size: int) -> NDArray[np.int32]:
    seen = np.full(vocabulary_size, NEVER, dtype=np.int32)
    recent = row.history[-HISTORY_TOKENS:]
    seen[recent] = np.arange(row.position - len(recent) + 1, row.position + 1)  # the last occurrence of a token counts
    return seen


def _bias(parameters: sampling.SamplingParameters, vocabulary_size: int) -> NDArray[np.float32] | None:
    if not parameters.logit_bias:
        return None
    bias = np.zeros(vocabulary_size, dtype=np.float32)
    for token, value in parameters.logit_bias:
        bias[token] = value
    return bias


def _masks(row: Row, vocabulary_size: int) -> NDArray[np.int8] | None:
    masks = np.zeros(vocabulary_size, dtype=np.int8)
    masks[row.never_sampled] |= ALWAYS
    masks[row.not_sampled_early] |= EARLY
    return masks if masks.any() else None
