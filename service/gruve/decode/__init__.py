"""The decode interface: a backend holds one recurrent state per slot and runs calls of several steps for some slots.

In each step every running row consumes one token and yields one. While the row has prompt tokens left, the yielded
token is the next prompt token (*forced*); after that it is *sampled*. Sampling, stops and forced tokens are handled
inside the call. A row that finishes, or reaches its limit of steps, freezes: its state and its position do not change
for the rest of the call.

A slot's state has consumed all tokens of its transcript except the last. This last one is the *pending token*; the
next step consumes it. A new sequence begins with the start token pending and a state of zeros.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gruve.decode.stops import StopTable
from gruve.model.sampling import SamplingParameters

HISTORY_TOKENS = 1_024
"""How many of the transcript's last tokens a slot keeps: for the repetition penalty and for pointers."""

Arithmetic = Literal["float32", "int8"]
"""The number format of the products with a state: `float32`, or `int8` (see `gruve.decode.int8`)."""


class RowStatus(enum.IntEnum):
    """Whether a row can run on, and if not, why it froze."""

    RUNNING = 0
    STOP = 1
    END_OF_SEQUENCE = 2
    LENGTH = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A sequence as a slot takes it."""

    history: NDArray[np.int32]
    """The transcript's last tokens, the pending one last: 1,024, or all if there are fewer."""
    position: int
    """The absolute position of the pending token."""
    forced: NDArray[np.int32]
    """The prompt: the tokens that follow the pending one and are not sampled."""
    sampling: SamplingParameters
    max_tokens: int
    """The maximum number of tokens to generate; 0 ends the row with its last forced token."""
    min_tokens: int = 0
    """Until this many are generated, the end token and `stops.token_ids` are masked and stop strings are ignored."""
    end_id: int | None = None
    """The token that ends the sequence when it is sampled; None for none."""
    ignore_eos: bool = False
    """Masks the end token throughout."""
    stops: StopTable | None = None
    stop_state: int = 0
    """The state of `stops` that the row starts in; 0 unless a generation is resumed."""
    generated: int = 0
    """How many tokens of this generation exist already; 0 unless a generation is resumed."""
    logprobs: int | None = None
    """None for no log-probabilities; n for that of each yielded token and of the n likeliest tokens."""

    @property
    def never_sampled(self) -> list[int]:
        """The tokens that are masked throughout."""
        return [self.end_id] if self.ignore_eos and self.end_id is not None else []

    @property
    def not_sampled_early(self) -> list[int]:
        """The tokens that are masked until `min_tokens` are generated."""
        if not self.min_tokens:
            return []
        return [*(() if self.end_id is None else (self.end_id,)), *(self.stops.token_ids if self.stops else ())]


@dataclasses.dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of a call's rows, in nats of the unmodified distribution. Ties are ordered by lower id."""

    chosen: NDArray[np.float32]
    """(steps, rows): of the yielded token; NaN for a row that did not request any."""
    top_ids: NDArray[np.int32]
    """(steps, rows, n): the likeliest tokens, for the largest n that a row of the call requested."""
    top: NDArray[np.float32]
    """(steps, rows, n): their log-probabilities."""


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """The result of one call."""

    tokens: NDArray[np.int32]
    """(steps, rows): the token that each step yielded; -1 where the row was frozen."""
    steps_taken: NDArray[np.int32]
    """(rows,): the number of steps each row ran."""
    statuses: NDArray[np.int32]
    """(rows,): each row's `RowStatus` after the call."""
    logprobs: Logprobs | None
    """None if no row requested any."""


class Backend(Protocol):
    """Computes the steps of one model. At most `workers` threads may call it at once, each with different slots."""

    name: str
    """`reference`, `native` or `cuda`."""
    selection_reason: str
    """Why this backend was chosen, for the log and for GetModel."""
    numerics_id: str
    """16 hex digits that identify the arithmetic: with the same model, the same id means the same bits."""
    slots: int
    """The number of slots, numbered from 0."""
    workers: int
    """The number of worker threads that may be inside `decode` at once."""
    nice: int
    """The nice value that worker threads should run at; 0 if they only wait for a device."""
    max_rows: int
    """The maximum number of rows of one call."""
    saturating_rows: int
    """The number of rows per worker beyond which the time of a step grows in proportion to the rows. Larger batches
    gain nothing over taking turns."""

    def admit(self, slot: int, row: Row, state: NDArray[np.float32] | None) -> None:
        """Puts a sequence into a slot. `state` is what `snapshot` returned, or None for zeros."""

    def decode(self, slots: Sequence[int], limits: Sequence[int], steps: int, *, exclusive: bool = True) -> Block:
        """Runs up to `steps` steps for up to `max_rows` distinct slots; row i runs at most `limits[i]` of them.

        `exclusive` says that no other call runs at the same time, so that this one may use the cores of all workers.
        It does not change the results.
        """

    def snapshot(self, slot: int) -> NDArray[np.float32]:
        """Returns a copy of the slot's state: (state tensors, L, H) fp32."""

    def release(self, slot: int) -> None:
        """Frees what the slot holds beside its state. Does not raise for a slot that exists and is in no call."""

    def close(self) -> None:
        """Frees the weights and the slots. No other method may be called afterwards."""


@runtime_checkable
class AsyncBackend(Backend, Protocol):
    """A backend with one worker that accepts calls before the earlier ones have returned.

    The same row may be in several pending calls; if one of them freezes it, it stays frozen in the later ones. `admit`,
    `release` and `snapshot` take effect after all calls submitted so far.
    """

    max_in_flight: int
    """How many calls may be submitted and not yet waited for, at least 1."""

    def submit(self, slots: Sequence[int], limits: Sequence[int], steps: int) -> Callable[[], Block]:
        """Submits a call and returns a function that waits for its result. Results are waited for in order."""

    def check_health(self) -> None:
        """Raises if the device can no longer compute anything. The engine asks after a call has failed."""

    def snapshots(self, slots: Sequence[int]) -> Sequence[NDArray[np.float32]]:
        """Returns what `snapshot` returns for each of several slots, with one wait for all."""
