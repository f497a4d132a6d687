"""The values that cross the engine's border, and the engine's record of one sequence.

`Admission` goes in; `Progress` and `CallReport` come out. `Sequence` counts what a sequence has consumed, generated and
may still do. Knows no threads, no clock (a time is an argument) and no session or message.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence as Tokens
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gruve.decode.stops import StopTable
from gruve.engine.delivery import PendingOutput
from gruve.model.sampling import SamplingParameters

UNLIMITED = 1 << 30
"""More steps than any call takes."""
MAX_PACE_DEBT_S = 0.25
"""How far behind its pace a late row may catch up, in seconds."""


class FinishReason(enum.Enum):
    """Why a sequence yields no further token."""

    STOP = "stop"
    LENGTH = "length"
    END_OF_SEQUENCE = "end_of_sequence"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    HANDED_OVER = "handed_over"
    PREEMPTED = "preempted"
    """Another tenant got its slot. The caller admits the rest of the sequence again; a client never sees this."""


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """A sequence for the engine to decode. Plain values only."""

    sampling: SamplingParameters
    history: NDArray[np.int32]
    """The transcript's last tokens (at least 1,024 if it has as many), oldest first; the pending token is the last."""
    position: int
    """The absolute position of the pending token."""
    forced: NDArray[np.int32]
    """The tokens that follow the pending token, whatever the logits say: the prompt."""
    max_tokens: int
    """How many tokens may be generated, the earlier ones counted in `generated` included."""
    state: NDArray[np.float32] | None = None
    """The state that has consumed everything before the pending token; None for the zero state."""
    min_tokens: int = 0
    """Before this many, the end token and the stops' token ids are masked and stop strings are ignored."""
    ignore_eos: bool = False
    """Masks the end token throughout."""
    stops: StopTable | None = None
    stop_state: int = 0
    """The state of `stops` to begin in; not 0 when a generation is resumed."""
    generated: int = 0
    """Tokens of this generation that were generated before; not 0 when it is resumed."""
    logprobs: int | None = None
    """None for none; otherwise each token's log-probability and this many alternatives."""
    deadline_s: float | None = None
    """Monotonic time at which the sequence ends with DEADLINE, running or waiting."""
    max_tokens_per_second: float | None = None
    """The pace of generated tokens; forced tokens are not paced."""
    ready_s: float = 0.0
    """Monotonic time before which no token may be generated; 0 for at once."""
    keep_state: bool = False
    """Whether the last progress carries the state, so that a session can continue from it."""
    snapshot_tokens: int | None = None
    """Progress also carries the state in between, at most this many tokens apart; None for never."""
    deliver_forced: bool = True
    """Whether forced tokens are delivered; without them the first token delivered is the first one generated."""
    max_pending_output: int = UNLIMITED
    """This many undelivered tokens are delivered at once, however recent the last delivery was."""
    window: int | None = None
    """How many tokens may be decoded, forced ones included, before the first `Engine.acknowledge`; None for no bound.
    With a bound all tokens are delivered (`deliver_forced`)."""
    tenant: str = ""
    """Whose sequence it is: tenants share slots and calls."""
    weight: float = 1.0
    """The tenant's share relative to that of others, above 0."""

    @property
    def allowed_tokens(self) -> int:
        """How many tokens the sequence may still have, forced ones included."""
        return len(self.forced) + max(0, self.max_tokens - self.generated)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token's log-probability and the likeliest alternatives, in nats of the unmodified distribution."""

    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


class Progress(NamedTuple):
    """What happened to one sequence since its last progress.

    A tuple because many are made: a frozen dataclass takes six times as long to make.
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
    """The state that has consumed all tokens but the last: in the last progress if `keep_state` or if the sequence was
    preempted, and in between as `snapshot_tokens` asks."""
    incident: str | None = None
    """The id under which the log has the failure that ended the sequence; there is no finish reason then."""
    queue_s: float = 0.0
    """How long the sequence waited for a slot, or has waited by its last progress. 0 if it has failed."""

    @property
    def ended(self) -> bool:
        """Whether this is the sequence's last progress."""
        return self.finish_reason is not None or self.incident is not None


@dataclasses.dataclass(frozen=True, slots=True)
class CallReport:
    """One call of the backend, what is delivered after it, and the engine's queues at that time.

    Progress that no call made, such as a cancelled sequence's, comes in a report of 0 rows and 0 steps.
    """

    progress: tuple[Progress, ...]
    rows: int
    steps: int
    seconds: float
    generated: int
    """Tokens in the call's progress that were generated, forced ones not counted."""
    running: int
    waiting: int


