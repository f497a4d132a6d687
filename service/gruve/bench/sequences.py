"""Begins sequences in a backend directly, for the benchmarks that measure one without an engine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gruve.decode import Backend, Row
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import START_TOKEN


def begin_sequences(backend: Backend, slots: Iterable[int], max_tokens: int) -> None:
    """Admits a sequence without a prompt to each slot. Its temperature is 1, and its seed is the slot's number."""
    start, nothing = np.array([START_TOKEN], dtype=np.int32), np.array([], dtype=np.int32)
    for slot in slots:
        backend.admit(slot, Row(start, 0, nothing, SamplingParameters(seed=slot), max_tokens), None)
