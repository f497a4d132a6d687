"""The definition of sampling: from logits to one token, in integers, so that every backend samples the same one.

The order is: repetition penalty, logit bias, mask, temperature, top-k, top-p, min-p, inverse CDF. After one subtraction
and one multiplication in `weights`, everything is integer arithmetic, whose results do not depend on device, compiler
or order of summation. The functions here take one row; the backends compute the same for many rows.

There is no generator state: the random number for absolute position p is philox4x32-10 with key = seed and counter = p
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import collections
import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from gruve.errors import InvalidField

MAX_TEMPERATURE = 100.0
MAX_PENALTY = 100.0
MAX_REPETITION_WINDOW = 1_024
MAX_LOGIT_BIASES = 1_024
MAX_BIAS = 100.0
MAX_SEED = 2**64 - 1

WEIGHT_BITS = 22
"""The weight of the likeliest token is 2**22. A token below 2**-22 of its probability has weight 0 and is never
sampled."""
EXPONENT_BITS = 20
"""Exponents of 2 have steps of 2**-20."""
SHARE_BITS = 24
"""top_p and min_p have steps of 2**-24."""
EXP2 = (1_073_741_824, 744_265_554, 257_874_613, 59_914_704, 9_681_959, 2_004_817)
"""2**f for f in [0, 1) as a polynomial, coefficients times 2**30; relative error below 8.5e-8."""
LOWEST_EXPONENT = -32

Int64s = NDArray[np.int64]
Float32s = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParameters:
    """The sampling parameters. A value out of bounds raises `InvalidField`, which names it."""

    temperature: float = 1.0
    """Divides the logits, 0 to 100; 0 takes the likeliest token, ties to the lower id."""
    top_k: int | None = None
    """Keeps the k likeliest tokens, ties to the lower id; None keeps all."""
    top_p: float = 1.0
    """Keeps the fewest likeliest tokens whose probabilities reach this share, in (0, 1]; 1 keeps all."""
    min_p: float = 0.0
    """Keeps tokens at least this many times as likely as the likeliest, in [0, 1]."""
    repetition_penalty: float = 1.0
    """Divides the positive and multiplies the negative logits of tokens in the window, 0.01 to 100 (Keskar 2019)."""
    repetition_window: int = 64
    """The number of the transcript's last tokens that the penalty applies to, 0 to 1,024."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, number added to its logit, -100 to 100), at most 1,024, ids distinct."""
    seed: int = 0
    """The key of every random number, 0 to 2**64 - 1."""

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        if self.top_k is not None and self.top_k < 1:
            raise InvalidField("sampling.top_k", f"{self.top_k} is below 1; leave it out to keep all tokens")
        _within("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InvalidField("sampling.top_p", "0 would keep no token; allowed is above 0 to 1")
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 1 / MAX_PENALTY, MAX_PENALTY)
        _within("repetition_window", self.repetition_window, 0, MAX_REPETITION_WINDOW)
        _within("seed", self.seed, 0, MAX_SEED)
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise InvalidField("sampling.logit_bias", f"{len(self.logit_bias)} entries; at most {MAX_LOGIT_BIASES}")
        if len({token for token, _ in self.logit_bias}) < len(self.logit_bias):
            [(token, times)] = collections.Counter(token for token, _ in self.logit_bias).most_common(1)
            raise InvalidField("sampling.logit_bias", f"it has the token id {token} {times} times; at most once")
        for token, bias in self.logit_bias:
            _within(f"logit_bias[{token}]", bias, -MAX_BIAS, MAX_BIAS)


