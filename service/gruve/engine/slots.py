"""The backend's state slots: fills, reads and releases them for sequences. Knows no scheduler, thread or clock."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from collections.abc import Sequence as List

import numpy as np
from numpy.typing import NDArray

from gruve.decode import AsyncBackend, Backend, Row
from gruve.engine.failures import new_incident
from gruve.engine.sequence import Admission, Sequence

log = logging.getLogger(__name__)

State = NDArray[np.float32]


class Slots:
    """The slots of one backend."""

    def __init__(self, backend: Backend, end_id: int | None) -> None:
        """`end_id` is the token that ends a sequence, None if the model has none."""
        self._backend = backend
        self._end_id = end_id
        self._batched = backend if isinstance(backend, AsyncBackend) else None
        """Such a backend reads several states for the wait of one: each wait is for all calls submitted so far."""

    @property
    def reads_together(self) -> bool:
        """Whether `read_together` saves anything."""
        return self._batched is not None

    def fill(self, sequence: Sequence) -> None:
        """Puts a sequence into the slot it was given. Raises what the backend raises."""
        admission = sequence.admission
        self._backend.admit(slot_of(sequence), self._row(admission), admission.state)

    def read(self, sequence: Sequence) -> State:
        """A copy of the state after all calls submitted so far. Raises what the backend raises."""
        return self._backend.snapshot(slot_of(sequence))

    def read_together(self, sequences: List[Sequence]) -> Mapping[int, State]:
        """The states of several sequences by slot; empty if that is not possible or saves nothing."""
        if self._batched is None or len(sequences) < 2:
            return {}
        slots = [slot_of(sequence) for sequence in sequences]
        try:
            return dict(zip(slots, self._batched.snapshots(slots), strict=True))
        except Exception:  # each state is read by itself instead, and fails by itself
            log.exception("states could not be read together: incident %s", new_incident())
            return {}

    def release(self, sequence: Sequence) -> None:
        """Frees what the slot holds beside its state, if the sequence has a slot."""
        if sequence.slot is not None:
            self._backend.release(sequence.slot)

    def _row(self, admission: Admission) -> Row:
        return Row(
            history=admission.history,
            position=admission.position,
            forced=admission.forced,
            sampling=admission.sampling,
            max_tokens=admission.max_tokens,
            min_tokens=admission.min_tokens,
            end_id=self._end_id,
            ignore_eos=admission.ignore_eos,
            stops=admission.stops,
            stop_state=admission.stop_state,
            generated=admission.generated,
            logprobs=admission.logprobs,
        )


def slot_of(sequence: Sequence) -> int:
    """The sequence's slot; raises `ValueError` if it has none."""
    if sequence.slot is None:
        raise ValueError(f"sequence {sequence.id} has no slot")
    return sequence.slot
