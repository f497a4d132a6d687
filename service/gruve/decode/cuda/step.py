"""What a step of a call is: the interface that torch operations and fused kernels implement."""

from __future__ import annotations

from typing import Protocol

from gruve.decode import Arithmetic
from gruve.decode.cuda.memory import Memory, Rows
from gruve.decode.cuda.pointing import PointerMemory
from gruve.decode.cuda.pool import StopPool


class Step(Protocol):
    """One step of a call's rows, computed on the device without reading anything back to the host."""

    hidden_size: int
    """H, padded as this step needs it."""
    arithmetic: Arithmetic
    description: str
    """Everything about the step that its bits may depend on; in float32, part of the numerics id."""
    pointers: PointerMemory | None
    """The transcripts that a model's pointers need, allocated by `attach`; None if the step computes no pointers."""
    plain_values: tuple[bool, ...]
    """The values of `plain` that `step` takes; False alone if it makes no difference."""

    def attach(self, memory: Memory, stops: StopPool) -> None:
        """Says where the memory and the stop tables are. Called once, before everything else."""

    def begin(self, rows: Rows) -> None:
        """Prepares a call; runs after `Memory.gather`."""

    def poison(self) -> None:
        """For tests: fills every buffer that a call must write before it reads with NaN."""

    def step(self, rows: Rows, parity: int, *, plain: bool) -> None:
        """Runs one step of every active row.

        `parity` is the number of earlier steps of this call, modulo 2. `plain` says that every row of the call
        `is_plain`.
        """
