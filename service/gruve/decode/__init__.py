"""The interface between the engine and whatever computes: state slots, and calls of several steps.

A backend holds one state per slot. `decode` takes some slots and a number of steps; every step consumes one token per
row and yields one: forced while the row has prompt left, drawn afterwards. Sampling, stops and forced tokens happen
inside the call. A row that finishes or reaches its limit freezes: its state, position and draws stay where they are.

The pending token: a slot's state has consumed every token of its transcript but the last. That last one, the pending
token, is consumed first when the row goes on. A new sequence's pending token is the start token, its state zero.
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

HISTORY = 1_024
"""How many of the last tokens a slot remembers for the repetition penalty: the longest window."""


Arithmetic = Literal["float32", "int16"]
"""What products with a state are made of and summed in."""


class Reason(enum.IntEnum):
    """Why a row froze."""

    RUNNING = 0
    STOP = 1
    END_OF_SEQUENCE = 2
    LENGTH = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What a slot is told when a sequence takes it."""

    history: NDArray[np.int32]
    """The transcript's last tokens, at most 1,024, the pending one last."""
    position: int
    """The absolute position of the pending token."""
    forced: NDArray[np.int32]
    """The tokens that follow, whatever the logits say: the prompt."""
    sampling: SamplingParameters
    max_tokens: int
    """How many tokens are drawn at most; 0 ends with the last forced one."""
    min_tokens: int = 0
    """Before so many are drawn, the end token and `stops.token_ids` are masked and stop strings are passed over."""
    end_id: int | None = None
    """The token that ends the sequence when drawn."""
    ignore_eos: bool = False
    """Masks the end token throughout."""
    stops: StopTable | None = None
    stop_state: int = 0
    """Where in `stops` the row begins; not 0 when a generation is taken up again."""
    drawn: int = 0
    """How many tokens of this generation were drawn before; not 0 when it is taken up again."""
    logprobs: int | None = None
    """None for none; else the yielded token's log-probability and that of so many likeliest tokens."""


@dataclasses.dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of one call's rows that asked, in nats of the unmodified distribution; ties to the lower id."""

    chosen: NDArray[np.float32]
    """(steps, rows), NaN where not asked."""
    top_ids: NDArray[np.int32]
    """(steps, rows, most alternatives asked)"""
    top: NDArray[np.float32]
    """(steps, rows, most alternatives asked)"""


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """What one call made."""

    tokens: NDArray[np.int32]
    """(steps, rows): the token each step yielded, -1 where the row was frozen."""
    taken: NDArray[np.int32]
    """(rows,): how many steps each row took."""
    reasons: NDArray[np.int32]
    """(rows,): a `Reason` each."""
    logprobs: Logprobs | None


class Backend(Protocol):
    """What computes. At most `lanes` threads call it at a time, no two of them with the same slot."""

    name: str
    """`reference`, `native` or `cuda`."""
    why: str
    """Why this one was chosen, for the log and for GetModel."""
    numerics_id: str
    """16 hex digits: the same id means the same bits."""
    slots: int
    lanes: int
    """How many calls of `decode` may be under way at a time."""
    nice: int
    """How much its lanes give way to other threads, as a nice value: 0 where they do not compute themselves."""
    most_rows: int
    """How many rows a call takes; the engine offers no more."""
    enough_rows: int
    """With more rows than so many on a lane, a step takes longer in proportion: they can as well take turns."""

    def admit(self, slot: int, row: Row, state: NDArray[np.float32] | None) -> None:
        """Puts a sequence into a slot; `state` as `snapshot` gave it, None for the zero state."""

    def decode(self, slots: Sequence[int], limits: Sequence[int], steps: int, *, alone: bool = False) -> Block:
        """Runs at most `steps` steps, row i at most `limits[i]` of them; at most `most_rows` distinct slots.

        `alone` leaves the rest of the machine to the calls on other lanes; what is computed is the same.
        """

    def snapshot(self, slot: int) -> NDArray[np.float32]:
        """A copy of the slot's state: (state tensors, L, H) fp32."""

    def release(self, slot: int) -> None:
        """Frees what the slot holds beside its state. Never raises."""


@runtime_checkable
class Submitting(Backend, Protocol):
    """A backend with one lane that takes the next calls before the earlier ones have returned.

    A row may be in several of them: one that an earlier call ends is frozen in the later ones. What `admit`, `release`
    and `snapshot` do comes after every call submitted so far.
    """

    ahead: int
    """How many calls may be submitted beyond the one whose results are waited for."""

    def submit(self, slots: Sequence[int], limits: Sequence[int], steps: int) -> Callable[[], Block]:
        """Takes a call as `decode` does, and returns what waits for its results; those are asked for in order."""

    def check(self) -> None:
        """Raises where nothing can be computed any more, whatever the rows: asked after a call has failed."""

    def snapshots(self, slots: Sequence[int]) -> Sequence[NDArray[np.float32]]:
        """What `snapshot` gives for each of several slots, for one wait."""
