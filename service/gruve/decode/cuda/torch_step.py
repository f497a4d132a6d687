"""One step of a call's rows in torch operations of fixed shapes, which a CUDA graph can capture.

The network is the reference backend's, in either arithmetic, and sampling is `decode/sampler.py`. Knows the call's
memory, not streams, graphs or the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gruve.decode import Arithmetic, RowStatus
from gruve.decode.cuda.memory import INBOX, OUTBOX, Memory, Rows
from gruve.decode.cuda.pointing import PointerMemory
from gruve.decode.cuda.pool import StopPool
from gruve.decode.cuda.records import ALWAYS, BIASED, EARLY, MASKED, NEVER, Field, Real
from gruve.decode.int8 import Int8Step
from gruve.decode.sampler import RowSampling, Sampler
from gruve.decode.stops import MATCHED
from gruve.decode.tiles import Tiles
from gruve.model.repository import Model


class TorchStep:
    """Steps in torch operations; see `gruve.decode.cuda.step.Step`."""

    plain_values: tuple[bool, ...] = (True, False)
    pointers: PointerMemory | None = None

    def __init__(self, model: Model, device: torch.device, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic
        self.tiles = Int8Step(model, device) if arithmetic == "int8" else Tiles(model, device)
        self.hidden_size = self.tiles.hidden_size
        self.description = f"fp32 torch {torch.__version__.split('+')[0]} tiles of {self.tiles.rows}"

    def attach(self, memory: Memory, stops: StopPool) -> None:
        """See `Step`."""
        self._tail = TorchTail(memory, stops)

    def begin(self, rows: Rows) -> None:
        """See `Step`."""

    def poison(self) -> None:
        """See `Step`. This step has no buffers of its own."""

    def step(self, rows: Rows, parity: int, *, plain: bool) -> None:  # noqa: ARG002 - one buffer, not two in turn
        """See `Step`."""
        padding = self.tiles.padded(rows.size) - rows.size
        tokens = torch.nn.functional.pad(rows.integers[:, Field.PENDING], (0, padding))
        states = tuple(torch.nn.functional.pad(tensor, (0, 0, 0, padding)) for tensor in rows.states)
        logits, after = self.tiles.step(tokens, states)
        active = rows.integers[:, Field.ACTIVE] != 0
        for tensor, new in zip(rows.states, after, strict=True):
            tensor.copy_(torch.where(active[None, :, None], new[:, : rows.size], tensor))
        self._tail.step(rows, logits[: rows.size], plain=plain)


class TorchTail:
    """The part of a step after the logits: sampling, stops, positions and counts."""

    def __init__(self, memory: Memory, stops: StopPool) -> None:
        self._memory = memory
        self._stops = stops
        self._sampler = Sampler(memory.seen.shape[1], memory.seen.device)

    def step(self, rows: Rows, logits: Tensor, *, plain: bool) -> None:
        """Samples the next token of every active row and updates the row.

        `plain` says that the rows of the call use only temperature, seed and stops.
        """
        i = rows.integers
        sampling = _Columns(rows, self._memory, plain=plain)
        seen = None if plain else sampling.seen(self._memory, rows)
        sampled = self._sampler.draw(logits, sampling, i[:, Field.POSITION] + 1, i[:, Field.GENERATED], seen)
        # An unused row, or one whose state is NaN, has nothing to sample from. Its token must still be within bounds.
        sampled = sampled.clamp_max(logits.shape[1] - 1)
        taken = i[:, Field.TAKEN]
        if not plain:
            kept = rows.logits.shape[0]
            rows.logits.index_put_((taken % kept, torch.arange(rows.size, device=logits.device)), logits)
        prompted = taken < i[:, Field.FORCED]
        at = taken.clamp_max(rows.inbox.shape[0] - INBOX - 1)[None]
        token = torch.where(prompted, rows.inbox[INBOX:].gather(0, at)[0].to(torch.int64), sampled)
        active = i[:, Field.ACTIVE] != 0
        rows.outbox[OUTBOX:].scatter_(0, at, torch.where(active, token, -1).to(torch.int32)[None])
        self._advance(rows, token, active, active & ~prompted)
        if not plain:
            seen_at = self._memory.seen[rows.slots, token]
            now = torch.where(active, i[:, Field.POSITION].to(torch.int32), seen_at)
            self._memory.seen.index_put_((rows.slots, token), now)

    def _advance(self, rows: Rows, token: Tensor, active: Tensor, sampled: Tensor) -> None:
        """Updates position, counts and stops, and freezes rows that have ended."""
        i = rows.integers
        i[:, Field.POSITION] += active
        i[:, Field.GENERATED] += sampled
        i[:, Field.TAKEN] += active
        i[:, Field.PENDING] = torch.where(active, token, i[:, Field.PENDING])
        generated, vocabulary_size = i[:, Field.GENERATED], self._memory.seen.shape[1]
        walking = sampled & (i[:, Field.STOP_BASE] >= 0)
        place = i[:, Field.STOP_BASE] + i[:, Field.STOP_STATE] * vocabulary_size + token
        entry = self._stops.entries[torch.where(walking, place, 0)].to(torch.int64)
        i[:, Field.STOP_STATE] = torch.where(walking, entry & (MATCHED - 1), i[:, Field.STOP_STATE])
        ended = sampled & (token == i[:, Field.END_ID])
        stopped = walking & (entry >= MATCHED) & (generated >= i[:, Field.MIN_TOKENS]) & ~ended
        prompt_left = i[:, Field.TAKEN] < i[:, Field.FORCED]
        full = active & (generated >= i[:, Field.MAX_TOKENS]) & ~prompt_left & ~ended & ~stopped
        for reason, frozen in ((RowStatus.END_OF_SEQUENCE, ended), (RowStatus.STOP, stopped), (RowStatus.LENGTH, full)):
            i[:, Field.STATUS] = torch.where(frozen, int(reason), i[:, Field.STATUS])
        running = (i[:, Field.STATUS] == int(RowStatus.RUNNING)) & (i[:, Field.TAKEN] < i[:, Field.LIMIT])
        i[:, Field.ACTIVE] = active & running


class _Columns(RowSampling):
    """The sampling parameters of the rows as columns, read from their records. A plain call has only some of them."""

    def __init__(self, rows: Rows, memory: Memory, *, plain: bool) -> None:
        def column(field: Field) -> Tensor:
            return rows.integers[:, field : field + 1]

        self.greedy = column(Field.GREEDY) != 0
        self.scale = rows.reals[:, Real.SCALE : Real.SCALE + 1]
        self.key_low, self.key_high = rows.integers[:, Field.KEY_LOW], rows.integers[:, Field.KEY_HIGH]
        self.min_tokens = rows.integers[:, Field.MIN_TOKENS]
        self.any_sampled = True
        self.truncated = self.penalised = not plain
        self.bias = self.masked = self.masked_early = None
        if plain:
            return
        self.top_k, self.top_p, self.min_p = column(Field.TOP_K), column(Field.TOP_P), column(Field.MIN_P)
        self.penalty = rows.reals[:, Real.PENALTY : Real.PENALTY + 1]
        self.inverse = rows.reals[:, Real.INVERSE : Real.INVERSE + 1]
        self.window = column(Field.WINDOW)
        dense = column(Field.DENSE)
        self.bias = torch.where(dense & BIASED != 0, memory.bias[rows.slots], 0.0)
        masks = torch.where(dense & MASKED != 0, memory.masks[rows.slots], 0)
        self.masked, self.masked_early = masks & ALWAYS != 0, masks & EARLY != 0

    def seen(self, memory: Memory, rows: Rows) -> Tensor:
        """Which tokens occur in each row's repetition window: bool (rows, V)."""
        last = memory.seen[rows.slots].to(torch.int64)
        # The values of a slot whose row has no window are stale.
        inside = (last > rows.integers[:, Field.POSITION, None] - self.window) & (last != NEVER)
        return inside & (self.window > 0)
