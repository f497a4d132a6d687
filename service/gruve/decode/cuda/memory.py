"""The device memory of slots and of the rows of one call.

A call gathers its rows' states and numbers from their slots, runs its steps, and scatters them back. Unused rows of a
call use one extra slot after the last, which is never read.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from gruve.decode import RowStatus
from gruve.decode.cuda.records import FIELDS, NEVER, REALS, Field
from gruve.model.config import ModelConfig

MAX_STEPS = 256
"""The maximum number of steps of one call."""
SLOT, LIMIT, FORCED = range(3)
INBOX = 3
"""The rows before the tokens in a call's inbox: each row's slot, step limit, and number of forced tokens left."""
TAKEN, STATUS = range(2)
OUTBOX = 2
"""The rows before the tokens in a call's outbox: the number of steps each row took, and its status."""
LOGIT_ENTRIES = 1 << 24
"""The maximum number of kept logits (64 MiB). They hold as many of the last steps as fit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """The memory of a call: `size` rows, of which the last may be unused."""

    size: int
    inbox: Tensor
    """(INBOX + MAX_STEPS, B) int32"""
    outbox: Tensor
    """(OUTBOX + MAX_STEPS, B) int32; tokens are -1 where a row is frozen"""
    slots: Tensor
    """(B,) int64"""
    states: Tensor
    """(state tensors, L, B, H) fp32, H padded"""
    integers: Tensor
    """(B, FIELDS) int64"""
    reals: Tensor
    """(B, REALS) fp32"""
    logits: Tensor
    """(steps, B, V) fp32: the logits of step k at k modulo steps"""


class Memory:
    """All memory of slots and calls, allocated once. Nothing in it moves, because captured graphs hold addresses."""

    def __init__(self, config: ModelConfig, slots: int, max_rows: int, hidden_size: int, device: torch.device) -> None:
        """`hidden_size` is H, padded as the step needs it."""
        T, L, V = config.state_tensors, config.num_layers, config.vocabulary_size
        places = slots + 1
        self.empty = slots
        """The slot of unused rows."""
        self.max_rows = max_rows
        self.states = torch.zeros(T, L, places, hidden_size, device=device)
        self.integers = torch.zeros(places, FIELDS, dtype=torch.int64, device=device)
        self.reals = torch.ones(places, REALS, device=device)
        self.seen = torch.full((places, V), NEVER, dtype=torch.int32, device=device)
        self.bias = torch.zeros(places, V, device=device)
        self.masks = torch.zeros(places, V, dtype=torch.int8, device=device)
        self._shape = (T, L, hidden_size, V)
        self._inbox = torch.zeros((INBOX + MAX_STEPS) * max_rows, dtype=torch.int32, device=device)
        self._outbox = torch.zeros((OUTBOX + MAX_STEPS) * max_rows, dtype=torch.int32, device=device)
        self._slots = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._states = torch.zeros(T * L * max_rows * hidden_size, device=device)
        self._integers = torch.zeros(max_rows * FIELDS, dtype=torch.int64, device=device)
        self._reals = torch.ones(max_rows * REALS, device=device)
        self._logits = torch.zeros(min(LOGIT_ENTRIES, MAX_STEPS * max_rows * V), device=device)

    def rows(self, size: int) -> Rows:
        """Returns the memory of a call of `size` rows. Calls of all sizes share it."""
        T, L, H, V = self._shape
        kept = len(self._logits) // (size * V)
        kept -= kept % 2 if kept > 1 else 0  # captured graphs begin after an even number of steps
        return Rows(
            size,
            self._inbox[: (INBOX + MAX_STEPS) * size].view(INBOX + MAX_STEPS, size),
            self._outbox[: (OUTBOX + MAX_STEPS) * size].view(OUTBOX + MAX_STEPS, size),
            self._slots[:size],
            self._states[: T * L * size * H].view(T, L, size, H),
            self._integers[: size * FIELDS].view(size, FIELDS),
            self._reals[: size * REALS].view(size, REALS),
            self._logits[: kept * size * V].view(kept, size, V),
        )

    def poison(self) -> None:
        """For tests: fills every buffer that a call must write before it reads with NaN or invalid numbers."""
        for numbers in (self._states, self._reals, self._logits):
            numbers.fill_(math.nan)
        for integers in (self._outbox, self._integers, self._slots):
            integers.fill_(-77)

    def gather(self, rows: Rows) -> None:
        """Begins the call that the inbox describes: copies its rows' slots into the call's memory."""
        rows.slots.copy_(rows.inbox[SLOT])
        torch.index_select(self.states, 2, rows.slots, out=rows.states)
        torch.index_select(self.integers, 0, rows.slots, out=rows.integers)
        torch.index_select(self.reals, 0, rows.slots, out=rows.reals)
        limits = rows.inbox[LIMIT]
        rows.integers[:, Field.TAKEN] = 0
        rows.integers[:, Field.LIMIT] = limits
        rows.integers[:, Field.FORCED] = rows.inbox[FORCED]
        running = rows.integers[:, Field.STATUS] == int(RowStatus.RUNNING)
        rows.integers[:, Field.ACTIVE] = running & (limits > 0)
        rows.outbox.fill_(-1)

    def scatter(self, rows: Rows) -> None:
        """Ends the call: copies states and numbers back to the slots, and step counts and statuses to the outbox."""
        self.states.index_copy_(2, rows.slots, rows.states)
        self.integers.index_copy_(0, rows.slots, rows.integers)
        rows.outbox[TAKEN] = rows.integers[:, Field.TAKEN]
        rows.outbox[STATUS] = rows.integers[:, Field.STATUS]