@dataclasses.dataclass(slots=True, eq=False)
class Sequence:
    """One running or waiting sequence."""

    id: int
    admission: Admission
    arrived_s: float = 0.0
    slot: int | None = None
    forced_left: int = 0
    last_forced: int = 0
    """How many forced tokens the last call consumed."""
    generated: int = 0
    position: int = 0
    """The absolute position of the pending token."""
    credit: int | None = None
    """How many more tokens may be generated before the sequence parks; None for no bound."""
    window: int | None = None
    """How many more tokens may be decoded, forced ones included, before the sequence parks; None for no bound."""
    ready_s: float = 0.0
    """When the pace allows the next token; 0 for at once."""
    started_s: float | None = None
    """When the sequence got its slot."""
    in_flight: int = 0
    """How many calls in flight have the row. While it is not 0, nothing else may use the slot."""
    submitted: int = 0
    """How many steps those calls may take with the row."""
    finish_requested: FinishReason | None = None
    """How to end the sequence when the last of those calls returns, unless a call ends it otherwise."""
    ended: bool = False
    """Whether its last progress has been made and its slot released."""
    snapshot_position: int = 0
    """The position of the last state in a progress."""
    output: PendingOutput = dataclasses.field(default_factory=PendingOutput)
    tenant: str = ""
    weight: float = 1.0
    counted_position: int = 0
    """The position up to which its tokens count as served to its tenant."""

    def __post_init__(self) -> None:
        self.tenant, self.weight = self.admission.tenant, self.admission.weight
        self.forced_left = len(self.admission.forced)
        self.generated = self.admission.generated
        self.ready_s, self.window = self.admission.ready_s, self.admission.window
        self.position = self.snapshot_position = self.counted_position = self.admission.position

    @property
    def prompting(self) -> bool:
        """Whether it has not generated its first token yet; the scheduler prefers such rows."""
        return self.generated == self.admission.generated

    @property
    def slowed_by_client(self) -> bool:
        """Whether its client decides how long it holds its slot: by its pace, or by reading."""
        return self.admission.max_tokens_per_second is not None or self.credit is not None or self.window is not None

    @property
    def parked(self) -> bool:
        """Whether it may take no step until it gets more credit or a wider window."""
        return self.window == 0 or (self.credit == 0 and self.forced_left == 0)

    def steps_until(self, generated: int) -> int:
        """How many more steps generate its first `generated` tokens.

        `UNLIMITED` if it has generated one, or calls in flight may.
        """
        if not self.prompting or self.submitted > self.forced_left:
            return UNLIMITED
        return self.forced_left - self.submitted + generated

    def step_limit(self) -> int:
        """How many steps it may take in one more call: its forced tokens and what pace, credit and window allow."""
        allowed = UNLIMITED
        if self.admission.max_tokens_per_second is not None:
            allowed = 0 if self.forced_left and self.ready_s else 1  # a resumed row may still have to wait
        if self.credit is not None:
            allowed = min(allowed, self.credit)
        steps = self.forced_left + allowed
        if self.window is not None:
            steps = min(steps, self.window)
        return max(0, steps - self.submitted)

    def can_continue(self, steps: int) -> bool:
        """Whether it may be in another call before the call that has it returns; neither takes more than `steps`.

        It may not if its state is wanted as it is between the two.
        """
        if self.in_flight != 1 or self.ended or self.finish_requested is not None or not self.step_limit():
            return False
        generated = self.generated + max(0, self.submitted - self.forced_left)
        return generated < self.admission.max_tokens and not self.wants_snapshot(steps)

    def wants_snapshot(self, steps: int) -> bool:
        """Whether `steps` steps after the calls in flight could exceed `snapshot_tokens` since the last snapshot."""
        every = self.admission.snapshot_tokens
        return every is not None and self.position + self.submitted + steps > self.snapshot_position + every

    def take_served(self) -> int:
        """How many tokens calls have served to it since this was last asked, forced ones included."""
        tokens = self.position - self.counted_position
        self.counted_position = self.position
        return tokens

    def advance(self, steps: int, now_s: float) -> int:
        """Counts `steps` steps that a call took and returns how many of them were forced."""
        forced = min(self.forced_left, steps)
        generated = steps - forced
        self.position += steps
        self.forced_left -= forced
        self.last_forced = forced
        self.generated += generated
        if self.credit is not None:
            self.credit -= generated
        if self.window is not None:
            self.window -= steps
        if generated and (pace := self.admission.max_tokens_per_second):
            self.ready_s = max(self.ready_s or now_s, now_s - MAX_PACE_DEBT_S) + generated / pace
        return forced
