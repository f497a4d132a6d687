"""`model/sampling.py` for many rows at once, in torch, with the same integers and results.

Knows tensors, not slots or states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gruve.decode import HISTORY_TOKENS, Row
from gruve.model import sampling

MASK32 = 0xFFFFFFFF


class RowSampling:
    """The sampling parameters of a call's rows as columns (rows,) or matrices (rows, V); None if no row uses one."""

    def __init__(self, rows: Sequence[Row], vocabulary_size: int, device: torch.device) -> None:
        parameters = [row.sampling for row in rows]

        def column(values: Sequence[float], dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        self.greedy = column([p.temperature == 0.0 for p in parameters], torch.bool)
        self.scale = column([float(sampling.scale(p.temperature or 1.0)) for p in parameters], torch.float32)
        self.key_low = column([p.seed & MASK32 for p in parameters])[:, 0]
        self.key_high = column([p.seed >> 32 for p in parameters])[:, 0]
        self.any_sampled = any(p.temperature != 0.0 for p in parameters)
        self.truncated = any(p.top_k is not None or p.top_p < 1.0 or p.min_p > 0.0 for p in parameters)
        if self.truncated:
            self.top_k = column([min(p.top_k or vocabulary_size, vocabulary_size) for p in parameters])
            self.top_p = column([sampling.share(p.top_p) if p.top_p < 1.0 else -1 for p in parameters])  # -1: not used
            self.min_p = column([sampling.share(p.min_p) for p in parameters])
        self.penalised = any(p.repetition_penalty != 1.0 and p.repetition_window for p in parameters)
        if self.penalised:
            self.penalty = column([p.repetition_penalty for p in parameters], torch.float32)
            self.inverse = column(
                [float(sampling.inverse_penalty(p.repetition_penalty)) for p in parameters], torch.float32
            )
            self.window = column([p.repetition_window for p in parameters])
        self.bias = self._bias(parameters, vocabulary_size, device)
        self.masked, self.masked_early = self._masks(rows, vocabulary_size, device)
        self.min_tokens = column([row.min_tokens for row in rows])[:, 0]

    @staticmethod
    def _bias(parameters: Sequence[sampling.SamplingParameters], V: int, device: torch.device) -> Tensor | None:
        if not any(p.logit_bias for p in parameters):
            return None
        bias = torch.zeros(len(parameters), V)
        for i, p in enumerate(parameters):
            for token, value in p.logit_bias:
                bias[i, token] = value
        return bias.to(device)

    @staticmethod
    def _masks(rows: Sequence[Row], V: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """The tokens that may never be sampled, and those that may not be sampled before `min_tokens`."""
        masks: list[Tensor | None] = []
        for ids in ([row.never_sampled for row in rows], [row.not_sampled_early for row in rows]):
            if not any(ids):
                masks.append(None)
                continue
            mask = torch.zeros(len(rows), V, dtype=torch.bool)
            for i, tokens in enumerate(ids):
                mask[i, tokens] = True
            masks.append(mask.to(device))
        return masks[0], masks[1]


class Sampler:
    """Samples one token per row."""

    def __init__(self, vocabulary_size: int, device: torch.device) -> None:
        self._ids = torch.arange(vocabulary_size, device=device)

    def draw(
        self, logits: Tensor, rows: RowSampling, position: Tensor, generated: Tensor, seen: Tensor | None
    ) -> Tensor:
        """Samples from logits (rows, V) and returns tokens (rows,) for absolute `position` (rows,).

        `generated` (rows,) is how many tokens each row has generated before. `seen` (rows, V) marks the tokens in each
        row's repetition window; it is needed if `rows.penalised`.
        """
        adjusted = self._adjust(logits, rows, seen)
        allowed = self._allowed(adjusted, rows, generated)
        candidates = adjusted if allowed is None else adjusted.masked_fill(~allowed, -torch.inf)
        # argmax does not specify the order of ties; the lowest id among the highest logits is wanted.
        highest = candidates.amax(dim=1, keepdim=True)
        # If all logits are NaN, none equals the highest. The id is clamped, so that the row does not break the call.
        last = self._ids.shape[0] - 1
        greedy = torch.where(candidates == highest, self._ids, last).amin(dim=1)
        if not rows.any_sampled:
            return greedy
        w = weights(candidates, highest, rows.scale)
        if allowed is not None:
            w = w * allowed
        if rows.truncated:
            w = self._truncate(w, candidates, rows)
        cumulative = w.cumsum(dim=1)
        target = multiply_high(uniform(rows.key_low, rows.key_high, position), cumulative[:, -1])
        sampled = (cumulative <= target[:, None]).sum(dim=1).clamp_max(last)
        return torch.where(rows.greedy[:, 0], greedy, sampled)

    def _adjust(self, logits: Tensor, rows: RowSampling, seen: Tensor | None) -> Tensor:
        """The logits (rows, V) after repetition penalty and bias."""
        if seen is not None:
            penalised = torch.where(logits > 0, logits * rows.inverse, logits * rows.penalty)
            logits = torch.where(seen & (rows.penalty != 1.0), penalised, logits)
        return logits if rows.bias is None else logits + rows.bias

    def _allowed(self, logits: Tensor, rows: RowSampling, generated: Tensor) -> Tensor | None:
        """Which tokens may be sampled, bool (rows, V); None if all may."""
        if rows.masked is None and rows.masked_early is None:
            return None
        allowed = torch.ones_like(logits, dtype=torch.bool)
        if rows.masked is not None:
            allowed &= ~rows.masked
        if rows.masked_early is not None:
            allowed &= ~(rows.masked_early & (generated < rows.min_tokens)[:, None])
        return allowed

    def _truncate(self, w: Tensor, candidates: Tensor, rows: RowSampling) -> Tensor:
        """The weights `w` (rows, V) with zeros for the tokens that top-k, top-p and min-p drop."""
        order = torch.sort(candidates, dim=1, descending=True, stable=True).indices
        ranked = w.gather(1, order)
        kept = self._ids < rows.top_k
        ranked = ranked * kept
        cumulative = ranked.cumsum(dim=1)
        inside = (cumulative - ranked) << sampling.SHARE_BITS < rows.top_p * cumulative[:, -1:]
        kept &= inside | (rows.top_p < 0)
        kept &= ranked << sampling.SHARE_BITS >= rows.min_p << sampling.WEIGHT_BITS
        return torch.zeros_like(w).scatter_(1, order, ranked * kept)


def seen_in_ring(history: Tensor, position: Tensor, window: Tensor, vocabulary_size: int) -> Tensor:
    """Which tokens are in the window (rows, 1) before `position` (rows,): bool (rows, V).

    `history` (rows, 1024) holds the last tokens at their position modulo 1024.
    """
    # Place p holds the newest position with that remainder. Its age says whether it is in the window.
    places = torch.arange(HISTORY_TOKENS, device=history.device)[None, :]
    age = (position[:, None] - 1 - places) % HISTORY_TOKENS
    inside = (age < window) & (age < position[:, None])
    seen = torch.zeros(len(history), vocabulary_size, dtype=torch.int8, device=history.device)
    return seen.scatter_reduce_(1, history, inside.to(torch.int8), reduce="amax") > 0


def weights(logits: Tensor, highest: Tensor, scale: Tensor) -> Tensor:
    """`weights` of `model/sampling.py` for rows: int64 (rows, V)."""
    lowest = float(sampling.LOWEST_EXPONENT << sampling.EXPONENT_BITS)
    exponents = ((logits - highest) * scale).clamp_min(lowest).to(torch.int64)
    whole, part = exponents >> sampling.EXPONENT_BITS, exponents & ((1 << sampling.EXPONENT_BITS) - 1)
    power = torch.full_like(part, sampling.EXP2[-1])
    for coefficient in reversed(sampling.EXP2[:-1]):
        power = coefficient + ((power * part) >> sampling.EXPONENT_BITS)
    return power >> (30 - sampling.WEIGHT_BITS - whole)


def uniform(key_low: Tensor, key_high: Tensor, position: Tensor) -> Tensor:
    """`uniform` of `model/sampling.py` for rows: the first word of philox4x32-10, int64 (rows,) in [0, 2**32)."""
    c0, c1 = position & MASK32, position >> 32
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = key_low, key_high
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0


def multiply_high(u: Tensor, total: Tensor) -> Tensor:
    """floor(u * total / 2**32) for u < 2**32 and total < 2**39, in int64 without overflow."""
    return (u * (total >> 16) + ((u * (total & 0xFFFF)) >> 16)) >> 16


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The high and low 32 bits of a 32 by 32 bit product; int64 has no unsigned multiplication."""
    low = word * (constant & 0xFFFF)
    high = word * (constant >> 16) + (low >> 16)
    return (high >> 16) & MASK32, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
