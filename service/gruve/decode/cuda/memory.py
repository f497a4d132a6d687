"""The device's memory: what every slot holds, and what the rows of one call hold side by side while it lasts.

A call gathers its rows' states and numbers out of the slots, takes its steps on them, and scatters them back. Places
that a call leaves empty belong to a slot of their own, after the last, that nobody reads.
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
"""Of one call."""
SLOT, LIMIT, FORCED = range(3)
INBOX = 3
"""Rows of numbers at the head of a call's inbox: each row's slot, limit and forced tokens left; then the tokens."""
TAKEN, REASON = range(2)
OUTBOX = 2
"""Rows of numbers at the head of a call's outbox: steps each row took and why it froze; then the tokens."""
LOGIT_ENTRIES = 1 << 24
"""How many logits are kept at most (64 MiB), of as many steps as have room."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a call, `size` of them, the last ones perhaps empty."""

    size: int
    inbox: Tensor
    """(INBOX + MAX_STEPS, B) int32"""
    outbox: Tensor
    """(OUTBOX + MAX_STEPS, B) int32; tokens -1 where a row is frozen."""
    slots: Tensor
    """(B,) int64"""
    states: Tensor
    """(state tensors, L, B, H) fp32, H padded"""
    integers: Tensor
    """(B, FIELDS) int64"""
    reals: Tensor
    """(B, REALS) fp32"""
    logits: Tensor
    """(steps, B, V) fp32: of step k at k modulo steps."""


class Memory:
    """Allocates everything once; nothing of it moves while it lives."""

    def __init__(self, config: ModelConfig, slots: int, max_rows: int, hidden_size: int, device: torch.device) -> None:
        """`hidden_size` is H as padded for whoever computes."""
        T, L, V = config.state_tensors, config.num_layers, config.vocabulary_size
        places = slots + 1
        self.empty = slots
        """The slot of a call's empty places."""
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
        """The memory of a call of `size` rows; calls of every size share it."""
        T, L, H, V = self._shape
        kept = len(self._logits) // (size * V)
        kept -= kept % 2 if kept > 1 else 0  # what is captured begins after an even number of steps
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
        """For checks: fills what every call writes before it reads it with what is no number."""
        for numbers in (self._states, self._reals, self._logits):
            numbers.fill_(math.nan)
        for integers in (self._outbox, self._integers, self._slots):
            integers.fill_(-77)

    def gather(self, rows: Rows) -> None:
        """Begins the call that the inbox describes."""
        rows.slots.copy_(rows.inbox[SLOT])
        torch.index_select(self.states, 2, rows.slots, out=rows.states)
        torch.index_select(self.integers, 0, rows.slots, out=rows.integers)
        torch.index_select(self.reals, 0, rows.slots, out=rows.reals)
        limits = rows.inbox[LIMIT]
        rows.integers[:, Field.TAKEN] = 0
        rows.integers[:, Field.LIMIT] = limits
        rows.integers[:, Field.FORCED] = rows.inbox[FORCED]
        running = rows.integers[:, Field.REASON] == int(RowStatus.RUNNING)
        rows.integers[:, Field.ACTIVE] = running & (limits > 0)
        rows.outbox.fill_(-1)

    def scatter(self, rows: Rows) -> None:
        """Ends the call: what moved goes back to the slots, and what it took to the outbox."""
        self.states.index_copy_(2, rows.slots, rows.states)
        self.integers.index_copy_(0, rows.slots, rows.integers)
        rows.outbox[TAKEN] = rows.integers[:, Field.TAKEN]
        rows.outbox[REASON] = rows.integers[:, Field.REASON]
