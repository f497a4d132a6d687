"""Log-probabilities of the rows that asked, from the logits a call kept."""

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
    """Some steps' values on their way to the host."""

    chosen: Pending
    top_ids: Pending
    top: Pending


class Recorder:
    """Takes what a call's steps kept, before the steps that overwrite it."""

    def __init__(self, device: Device, rows: Rows, asked: list[tuple[int, int]]) -> None:
        """`asked`: (row, alternatives) of every row that asked."""
        self._device = device
        self._rows = rows
        self._which = device.put(np.array([row for row, _ in asked], dtype=np.int64))
        self._asked = [row for row, _ in asked]
        self._most = max(most for _, most in asked)
        self._parts: list[Part] = []

    def record(self, first: int, steps: int) -> None:
        """The steps from `first` on, which lie side by side in the logits kept."""
        found: list[Tensor] = []

        def compute() -> None:
            at = first % self._rows.logits.shape[0]
            logits = self._rows.logits[at : at + steps].index_select(1, self._which)
            tokens = self._rows.outbox[OUTBOX + first : OUTBOX + first + steps].index_select(1, self._which)
            found.extend(log_probabilities(logits, tokens.to(torch.int64), self._most))

        self._device.run(compute)
        self._parts.append(Part(*(self._device.take(lambda i=i: found[i]) for i in range(3))))  # type: ignore[misc]

    def result(self, rows: int) -> Logprobs:
        """Everything recorded, for the first `rows` rows of the call."""
        chosen = np.concatenate([part.chosen.wait() for part in self._parts])
        top_ids = np.concatenate([part.top_ids.wait() for part in self._parts])
        top = np.concatenate([part.top.wait() for part in self._parts])
        steps = len(chosen)
        result = Logprobs(
            np.full((steps, rows), math.nan, dtype=np.float32),
            np.full((steps, rows, self._most), -1, dtype=np.int32),
            np.full((steps, rows, self._most), math.nan, dtype=np.float32),
        )
        result.chosen[:, self._asked] = chosen
        result.top_ids[:, self._asked, : top.shape[2]] = top_ids
        result.top[:, self._asked, : top.shape[2]] = top
        return result


def log_probabilities(logits: Tensor, tokens: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """(steps, rows, V) logits and (steps, rows) tokens -> fp32 of the token, ids and fp32 of the `most` likeliest.

    NaN and -1 where the token is -1; ties to the lower id.
    """
    logprobs = torch.log_softmax(logits.double(), dim=2)
    frozen = tokens < 0
    chosen = logprobs.gather(2, tokens.clamp_min(0)[:, :, None])[:, :, 0].float()
    # A stable sort, because topk promises nothing about ties.
    values, ids = torch.sort(logprobs, dim=2, descending=True, stable=True)
    values, ids = values[:, :, :most].float(), ids[:, :, :most].to(torch.int32)
    return (
        chosen.masked_fill(frozen, math.nan),
        ids.masked_fill(frozen[:, :, None], -1),
        values.masked_fill(frozen[:, :, None], math.nan),
    )
