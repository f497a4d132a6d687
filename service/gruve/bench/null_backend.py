"""A backend that computes nothing. A step lasts a given time, and the tokens are a function of slot and step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gruve.decode import Block, Row, RowStatus
from gruve.decode.choose import DecodeConfig
from gruve.engine.step_times import MAX_STEPS
from gruve.model.config import ModelConfig
from gruve.model.repository import Model


class NullBackend:
    """See `gruve.decode.AsyncBackend`.

    Of a row it uses only the prompt's length and the number of tokens to generate.
    """

    name, selection_reason, numerics_id = "idle", "computes nothing", "0" * 16
    workers, nice, max_in_flight = 1, 0, 2

    def __init__(self, model: ModelConfig, slots: int, step_s: float) -> None:
        """A step takes `step_s` seconds with any number of rows."""
        self.slots = self.max_rows = self.saturating_rows = slots
        self._step_s = step_s
        self._state = np.zeros(model.state_shape, dtype=np.float32)
        self._forced = np.zeros(slots, dtype=np.int64)
        self._left = np.zeros(slots, dtype=np.int64)
        steps, slot = np.arange(MAX_STEPS)[:, None], np.arange(slots)
        self._tokens = (2 + (7 * steps + slot) % (model.vocabulary_size - 2)).astype(np.int32)
        self._free_s = 0.0
        """When the calls submitted so far will be done."""

    def admit(self, slot: int, row: Row, state: NDArray[np.float32] | None) -> None:  # noqa: ARG002 - nothing is computed
        """See `Backend`."""
        self._forced[slot], self._left[slot] = len(row.forced), row.max_tokens - row.generated

    def release(self, slot: int) -> None:
        """See `Backend`."""

    def close(self) -> None:
        """Frees nothing."""

    def snapshot(self, slot: int) -> NDArray[np.float32]:  # noqa: ARG002 - all states are the same
        """See `Backend`."""
        return self._state.copy()

    def snapshots(self, slots: Sequence[int]) -> Sequence[NDArray[np.float32]]:
        """See `AsyncBackend`."""
        return [self._state.copy() for _ in slots]

    def decode(self, slots: Sequence[int], limits: Sequence[int], steps: int, *, exclusive: bool = True) -> Block:  # noqa: ARG002
        """See `Backend`."""
        return self.submit(slots, limits, steps)()

    def submit(self, slots: Sequence[int], limits: Sequence[int], steps: int) -> Callable[[], Block]:
        """See `AsyncBackend`."""
        which = np.array(slots)
        forced, left = self._forced[which], self._left[which]
        taken = np.minimum(np.minimum(limits, steps), forced + left)
        read = np.minimum(taken, forced)
        self._forced[which] -= read
        self._left[which] -= taken - read
        ended = (self._forced[which] == 0) & (self._left[which] == 0)
        tokens = np.where(np.arange(steps)[:, None] < taken, self._tokens[:steps, which], -1).astype(np.int32)
        block = Block(
            tokens, taken.astype(np.int32), np.where(ended, RowStatus.LENGTH, RowStatus.RUNNING).astype(np.int32), None
        )
        done_s = self._free_s = max(self._free_s, time.perf_counter()) + steps * self._step_s

        def result() -> Block:
            time.sleep(max(0.0, done_s - time.perf_counter()))
            return block

        return result


def choose_null(step_s: float, model: Model, decode: DecodeConfig) -> NullBackend:
    """A replacement for `choose_backend`, after `step_s` is bound."""
    return NullBackend(model.config, decode.slots, step_s)
