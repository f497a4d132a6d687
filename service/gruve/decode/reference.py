"""The plain backend: torch operations on any device.

Other backends are tested against it, and it is used where they do not work. In float32 it is exact because every matrix
product has a fixed tile of rows (`tiles.py`), in int8 by its arithmetic (`int8.py`). Knows torch, not sequences,
sessions or requests.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gruve.decode import HISTORY_TOKENS, Arithmetic, Block, Logprobs, Row, RowStatus, int8
from gruve.decode.int8 import Int8Step, int8_bytes
from gruve.decode.sampler import RowSampling, Sampler, seen_in_ring
from gruve.decode.stops import MATCHED
from gruve.decode.tiles import Tiles, tiles_bytes
from gruve.decode.weight_packing import padded_size
from gruve.model.config import ModelConfig
from gruve.model.pointer_tracker import PointerTracker
from gruve.model.pointers import WINDOW
from gruve.model.repository import Model

VERSION = 1
"""The version of the arithmetic. Any change of a bit of a logit or of a sampled token needs a new one."""
POINTERS_VERSION = 1
"""The same for models with pointers."""


class ReferenceBackend:
    """Decodes with torch on `device`; see `gruve.decode.Backend` for the contract."""

    name = "reference"

    def __init__(
        self,
        model: Model,
        slots: int,
        device: str = "cpu",
        selection_reason: str = "requested",
        arithmetic: Arithmetic = "float32",
    ) -> None:
        config = model.config
        self.selection_reason = f"{selection_reason} (int8)" if arithmetic == "int8" else selection_reason
        self.slots = slots
        self.workers = 1
        self.nice = 10 if device == "cpu" else 0
        self._config = config
        self._device = torch.device(device)
        self._tiles = Int8Step(model, self._device) if arithmetic == "int8" else Tiles(model, self._device)
        self.max_rows = self.saturating_rows = max(64, self._tiles.rows)
        # One slab of states for all slots: (state tensors, L, slots, H), H as `_tiles` has it.
        self._states = torch.zeros(
            config.state_tensors, config.num_layers, slots, self._tiles.hidden_size, device=self._device
        )
        self._rows: list[_Slot | None] = [None] * slots
        self._history = torch.zeros(slots, HISTORY_TOKENS, dtype=torch.int64, device=self._device)
        self._sampler = Sampler(config.vocabulary_size, self._device)
        self.numerics_id = int8.numerics_id(config) if arithmetic == "int8" else self._numerics_id()

    def admit(self, slot: int, row: Row, state: NDArray[np.float32] | None) -> None:
        """Puts a sequence into a slot; see the contract."""
        H = self._config.hidden_size
        self._states[:, :, slot] = 0.0  # the padding too, because NaN in an earlier state leaves NaN there
        if state is not None:
            self._states[:, :, slot, :H] = torch.from_numpy(state).to(self._device)
        self._rows[slot] = _Slot(row, self._config, self._device)
        recent = row.history[-HISTORY_TOKENS:]
        places = np.arange(row.position - len(recent) + 1, row.position + 1) % HISTORY_TOKENS
        self._history[slot, torch.from_numpy(places).to(self._device)] = torch.from_numpy(recent.astype(np.int64)).to(
            self._device
        )

    def snapshot(self, slot: int) -> NDArray[np.float32]:
        """A copy of the slot's state; see the contract."""
        copy: NDArray[np.float32] = self._states[:, :, slot, : self._config.hidden_size].to("cpu").numpy().copy()
        return copy

    def release(self, slot: int) -> None:
        """Forgets the row in the slot."""
        self._rows[slot] = None

    def close(self) -> None:
        """Frees the weights and the states."""
        del self._tiles, self._states, self._history, self._sampler

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], limits: Sequence[int], steps: int, *, exclusive: bool = True) -> Block:  # noqa: ARG002
        """Runs a block of steps; see the contract."""
        rows = [self._row(slot) for slot in slots]
        count, padded = len(rows), self._tiles.padded(len(rows))
        index = torch.tensor([*slots] + [slots[0]] * (padded - count), device=self._device)
        state = tuple(slab[:, index] for slab in self._states)  # each (L, padded, H), compact for this call
        call = _Call(rows, limits, steps, self._device)
        sampling = RowSampling([row.row for row in rows], self._config.vocabulary_size, self._device)
        out = torch.full((steps, count), -1, dtype=torch.int64, device=self._device)
        logprobs = _LogprobRecorder(rows, steps, self._device)
        for k in range(steps):
            active = call.active & (call.limits > k)
            logits, new_state = self._step(call.pending, state, padded, self._pointed(rows, padded))
            logits = logits[:count]
            sampled = self._draw(logits, sampling, call, index[:count])
            token = torch.where(call.forced[:, k] >= 0, call.forced[:, k], sampled)
            logprobs.record(k, logits, token)
            self._advance(call, token, active, index[:count], k)
            out[k] = torch.where(active, token, -1)
            self._follow(rows, out[k])
            keep = torch.zeros(padded, dtype=torch.bool, device=self._device)
            keep[:count] = active
            state = tuple(torch.where(keep[None, :, None], new, old) for new, old in zip(new_state, state, strict=True))
        for tensor, slab in zip(state, self._states, strict=True):
            slab[:, index[:count]] = tensor[:, :count]
        return self._finish(rows, call, out, logprobs)

    def _step(
        self, pending: Tensor, state: tuple[Tensor, ...], padded: int, pointed: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Runs one step of every tile; returns logits (padded, V) and the new state."""
        tokens = torch.zeros(padded, dtype=torch.int64, device=self._device)
        tokens[: pending.shape[0]] = pending
        return self._tiles.step(tokens, state, pointed)

    def _pointed(self, rows: list[_Slot], padded: int) -> Tensor | None:
        """The pointers at each row's pending token: (padded, 2 K + 2), or None for a model without pointers."""
        if self._config.pointers is None:
            return None
        pointed = torch.zeros(padded, 2 * self._config.pointers.size + 2, dtype=torch.int64)
        for i, row in enumerate(rows):
            tokens, matches, place_row, count_row = row.pointed
            pointed[i] = torch.tensor((*tokens, *matches, place_row, count_row))
        return pointed.to(self._device)

    def _follow(self, rows: list[_Slot], tokens: Tensor) -> None:
        """Feeds each row's token to its pointers; -1 is no token."""
        if self._config.pointers is None:
            return
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if token >= 0:
                row.follow(token)

    def _draw(self, logits: Tensor, sampling: RowSampling, call: _Call, slots: Tensor) -> Tensor:
        """Samples the next token of each row, (rows,), from logits (rows, V)."""
        position, seen = call.position + 1, None
        if sampling.penalised:
            seen = seen_in_ring(self._history[slots], position, sampling.window, self._config.vocabulary_size)
        return self._sampler.draw(logits, sampling, position, call.generated, seen)

    def _advance(self, call: _Call, token: Tensor, active: Tensor, slots: Tensor, k: int) -> None:
        """Moves every active row past `token`: updates position, counts, stops and history; freezes ended rows."""
        sampled = active & (call.forced[:, k] < 0)
        call.position = torch.where(active, call.position + 1, call.position)
        call.generated = torch.where(sampled, call.generated + 1, call.generated)
        call.steps_taken += active
        call.pending = torch.where(active, token, call.pending)
        place = call.position % HISTORY_TOKENS
        self._history[slots, place] = torch.where(active, token, self._history[slots, place])
        ended = sampled & (token == call.end_id)
        stopped = call.walk_stops(token, sampled) & (call.generated >= call.min_tokens) & ~ended
        prompt_left = call.steps_taken < call.forced_left
        full = active & (call.generated >= call.max_tokens) & ~prompt_left & ~ended & ~stopped
        for status, rows in ((RowStatus.END_OF_SEQUENCE, ended), (RowStatus.STOP, stopped), (RowStatus.LENGTH, full)):
            call.status = torch.where(rows, int(status), call.status)
        call.active = call.active & (call.status == int(RowStatus.RUNNING))

    def _finish(self, rows: list[_Slot], call: _Call, out: Tensor, logprobs: _LogprobRecorder) -> Block:
        """Writes the call's results back into the slots and returns the block."""
        taken = call.steps_taken.cpu().numpy().astype(np.int32)
        moved = torch.stack((call.pending, call.position, call.generated, call.stop_state)).cpu().tolist()
        for i, row in enumerate(rows):
            row.pending, row.position, row.generated, row.stop_state = (int(column[i]) for column in moved)
            row.forced_at += min(int(taken[i]), len(row.row.forced) - row.forced_at)
        return Block(
            out.cpu().numpy().astype(np.int32), taken, call.status.cpu().numpy().astype(np.int32), logprobs.result()
        )

    def _row(self, slot: int) -> _Slot:
        """The row in the slot; raises `ValueError` if there is none."""
        row = self._rows[slot]
        if row is None:
            raise ValueError(f"slot {slot} holds no sequence")
        return row

    def _numerics_id(self) -> str:
        """16 hex digits from everything that torch's sums in float32 may depend on."""
        device = (
            f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
            if self._device.type == "cpu"
            else f"{torch.cuda.get_device_name(self._device)} CUDA {torch.version.cuda} tiles of {self._tiles.rows}"
        )
        text = f"{self.name} {VERSION} fp32 torch {torch.__version__.split('+')[0]} {device}"
        if self._config.pointers is not None:
            text += f" pointers {POINTERS_VERSION}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def reference_bytes(config: ModelConfig, slots: int, arithmetic: Arithmetic) -> int:
    """The memory that a backend would take for its weights and slots, in bytes, the model's weights not included."""
    if arithmetic == "int8":
        weights, hidden_size = int8_bytes(config), config.hidden_size
    else:
        weights, hidden_size = tiles_bytes(config), padded_size(config.hidden_size)
    state = 4 * config.state_tensors * config.num_layers * hidden_size
    return weights + slots * (state + 8 * HISTORY_TOKENS)


class _Slot:
    """The running state of one admitted row."""

    def __init__(self, row: Row, config: ModelConfig, device: torch.device) -> None:
        self.row = row
        if config.pointers is not None:
            self._tracker = PointerTracker(config.pointers, config.vocabulary_size)
            for token in row.history[-WINDOW:].tolist():
                self.follow(token)
        self.pending = int(row.history[-1])
        self.position = row.position
        self.generated = row.generated
        self.forced_at = 0
        self.stop_state = row.stop_state
        self.stop_table = None if row.stops is None else torch.from_numpy(row.stops.table).to(device)

    def follow(self, token: int) -> None:
        """Feeds the next token of the transcript to the pointers, which the model has."""
        self.pointed = self._tracker.feed(token)


class _Call:
    """The rows of one call as columns, each a tensor (rows,)."""

    def __init__(self, rows: list[_Slot], limits: Sequence[int], steps: int, device: torch.device) -> None:
        def column(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        self.limits = column(list(limits))
        self.pending = column([row.pending for row in rows])
        self.position = column([row.position for row in rows])
        self.generated = column([row.generated for row in rows])
        self.steps_taken = torch.zeros_like(self.pending)
        self.status = torch.zeros_like(self.pending)
        self.active = torch.ones_like(self.pending, dtype=torch.bool)
        self.max_tokens = column([row.row.max_tokens for row in rows])
        self.min_tokens = column([row.row.min_tokens for row in rows])
        self.end_id = column([-1 if row.row.end_id is None else row.row.end_id for row in rows])
        self.forced_left = column([len(row.row.forced) - row.forced_at for row in rows])
        forced = np.full((len(rows), steps), -1, dtype=np.int64)
        for i, row in enumerate(rows):
            piece = row.row.forced[row.forced_at : row.forced_at + steps]
            forced[i, : len(piece)] = piece
        self.forced = torch.from_numpy(forced).to(device)
        self.stop_state = column([row.stop_state for row in rows])
        self._stop_tables = [(i, row.stop_table) for i, row in enumerate(rows) if row.stop_table is not None]

    def walk_stops(self, token: Tensor, sampled: Tensor) -> Tensor:
        """Advances each row's stop state by its sampled token; True where a stop is completed."""
        matched = torch.zeros_like(sampled)
        for i, table in self._stop_tables:
            entry = table[self.stop_state[i], token[i]]
            self.stop_state[i] = torch.where(sampled[i], entry & (MATCHED - 1), self.stop_state[i])
            matched[i] = sampled[i] & (entry >= MATCHED)
        return matched


class _LogprobRecorder:
    """Records log-probabilities for the rows that requested them. Without such rows it does nothing."""

    def __init__(self, rows: list[_Slot], steps: int, device: torch.device) -> None:
        asked = [i for i, row in enumerate(rows) if row.row.logprobs is not None]
        self._rows = torch.tensor(asked, dtype=torch.int64, device=device)
        self._most = max((row.row.logprobs or 0 for row in rows), default=0)
        self._asked = bool(asked)
        if asked:
            self._chosen = torch.full((steps, len(rows)), math.nan, device=device)
            self._top_ids = torch.full((steps, len(rows), self._most), -1, dtype=torch.int64, device=device)
            self._top = torch.full((steps, len(rows), self._most), math.nan, device=device)

    def record(self, k: int, logits: Tensor, token: Tensor) -> None:
        """Records the logits of step k and the token that was yielded."""
        if not self._asked:
            return
        logprobs = torch.log_softmax(logits[self._rows].double(), dim=1)
        self._chosen[k, self._rows] = logprobs.gather(1, token[self._rows, None])[:, 0].float()
        most = min(self._most, logprobs.shape[1])
        if most:
            # A stable sort: topk does not specify the order of ties.
            values, ids = torch.sort(logprobs, dim=1, descending=True, stable=True)
            self._top_ids[k, self._rows, :most] = ids[:, :most]
            self._top[k, self._rows, :most] = values[:, :most].float()

    def result(self) -> Logprobs | None:
        """Returns everything recorded, on the host."""
        if not self._asked:
            return None
        return Logprobs(
            self._chosen.cpu().numpy(), self._top_ids.cpu().numpy().astype(np.int32), self._top.cpu().numpy()
        )
