"""Implements the decode interface on a GPU: rows stay on the device, a call is a few graphs, results are read later.

`submit` queues a call and returns; the function it returns waits for the result. The device runs calls in the order of
submission, and `admit` and `snapshot` take effect between them. A caller that submits the next call before it waits for
the last one keeps the device busy. A frozen row stays frozen, so a row may be submitted again before its end is known.
Knows numpy, slots and calls. A `Step` computes; a `Device` says where.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gruve.decode import Block, Row, int8
from gruve.decode.cuda.device import Device, Pending, Work
from gruve.decode.cuda.logprobs import Recorder
from gruve.decode.cuda.memory import FORCED, INBOX, LIMIT, MAX_STEPS, OUTBOX, SLOT, STATUS, TAKEN, Memory, Rows
from gruve.decode.cuda.pointing import Transcript, transcript_of
from gruve.decode.cuda.pool import StopPool
from gruve.decode.cuda.records import Record, build_record, check_row, is_plain
from gruve.decode.cuda.step import Step
from gruve.errors import ModelBroken
from gruve.model.repository import Model

VERSION = 1
"""The version of the arithmetic. Any change of a bit of a logit or of a sampled token needs a new one."""
MAX_LOGITS = 1 << 24
"""The maximum of rows times vocabulary size in one call."""
_NO_TOKENS = np.zeros(0, dtype=np.int32)


def refuse_pointers(model: Model) -> None:
    """Raises `ModelBroken` for a model with pointers, which the mode `graph` does not compute."""
    if model.config.pointers is not None:
        raise ModelBroken(
            f"model {model.name!r} has pointers, which the mode 'graph' does not compute; 'triton' and 'eager' do"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class CudaConfig:
    """The sizes of the captured graphs."""

    sizes: tuple[int, ...] = (64, 256, 1_024, 4_096)
    """The numbers of rows that graphs are captured for. A call is padded to the next one."""
    pieces: tuple[int, ...] = (32, 16, 8, 4, 2, 1)
    """The numbers of steps that graphs are captured for. A call is composed of them, the longest first. Must hold 1;
    all others must be even."""
    stop_entries: int = 1 << 24
    """The entries of all stop tables in use that are allocated at first, 4 bytes each. If more are needed, every graph
    is captured again while streams wait. One row with the most and longest stops takes 1,025 times the vocabulary
    size."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Admitted:
    """A row that has not been written to the device yet."""

    record: Record
    state: NDArray[np.float32] | None
    transcript: Transcript | None
    """For the pointers of a model."""


