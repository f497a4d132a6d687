"""The correctness proofs of `gruve bench gpu`. Weights and inputs are new each time; outputs are poisoned beforehand.

Each proof returns a row with the largest deviation, its bound, and whether it held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gruve.bench.result import Row as ResultRow
from gruve.bench.synthetic import Size, blueprint, tokenizer
from gruve.decode import HISTORY_TOKENS, Backend, Row
from gruve.decode.cuda.backend import CudaBackend
from gruve.model import sampling as law
from gruve.model.config import ModelConfig, Precision
from gruve.model.oracle import Oracle
from gruve.model.repository import Model
from gruve.sessions.record import START_TOKEN

BOUNDS = {"float16": 2e-2, "float32": 1e-4}
"""The bound on the deviation of a logit from the oracle's, by the type of the operands."""
Rng = np.random.Generator
Int32s = NDArray[np.int32]


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """How much is proved."""

    tokens: int = 200
    """The number of forced tokens that are compared with the oracle."""
    steps: int = 24
    """The steps of each sequence in the comparisons with the sampling distribution and with other batches."""
    probes: int = 16
    """The number of sequences that are compared in every mix of rows."""
    mixes: tuple[int, ...] = (1, 3, 17, 64, 65, 130, 500, 1_024, 2_000, 4_096)
    """The rows of the calls that the sequences take part in."""


def fresh_model(size: Size, cell: str, rng: Rng, precision: Precision = "float16") -> Model:
    """A model with random weights, rounded as a saved model's are.

    They keep a state alive without making it explode.
    """
    config = dataclasses.replace(blueprint(size, cell), precision=precision)
    weights = {}
    for name, shape in config.shapes().items():
        spread = (
            0.1
            if len(shape) == 1
            else {"embedding.weight": 1.0, "head.weight": 4.0}.get(name, 1.0) * (3.0 / shape[-1]) ** 0.5
        )
        drawn = torch.from_numpy(rng.uniform(-spread, spread, shape).astype(np.float32))
        weights[name] = drawn.half().float() if precision == "float16" else drawn
    return Model(f"fresh-{cell}", config, tokenizer(), weights)


def prove_oracle(backend: Backend, model: Model, extent: Extent, rng: Rng, bound: float) -> ResultRow:
    """Compares the log-probabilities of every token with the oracle's, in two rows among others."""
    tokens = extent.tokens
    V, places = model.config.vocabulary_size, min(backend.slots, 5)
    forced = rng.integers(0, V, (places, tokens)).astype(np.int32)
    poison(backend)
    for slot in range(places):
        _admit(backend, slot, forced[slot], max_tokens=0, logprobs=V)
    worst = 0.0
    made = _forced_logprobs(backend, range(places), tokens, V)
    for place in (0, places - 1):
        logits = Oracle(model.config, model.weights).run([START_TOKEN, *forced[place, :-1].tolist()])
        highest = logits.max(axis=1, keepdims=True)
        expected = logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
        worst = max(worst, _worst(made[:, place] - expected))
    for slot in range(places):
        backend.release(slot)
    return {"what": "oracle", "worst": worst, "bound": bound, "checked": 2 * tokens * V, "ok": worst <= bound}


def prove_draws(backend: CudaBackend, config: ModelConfig, extent: Extent, rng: Rng) -> ResultRow:
    """Compares sampled tokens with `model/sampling.py` on the device's logits, with random parameters in every row."""
    rows = min(64, backend.slots, backend.max_rows)
    steps = min(extent.steps, backend.memory.rows(backend.sizes[-1]).logits.shape[0])
    asked = [_parameters(config.vocabulary_size, rng) for _ in range(rows)]
    poison(backend)
    for slot, parameters in enumerate(asked):
        _admit(backend, slot, np.array([], dtype=np.int32), max_tokens=steps, logprobs=0, sampling=parameters)
    tokens = backend.decode(range(rows), [steps] * rows, steps).tokens
    logits = backend.kept_logits(rows, steps)
    wrong = 0
    for i, parameters in enumerate(asked):
        history = [START_TOKEN, *tokens[:, i].tolist()]
        for k in range(steps):
            seen = np.array(history[: k + 1][-HISTORY_TOKENS:])
            wrong += law.draw(logits[k, i], parameters, position=k + 1, history=seen) != int(tokens[k, i])
        backend.release(i)
    return {"what": "draws", "worst": wrong, "bound": 0, "checked": rows * steps, "ok": wrong == 0}


