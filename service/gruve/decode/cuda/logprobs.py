"""Computes log-probabilities for the rows that requested them, from the logits that a call kept."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from gruve.decode import Logprobs
from gruve.decode.cuda.device import Device, Pending
from gruve.decode.cuda.memory import OUTBOX, Rows


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The log-probabilities of some steps, being copied to the host."""

    chosen: Pending
    top_ids: Pending
    top: Pending


class Recorder:
    """Records the log-probabilities of a call, part by part, before later steps overwrite the logits."""

    def __init__(self, device: Device, rows: Rows, requested: list[tuple[int, int]]) -> None:
        """`requested` has (row, number of alternatives) of every row that requested log-probabilities."""
        self._device = device
        self._rows = rows
        self._which = device.upload(np.array([row for row, _ in requested], dtype=np.int64))
        self._requested = [row for row, _ in requested]
        self._alternatives = max(alternatives for _, alternatives in requested)
        self._parts: list[Part] = []

    def record(self, first: int, steps: int) -> None:
        """Records `steps` steps from `first` on. They must be adjacent in the buffer of kept logits."""
        found: list[Tensor] = []

        def compute() -> None:
            at = first % self._rows.logits.shape[0]
            logits = self._rows.logits[at : at + steps].index_select(1, self._which)
            tokens = self._rows.outbox[OUTBOX + first : OUTBOX + first + steps].index_select(1, self._which)
            found.extend(log_probabilities(logits, tokens.to(torch.int64), self._alternatives))

        self._device.run(compute)
        self._parts.append(Part(*(self._device.download(lambda i=i: found[i]) for i in range(3))))  # type: ignore[misc]

    def result(self, rows: int) -> Logprobs:
        """Returns everything recorded, for the first `rows` rows of the call."""
        chosen = np.concatenate([part.chosen.wait() for part in self._parts])
        top_ids = np.concatenate([part.top_ids.wait() for part in self._parts])
        top = np.concatenate([part.top.wait() for part in self._parts])
        steps = len(chosen)
        result = Logprobs(
            np.full((steps, rows), math.nan, dtype=np.float32),
            np.full((steps, rows, self._alternatives), -1, dtype=np.int32),
            np.full((steps, rows, self._alternatives), math.nan, dtype=np.float32),
        )
        result.chosen[:, self._requested] = chosen
        result.top_ids[:, self._requested, : top.shape[2]] = top_ids
        result.top[:, self._requested, : top.shape[2]] = top
        return result


def log_probabilities(logits: Tensor, tokens: Tensor, alternatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the log-probability of each token, and the ids and log-probabilities of the `alternatives` likeliest.

    `logits` is (steps, rows, V), `tokens` (steps, rows); results are fp32 and int32. They are NaN and -1 where the
    token is -1. Ties go to the lower id.
    """
    logprobs = torch.log_softmax(logits.double(), dim=2)
    frozen = tokens < 0
    chosen = logprobs.gather(2, tokens.clamp_min(0)[:, :, None])[:, :, 0].float()
    # A stable sort: topk does not specify the order of ties.
    values, ids = torch.sort(logprobs, dim=2, descending=True, stable=True)
    values, ids = values[:, :, :alternatives].float(), ids[:, :, :alternatives].to(torch.int32)
    return (
        chosen.masked_fill(frozen, math.nan),
        ids.masked_fill(frozen[:, :, None], -1),
        values.masked_fill(frozen[:, :, None], math.nan),
    )