def draw(
    logits: Float32s,
    parameters: SamplingParameters,
    *,
    position: int,
    history: NDArray[np.integer] | None = None,
    masked: tuple[int, ...] = (),
) -> int:
    """Samples the token for absolute `position`.

    `logits` is (V,) fp32. `history` is the transcript so far, oldest first. `masked` has the ids that may not be
    sampled; at least one token must remain.
    """
    adjusted = adjust(logits, parameters, history)
    allowed = np.ones(len(logits), dtype=bool)
    allowed[list(masked)] = False
    order = np.lexsort((np.arange(len(logits)), -adjusted))
    order = order[allowed[order]]
    if parameters.temperature == 0.0:
        return int(order[0])
    w = weights(adjusted, adjusted[order[0]], scale(parameters.temperature))
    kept = order[: parameters.top_k]
    if parameters.top_p < 1.0:
        before = np.cumsum(w[kept]) - w[kept]
        kept = kept[before << SHARE_BITS < share(parameters.top_p) * int(w[kept].sum())]
    kept = kept[w[kept] << SHARE_BITS >= share(parameters.min_p) << WEIGHT_BITS]
    ids = np.sort(kept)
    cumulative = np.cumsum(w[ids])
    target = (uniform(parameters.seed, position) * int(cumulative[-1])) >> 32
    return int(ids[np.searchsorted(cumulative, target, side="right")])


def adjust(logits: Float32s, parameters: SamplingParameters, history: NDArray[np.integer] | None) -> Float32s:
    """The logits after repetition penalty and bias, in fp32, one rounding for each operation."""
    adjusted = logits.astype(np.float32).copy()
    if parameters.repetition_penalty != 1.0 and history is not None and parameters.repetition_window > 0:
        seen = np.unique(history[-parameters.repetition_window :])
        divisor, factor = inverse_penalty(parameters.repetition_penalty), np.float32(parameters.repetition_penalty)
        adjusted[seen] = np.where(adjusted[seen] > 0, adjusted[seen] * divisor, adjusted[seen] * factor)
    for token, bias in parameters.logit_bias:
        adjusted[token] += np.float32(bias)
    return adjusted


def weights(logits: Float32s, highest: np.float32, scale_: np.float32) -> Int64s:
    """Integer weights proportional to exp((logit - highest) / temperature), 2**22 for the highest and what is above it.

    One fp32 subtraction, one fp32 multiplication, truncation to steps of 2**-20 of an exponent of 2; then integers.
    """
    with np.errstate(over="ignore"):  # with a tiny temperature the difference becomes -inf, whose weight is 0
        steps = (logits - highest) * scale_
    exponents = np.clip(steps, np.float32(LOWEST_EXPONENT << EXPONENT_BITS), 0).astype(np.int64)
    whole, part = exponents >> EXPONENT_BITS, exponents & ((1 << EXPONENT_BITS) - 1)
    power = np.full_like(part, EXP2[-1])
    for coefficient in reversed(EXP2[:-1]):
        power = coefficient + ((power * part) >> EXPONENT_BITS)
    result: Int64s = power >> (30 - WEIGHT_BITS - whole)
    return result


def scale(temperature: float) -> np.float32:
    """The factor that turns a logit difference into steps of an exponent of 2; finite for any temperature > 0."""
    steps = math.log2(math.e) * (1 << EXPONENT_BITS) / temperature
    return np.float32(min(steps, float(np.finfo(np.float32).max)))


def inverse_penalty(penalty: float) -> np.float32:
    """1 / penalty, rounded as the backends use it."""
    return np.float32(1.0 / penalty)


def share(probability: float) -> int:
    """A probability in steps of 2**-24. A positive one is never 0, so that the smallest top_p still keeps a token."""
    return math.ceil(probability * (1 << SHARE_BITS))


def uniform(seed: int, position: int) -> int:
    """The 32-bit random number for `position` with `seed`."""
    return philox(seed & 0xFFFFFFFF, seed >> 32, position & 0xFFFFFFFF, position >> 32)[0]


def philox(key0: int, key1: int, c0: int, c1: int, c2: int = 0, c3: int = 0) -> tuple[int, int, int, int]:
    """philox4x32-10: four 32-bit words from a 64-bit key and a 128-bit counter."""
    for _ in range(10):
        low, high = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ key0, high & 0xFFFFFFFF, (low >> 32) ^ c3 ^ key1, low & 0xFFFFFFFF
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _within(name: str, value: float, least: float, most: float) -> None:
    """Raises `InvalidField` for a value outside the bounds, NaN included."""
    if not least <= value <= most:
        raise InvalidField(f"sampling.{name}", f"{value} is not between {least} and {most}")