def prove_mixes(backend: Backend, config: ModelConfig, extent: Extent, rng: Rng) -> ResultRow:
    """Counts the tokens and states that differ between sequences alone and in calls of many rows.

    There must be none.
    """
    probes = [
        (rng.integers(0, config.vocabulary_size, i % 7).astype(np.int32), _parameters(config.vocabulary_size, rng))
        for i in range(min(extent.probes, backend.slots))
    ]
    alone = [_alone(backend, forced, parameters, extent.steps) for forced, parameters in probes]
    differing = checked = 0
    for count in extent.mixes:
        count = min(count, backend.slots, backend.max_rows)
        slots = rng.permutation(backend.slots)[:count]
        chosen = rng.permutation(len(probes))[: min(count, len(probes))]
        poison(backend)
        _company(backend, config, slots[len(chosen) :], extent.steps, rng)
        for slot, i in zip(slots, chosen, strict=False):
            _admit(backend, int(slot), probes[i][0], max_tokens=extent.steps, sampling=probes[i][1])
        order = rng.permutation(count)
        tokens = _cut(backend, slots[order], extent.steps, rng)
        for slot, i in zip(slots, chosen, strict=False):
            mine = tokens[:, int(np.flatnonzero(slots[order] == slot)[0])]
            state = backend.snapshot(int(slot))
            differing += int((mine != alone[i][0]).sum()) + int((_bits(state) != _bits(alone[i][1])).sum())
            checked += len(mine) + state.size
        for slot in slots:
            backend.release(int(slot))
    return {"what": "mixes", "worst": differing, "bound": 0, "checked": checked, "ok": differing == 0}


def poison(backend: Backend) -> None:
    """Fills every buffer that a call must write before it reads with NaN."""
    if isinstance(backend, CudaBackend):
        backend.poison()


def _admit(
    backend: Backend,
    slot: int,
    forced: Int32s,
    *,
    max_tokens: int,
    logprobs: int | None = None,
    sampling: law.SamplingParameters | None = None,
    state: NDArray[np.float32] | None = None,
) -> None:
    start = np.array([START_TOKEN], dtype=np.int32)
    parameters = sampling or law.SamplingParameters(seed=slot)
    backend.admit(slot, Row(start, 0, forced, parameters, max_tokens, logprobs=logprobs), state)


def _forced_logprobs(backend: Backend, slots: Sequence[int], tokens: int, V: int) -> NDArray[np.float64]:
    """Log-probabilities by id: (T, rows, V)."""
    parts = []
    for first in range(0, tokens, 32):
        steps = min(32, tokens - first)
        found = backend.decode(slots, [steps] * len(slots), steps).logprobs
        if found is None:
            raise ValueError("log-probabilities were asked for and none came")
        part = np.full((steps, len(slots), V), np.nan)
        np.put_along_axis(part, found.top_ids, found.top.astype(np.float64), axis=2)
        parts.append(part)
    return np.concatenate(parts)


def _parameters(V: int, rng: Rng) -> law.SamplingParameters:
    """Random parameters: each of those a request may have is sometimes set."""
    return law.SamplingParameters(
        temperature=float(rng.choice([0.0, 0.7, 1.0, 1.5])),
        top_k=[None, 5, V][rng.integers(3)],
        top_p=float(rng.choice([1.0, 1.0, 0.9])),
        min_p=float(rng.choice([0.0, 0.0, 0.05])),
        repetition_penalty=float(rng.choice([1.0, 1.3])),
        logit_bias=((int(rng.integers(V)), 2.0),) if rng.random() < 0.3 else (),
        seed=int(rng.integers(1 << 62)),
    )


def _alone(
    backend: Backend, forced: Int32s, parameters: law.SamplingParameters, steps: int
) -> tuple[Int32s, NDArray[np.float32]]:
    poison(backend)
    _admit(backend, 0, forced, max_tokens=steps, sampling=parameters)
    tokens = np.concatenate([backend.decode([0], [1], 1).tokens[:, 0] for _ in range(steps)])
    state = backend.snapshot(0)
    backend.release(0)
    return tokens, state


def _company(backend: Backend, config: ModelConfig, slots: Iterable[int], steps: int, rng: Rng) -> None:
    """Random other rows: some use every parameter, some end early, some have NaN states."""
    for slot in slots:
        state = np.full(config.state_shape, np.nan, dtype=np.float32) if rng.random() < 0.1 else None
        parameters = _parameters(config.vocabulary_size, rng) if rng.random() < 0.3 else None
        nothing, most = np.array([], dtype=np.int32), int(rng.integers(1, 2 * steps))
        _admit(backend, int(slot), nothing, max_tokens=most, sampling=parameters, state=state)


def _cut(backend: Backend, slots: NDArray[np.int64], left: int, rng: Rng) -> Int32s:
    """Runs `left` steps of these slots in calls of random length."""
    parts = []
    while left:
        steps = min(left, int(rng.integers(1, 12)))
        parts.append(backend.decode(slots.tolist(), [steps] * len(slots), steps).tokens)
        left -= steps
    return np.concatenate(parts)


def _bits(state: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.ascontiguousarray(state).view(np.int32)


def _worst(difference: NDArray[np.float64]) -> float:
    """The greatest difference; infinite if a value is NaN."""
    return float(np.abs(difference).max()) if np.isfinite(difference).all() else float("inf")
