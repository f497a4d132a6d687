"""One sequence while it is decoded: what was asked, where it stands, why it ended. Knows no tensors and no clock."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence as Tokens
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gruve.decode.stops import StopTable
from gruve.engine.telling import Untold
from gruve.model.sampling import SamplingParameters

UNLIMITED = 1 << 30
"""More steps than any call takes."""


class FinishReason(enum.Enum):
    """Why a sequence produces no further token."""

    STOP = "stop"
    LENGTH = "length"
    END_OF_SEQUENCE = "end_of_sequence"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    HANDED_OVER = "handed_over"


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """What the engine is asked to decode. Plain values only: this is what crosses from the wire to the engine."""

    sampling: SamplingParameters
    history: NDArray[np.int32]
    """Every token of the transcript up to and including the pending one that matters: the last 1,024 at least."""
    position: int
    """The absolute position of the pending token."""
    forced: NDArray[np.int32]
    """What follows the pending token, whatever the logits say."""
    max_tokens: int
    """How many tokens may be drawn, those of `drawn` included."""
    state: NDArray[np.float32] | None = None
    """The state that has consumed everything before the pending token; None for the zero state."""
    min_tokens: int = 0
    ignore_eos: bool = False
    stops: StopTable | None = None
    stop_state: int = 0
    drawn: int = 0
    logprobs: int | None = None
    deadline_s: float | None = None
    """Monotonic time at which the sequence ends with DEADLINE, running or waiting."""
    max_tokens_per_second: float | None = None
    """Paces the drawn tokens; the prompt is not paced."""
    ready_s: float = 0.0
    """Monotonic time before which the pace lets no token be drawn; 0 for at once."""
    keep_state: bool = False
    """Whether the last event brings the state along, for a session."""
    snapshot_tokens: int | None = None
    """Brings the state along in between as well, never more than so many tokens apart."""
    tell_forced: bool = True
    """Whether forced tokens are told as well; without them what is told begins with the first drawn one."""
    most_untold: int = UNLIMITED
    """So many drawn tokens are told however short ago the last ones were."""


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token's log-probability and the likeliest alternatives, in nats of the unmodified distribution."""

    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


class Progress(NamedTuple):
    """What became of one sequence since it was last told of: this is what crosses from the engine to the wire.

    A tuple because many are made, and a frozen dataclass takes six times as long to make.
    """

    sequence_id: int
    position: int
    """The absolute position of the first of `tokens`."""
    tokens: Tokens[int]
    """Consecutive tokens, forced ones first."""
    forced: int
    """How many of `tokens` were forced."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    state: NDArray[np.float32] | None = None
    """What has consumed all tokens but the last: with the last progress of a sequence that asked to keep it, and in
    between where it asked for snapshots."""
    failed: str | None = None
    """The incident under which the log has what broke the engine; then there is no finish reason."""
    queue_s: float = 0.0
    """With the last progress: how long the sequence waited for a slot."""


@dataclasses.dataclass(slots=True, eq=False)
class Sequence:
    """One running or waiting sequence."""

    id: int
    admission: Admission
    arrived_s: float = 0.0
    slot: int | None = None
    forced_left: int = 0
    read: int = 0
    """How much of its prompt the last call read."""
    drawn: int = 0
    position: int = 0
    """Of the pending token."""
    credit: int | None = None
    """How many more tokens may be drawn before the sequence parks; None for no bound."""
    ready_s: float = 0.0
    """When the pace lets the next token be drawn; 0 for at once."""
    started_s: float | None = None
    in_flight: int = 0
    """How many calls have it: until they return nobody else may touch its slot."""
    submitted: int = 0
    """How many steps those calls may take with it."""
    ending: FinishReason | None = None
    """How it is to end when the last of those calls returns, unless they end it otherwise."""
    gone: bool = False
    """Whether its last has been told."""
    snapshot_at: int = 0
    """The position at which its state was last told."""
    untold: Untold = dataclasses.field(default_factory=Untold)

    def __post_init__(self) -> None:
        self.forced_left = len(self.admission.forced)
        self.drawn = self.admission.drawn
        self.ready_s = self.admission.ready_s
        self.position = self.snapshot_at = self.admission.position

    @property
    def prompting(self) -> bool:
        """Whether it has yet to draw its first token: such rows go first."""
        return self.drawn == self.admission.drawn

    def steps_to(self, first: int) -> int:
        """How many steps further its first so many tokens are drawn; no bound where the first is, or soon will be."""
        if not self.prompting or self.submitted > self.forced_left:
            return UNLIMITED
        return self.forced_left - self.submitted + first

    def limit(self) -> int:
        """How many steps it may take in one more call: its prompt, then what pace and credit allow."""
        drawable = UNLIMITED
        if self.admission.max_tokens_per_second is not None:
            drawable = 0 if self.forced_left and self.ready_s else 1  # it may come back before its time
        if self.credit is not None:
            drawable = min(drawable, self.credit)
        return max(0, self.forced_left + drawable - self.submitted)

    def may_go_on(self, steps: int) -> bool:
        """Whether it can be called again before the call that has it returns; none of the two takes over `steps`.

        One whose state is then wanted as it was after the first of them cannot.
        """
        if self.in_flight != 1 or self.gone or self.ending is not None or not self.limit():
            return False
        drawn = self.drawn + max(0, self.submitted - self.forced_left)
        return drawn < self.admission.max_tokens and not self.wants_snapshot(steps)

    def wants_snapshot(self, steps: int) -> bool:
        """Whether a call of `steps` after those under way could go further from the last snapshot than was asked."""
        every = self.admission.snapshot_tokens
        return every is not None and self.position + self.submitted + steps > self.snapshot_at + every
