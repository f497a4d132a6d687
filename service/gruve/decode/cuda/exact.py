"""Checks at startup that a row's bits do not depend on its place, on the other rows or on the size of the call.

A device or compiler that makes them depend on these cannot keep the promise of exact results. In int8 the bits must
also be those of a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gruve.decode import Backend, Row
from gruve.decode.cuda.backend import CudaBackend
from gruve.decode.reference import ReferenceBackend
from gruve.errors import ModelBroken
from gruve.model.config import ModelConfig
from gruve.model.repository import Model
from gruve.model.sampling import SamplingParameters

STEPS = 3


def check_exact(backend: CudaBackend, config: ModelConfig) -> None:
    """Raises `ModelBroken` unless one row gives the same bits alone and at every place among rows of NaN.

    Overwrites every slot, so no sequence may have been admitted yet.
    """
    given = _state(config, seed=1)
    alone, tokens = _run(backend, [0], given, [0])
    for size in backend.sizes:
        slots = range(min(size, backend.slots))
        for which in (slots[::2], slots[1::2]):
            after, drawn = _run(backend, slots, given, which)
            for slot in which:
                same_state = np.array_equal(after[:, :, slot], alone[:, :, 0])
                if not (same_state and np.array_equal(drawn[:, slot], tokens[:, 0])):
                    raise ModelBroken(
                        f"a row at place {slot} of {len(slots)} makes other bits than alone; this way of decoding "
                        "cannot be exact here"
                    )


def check_int8(backend: Backend, model: Model) -> None:
    """Raises `ModelBroken` unless a row gets the bits of the reference backend on the CPU; leaves slot 0 empty."""
    made = []
    for other in (ReferenceBackend(model, 1, arithmetic="int8"), backend):
        other.admit(0, _row(seed=2), _state(model.config, seed=2))
        made.append((other.decode([0], [STEPS], STEPS).tokens.tolist(), other.snapshot(0).tobytes()))
        other.release(0)
    if made[0] != made[1]:
        raise ModelBroken("int8 has other bits here than on a CPU, so this way of decoding is refused")


def _state(config: ModelConfig, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, config.state_shape).astype(np.float32)


def _row(seed: int) -> Row:
    """A row without a prompt that runs longer than a check."""
    start, nothing = np.zeros(1, dtype=np.int32), np.zeros(0, dtype=np.int32)
    return Row(start, 0, nothing, SamplingParameters(seed=seed), max_tokens=STEPS + 1)


def _run(
    backend: CudaBackend, slots: Sequence[int], state: NDArray[np.float32], which: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Runs the row in the slots of `which` and NaN in the others; returns the states of all slots, and the tokens."""
    row, ours, nan = _row(seed=1), set(which), np.full_like(state, np.nan)
    for slot in slots:
        backend.admit(slot, row, state if slot in ours else nan)
    tokens = backend.decode(slots, [STEPS] * len(slots), STEPS).tokens
    states = backend.states(slots)
    for slot in slots:
        backend.release(slot)
    return states, tokens