class CudaBackend:
    """Decodes on `device` with `step`; see `gruve.decode.Backend` for the contract."""

    name = "cuda"
    nice = 0
    max_in_flight = 2

    def __init__(
        self,
        model: Model,
        slots: int,
        step: Step,
        device: Device,
        selection_reason: str,
        config: CudaConfig | None = None,
    ) -> None:
        """Allocates memory for `slots` sequences and captures the graphs of every size."""
        if slots < 1:
            raise ValueError(f"slots {slots} is below 1")
        self.slots = slots
        self.workers = 1  # a step takes as long for a few rows as for hundreds, so splitting them gains nothing
        self.selection_reason = f"{selection_reason} (int8)" if step.arithmetic == "int8" else selection_reason
        self._config = config or CudaConfig()
        self._model = model.config
        self._device = device
        self._step = step
        fitting = [s for s in self._config.sizes if s * model.config.vocabulary_size <= MAX_LOGITS]
        self.sizes = _sizes_for(fitting or [min(self._config.sizes)], slots)
        self.max_rows = self.saturating_rows = self.sizes[-1]
        self.memory = Memory(model.config, slots, self.sizes[-1], step.hidden_size, device.kind)
        self._stops = StopPool(device, self._config.stop_entries)
        step.attach(self.memory, self._stops)
        if step.pointers is None:
            refuse_pointers(model)
        device.synchronize()
        if step.arithmetic == "int8":
            self.numerics_id = int8.numerics_id(model.config)
        else:
            text = f"{self.name} {VERSION} {step.description} {device.description}"
            self.numerics_id = hashlib.sha256(text.encode()).hexdigest()[:16]
        # What the host keeps of each slot's row, by slot. Everything else is on the device.
        self._held = np.zeros(slots, dtype=bool)
        self._forced: list[NDArray[np.int32]] = [_NO_TOKENS] * slots
        self._stop_bases = np.full(slots, -1, dtype=np.int64)
        self._forced_at = np.zeros(slots, dtype=np.int64)
        self._forced_left = np.zeros(slots, dtype=np.int64)
        self._plain = np.ones(slots, dtype=bool)
        self._requested = np.full(slots, -1, dtype=np.int64)
        self._admitted: dict[int, _Admitted] = {}
        self._programs: dict[tuple[object, ...], Work] = {}
        self._capture_all()

    def admit(self, slot: int, row: Row, state: NDArray[np.float32] | None) -> None:
        """Puts a sequence into a slot; see the contract. Raises `ValueError` for a value out of bounds."""
        self._check_slot(slot)
        check_row(row, self._model.vocabulary_size)
        if state is not None and state.shape != self._model.state_shape:
            raise ValueError(f"a state of shape {state.shape}; this model's is {self._model.state_shape}")
        self._release_stops(slot)
        base = -1 if row.stops is None else self._add_stops(row.stops.table)
        record = build_record(row, self._model.vocabulary_size, base)
        self._stop_bases[slot] = base
        self._held[slot] = True
        self._forced[slot] = row.forced
        self._forced_at[slot], self._forced_left[slot] = 0, len(row.forced)
        self._plain[slot] = is_plain(record, self._model.vocabulary_size)
        self._requested[slot] = -1 if row.logprobs is None else row.logprobs
        pointers = self._model.pointers
        transcript = None if pointers is None else transcript_of(pointers, row.history.tolist(), row.position)
        self._admitted[slot] = _Admitted(record, None if state is None else state.astype(np.float32), transcript)

    def release(self, slot: int) -> None:
        """Forgets the row in the slot."""
        self._check_slot(slot)
        self._release_stops(slot)
        self._held[slot] = False
        self._forced[slot] = _NO_TOKENS
        self._admitted.pop(slot, None)

    def close(self) -> None:
        """Frees the graphs, the weights and the states."""
        del self._programs, self._step, self.memory, self._stops

    def decode(self, slots: Sequence[int], limits: Sequence[int], steps: int, *, exclusive: bool = True) -> Block:  # noqa: ARG002
        """Runs up to `steps` steps; see the contract. Raises `ValueError` for a value out of bounds."""
        return self.submit(slots, limits, steps)()

    @torch.inference_mode()
    def submit(self, slots: Sequence[int], limits: Sequence[int], steps: int) -> Callable[[], Block]:
        """Submits a call and returns a function that waits for its result.

        Raises `ValueError` for a value out of bounds. An error of the device is raised by the returned function.
        """
        which, row_limits = self._checked(slots, limits, steps)
        self._write_admitted()
        rows = self._rows_for(len(which))
        requested = [(int(i), int(self._requested[which[i]])) for i in np.flatnonzero(self._requested[which] >= 0)]
        plain = bool(self._plain[which].all()) and True in self._step.plain_values
        # Logits that log-probabilities need must be read before the buffer of kept logits wraps around.
        chunk = min(steps, rows.logits.shape[0]) if requested else steps
        # Programs first: capturing one overwrites the memory of the call.
        gather, scatter = self._program(rows.size, "gather"), self._program(rows.size, "scatter")
        parts = self._parts(rows.size, steps, chunk, plain=plain)
        self._device.upload(*self._inbox(rows, which, row_limits, steps))
        recorder = Recorder(self._device, rows, requested) if requested else None
        self._device.run(gather)
        for first, work in parts:
            for piece in work:
                self._device.run(piece)
            if recorder is not None:
                recorder.record(first, min(chunk, steps - first))
        self._device.run(scatter)
        outbox = self._device.download(lambda: rows.outbox[: OUTBOX + steps])
        return functools.partial(_block, outbox, recorder, len(which))

    @torch.inference_mode()
    def snapshot(self, slot: int) -> NDArray[np.float32]:
        """Returns a copy of the slot's state after every call submitted so far; see the contract."""
        return self.states([slot])[:, :, 0]

    def snapshots(self, slots: Sequence[int]) -> Sequence[NDArray[np.float32]]:
        """Returns copies of several slots' states, with one wait for all."""
        return list(np.ascontiguousarray(self.states(slots).transpose(2, 0, 1, 3)))

    @torch.inference_mode()
    def states(self, slots: Sequence[int]) -> NDArray[np.float32]:
        """Returns copies of several slots' states, (state tensors, L, slots, H), with one wait for all."""
        for slot in slots:
            self._check_slot(slot)
        self._write_admitted()
        which, H = self._device.upload(np.array(slots, dtype=np.int64)), self._model.hidden_size
        states: NDArray[np.float32] = self._device.download(lambda: self.memory.states[:, :, which, :H]).wait()
        return states.copy()

    def check_health(self) -> None:
        """Raises if the device is lost; see the contract."""
        self._device.synchronize()

    def run(self, work: Work) -> None:
        """For benchmarks: runs `work` on the device after everything submitted so far."""
        self._device.run(work)

    def kept_logits(self, count: int, steps: int) -> NDArray[np.float32]:
        """For tests: the logits (steps, rows, V) of the last call, which had `count` rows and `steps` steps.

        Only the rows that requested log-probabilities have them, and only as many steps as `Rows.logits` holds.
        """
        rows = self._rows_for(count)
        logits: NDArray[np.float32] = self._device.download(lambda: rows.logits[:steps, :count]).wait()
        return logits

    def poison(self) -> None:
        """For tests, between two calls: fills every buffer that a call must write before it reads with NaN."""
        self._device.run(self.memory.poison)
        self._device.run(self._step.poison)

    def _rows_for(self, count: int) -> Rows:
        """The memory of a call of `count` rows: that of the smallest size that holds them."""
        return self.memory.rows(next(size for size in self.sizes if size >= count))

    def _checked(
        self, slots: Sequence[int], limits: Sequence[int], steps: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The slots and limits of a call as arrays (rows,), no limit above `steps`; raises `ValueError`."""
        count = len(slots)
        if not 1 <= count <= self.max_rows or len(limits) != count:
            raise ValueError(f"{count} slots and {len(limits)} limits; a call takes 1 to {self.max_rows} of each")
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"steps {steps} is not between 1 and {MAX_STEPS}")
        which, row_limits = np.array(slots, dtype=np.int64), np.array(limits, dtype=np.int64)
        self._check_slot(int(which.min()))
        self._check_slot(int(which.max()))
        if not self._held[which].all():
            raise ValueError(f"slot {which[~self._held[which]][0]} holds no sequence")
        ordered = np.sort(which)
        if (twice := ordered[1:][ordered[1:] == ordered[:-1]]).size:
            raise ValueError(f"slot {twice[0]} is given twice")
        if row_limits.min() < 0:
            raise ValueError(f"limit {row_limits.min()} is below 0")
        return which, np.minimum(row_limits, steps)

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not between 0 and {self.slots - 1}")

    def _inbox(
        self, rows: Rows, slots: NDArray[np.int64], limits: NDArray[np.int64], steps: int
    ) -> tuple[NDArray[np.int32], torch.Tensor]:
        """Returns the call's inbox and the memory to copy it to, and advances the rows' prompts."""
        left = self._forced_left[slots]
        longest = int(min(steps, left.max()))
        inbox = np.zeros((INBOX + longest, rows.size), dtype=np.int32)
        inbox[SLOT] = self.memory.empty
        inbox[SLOT, : len(slots)], inbox[LIMIT, : len(slots)], inbox[FORCED, : len(slots)] = slots, limits, left
        for i in np.flatnonzero(left):
            at, taken = self._forced_at[slots[i]], min(left[i], limits[i])
            inbox[INBOX : INBOX + taken, i] = self._forced[slots[i]][at : at + taken]
        taken = np.minimum(left, limits)
        self._forced_at[slots] += taken
        self._forced_left[slots] -= taken
        return inbox, rows.inbox[: len(inbox)]

    def _parts(self, size: int, steps: int, chunk: int, *, plain: bool) -> list[tuple[int, list[Work]]]:
        """Splits a call into parts of `chunk` steps: (first step, programs that run the part)."""
        parts = []
        for first in range(0, steps, chunk):
            works, done, end = [], first, min(first + chunk, steps)
            while done < end:
                piece = next(piece for piece in self._config.pieces if piece <= end - done)
                works.append(self._program(size, "steps", piece, done % 2, plain))
                done += piece
            parts.append((first, works))
        return parts

    def _write_admitted(self) -> None:
        """Writes the rows admitted since the last call into their slots, all at once."""
        if not self._admitted:
            return
        admitted, memory = self._admitted, self.memory
        records = {slot: row.record for slot, row in admitted.items()}
        self._write(memory.integers, {slot: record.integers for slot, record in records.items()})
        self._write(memory.reals, {slot: record.reals for slot, record in records.items()})
        self._write(memory.seen, {slot: r.seen for slot, r in records.items() if r.seen is not None})
        self._write(memory.bias, {slot: r.bias for slot, r in records.items() if r.bias is not None})
        self._write(memory.masks, {slot: r.masks for slot, r in records.items() if r.masks is not None})
        self._write_transcripts({slot: row.transcript for slot, row in admitted.items() if row.transcript is not None})
        # The padding too: if the slot's last state held NaN, its padding does as well.
        all_slots = self._device.upload(np.array(list(admitted), dtype=np.int64))
        self._device.run(lambda: _discard(memory.states.index_fill_(2, all_slots, 0.0)))
        given = {slot: row.state for slot, row in admitted.items() if row.state is not None}
        if given:
            where = self._device.upload(np.array(list(given), dtype=np.int64))
            states = self._device.upload(np.stack(list(given.values()), axis=2))
            H = self._model.hidden_size
            self._device.run(lambda: _discard(memory.states[..., :H].index_copy_(2, where, states)))
        self._admitted = {}  # last, so that a failure above leaves them to be written again

    def _write_transcripts(self, transcripts: dict[int, Transcript]) -> None:
        memory = self._step.pointers
        if memory is not None:
            self._write(memory.tokens, {slot: transcript.tokens for slot, transcript in transcripts.items()})
            self._write(memory.places, {slot: transcript.places for slot, transcript in transcripts.items()})
            self._write(memory.bars, {slot: transcript.bars for slot, transcript in transcripts.items()})
            self._write(memory.states, {slot: transcript.state for slot, transcript in transcripts.items()})

    def _write(self, target: torch.Tensor, values: dict[int, NDArray[np.generic]]) -> None:
        if values:
            where = self._device.upload(np.array(list(values), dtype=np.int64))
            rows = self._device.upload(np.stack(list(values.values())))
            self._device.run(lambda: _discard(target.index_copy_(0, where, rows)))

    def _add_stops(self, table: NDArray[np.int32]) -> int:
        """Puts a table into the pool and returns its base. If the pool grew, the graphs are captured again."""
        before = self._stops.entries
        base = self._stops.add(table)
        if self._stops.entries is not before:  # the graphs read the old array
            self._device.synchronize()
            self._programs.clear()
        return base

    def _release_stops(self, slot: int) -> None:
        if self._stop_bases[slot] >= 0:
            self._stops.release(int(self._stop_bases[slot]))
            self._stop_bases[slot] = -1

    def _program(self, size: int, what: str, *key: int) -> Work:
        """Returns the program of one part of a call, captured now if it has not been before."""
        found = self._programs.get((size, what, *key))
        if found is None:
            rows = self.memory.rows(size)
            self._device.upload(np.array([[self.memory.empty], [0], [0]], dtype=np.int32), rows.inbox[:INBOX])
            # Capturing also runs the work once.
            self._device.run(functools.partial(self._gather, rows))
            works: dict[str, Callable[..., None]] = {
                "gather": self._gather,
                "scatter": self.memory.scatter,
                "steps": self._take_steps,
            }
            found = self._programs[size, what, *key] = self._device.capture(functools.partial(works[what], rows, *key))
        return found

    def _gather(self, rows: Rows) -> None:
        self.memory.gather(rows)
        self._step.begin(rows)

    def _take_steps(self, rows: Rows, steps: int, parity: int, plain: int) -> None:
        for k in range(steps):
            self._step.step(rows, (parity + k) % 2, plain=bool(plain))

    @torch.inference_mode()
    def _capture_all(self) -> None:
        """Captures the graphs of every size, so that no call waits for one."""
        for size in self.sizes:
            for plain in self._step.plain_values:
                every = 2 * self._config.pieces[0] - 1
                self._parts(size, every, every, plain=plain)
                if self.memory.rows(size).logits.shape[0] == 1:  # with log-probabilities, steps run one by one
                    self._parts(size, 2, 1, plain=plain)
            self._program(size, "gather")
            self._program(size, "scatter")
        self._device.synchronize()


def _sizes_for(sizes: Sequence[int], rows: int) -> list[int]:
    """The sizes up to the first that holds `rows` rows."""
    ordered = sorted(sizes)
    return ordered[: next((i for i, size in enumerate(ordered) if size >= rows), len(ordered) - 1) + 1]


def _block(outbox: Pending, recorder: Recorder | None, rows: int) -> Block:
    """Waits for a submitted call and returns its result."""
    made = outbox.wait()[:, :rows].astype(np.int32)
    logprobs = None if recorder is None else recorder.result(rows)
    return Block(made[OUTBOX:], made[TAKEN], made[STATUS], logprobs)


def _discard(_: object) -> None:
    """Drops a value, so that a lambda returns None."""
