"""The decode contract on a GPU: rows stay on the device, a call is a few graphs, and results come when they are ready.

`submit` gives a call to the device and returns; `result` waits for it. Calls are carried out in the order they were
submitted, and so are `admit` and `snapshot` between them: whoever submits the next call before asking for the last
one's result keeps the device busy. A row that froze for good stays frozen, so it does no harm to submit it again
before its end is known. Knows numpy, slots and calls; what a step does is `Step`'s, where it is done `Device`'s.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gruve.decode import Block, Row
from gruve.decode.cuda.device import Device, Pending, Work
from gruve.decode.cuda.logprobs import Recorder
from gruve.decode.cuda.memory import FORCED, INBOX, LIMIT, MAX_STEPS, OUTBOX, REASON, SLOT, TAKEN, Memory, Rows
from gruve.decode.cuda.pool import StopPool
from gruve.decode.cuda.records import Record, check_row, is_plain, record_of
from gruve.errors import ModelBroken
from gruve.model.repository import Model

VERSION = 1
"""Of the arithmetic: a change of any bit of any logit or draw is a new one."""
MOST_LOGITS = 1 << 24
"""Rows times vocabulary of one call at most."""


_NO_TOKENS = np.zeros(0, dtype=np.int32)


def refuse_pointers(model: Model) -> None:
    """Raises `ModelBroken` for a model with pointers, which captured graphs do not compute."""
    if model.config.pointers is not None:
        raise ModelBroken(
            f"model {model.name!r} has pointers; on a GPU, only the modes 'auto' and 'eager' compute them"
        )


class Step(Protocol):
    """What takes a call's rows one step further, all of it on the device and none of it depending on the host."""

    hidden_size: int
    """H as padded for it."""
    description: str
    """Everything about it that its bits may depend on."""
    kinds: tuple[bool, ...]
    """What `plain` may be in `step`; False alone where it makes no difference."""

    def attach(self, memory: Memory, stops: StopPool) -> None:
        """Says where everything lies, before anything else."""

    def begin(self, rows: Rows) -> None:
        """Follows `Memory.gather`."""

    def poison(self) -> None:
        """For checks: fills what a call writes before it reads it with what is no number."""

    def step(self, rows: Rows, parity: int, *, plain: bool) -> None:
        """One step of every active row; `parity` is how many came before in this call, modulo 2.

        `plain` says that every row of the call `is_plain`.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class CudaConfig:
    """How calls are cut into what is captured."""

    sizes: tuple[int, ...] = (64, 256, 1_024, 4_096)
    """Rows of a call, rounded up to one of these."""
    pieces: tuple[int, ...] = (32, 16, 8, 4, 2, 1)
    """Steps of a graph; a call's steps are made of these, the longest first. All even but 1, and 1 among them."""
    stop_entries: int = 1 << 24
    """Of the stop tables in use there is place for so many, 4 bytes each; for more everything is captured anew, while
    streams wait. A row with the most and longest stops has 1,025 times its vocabulary."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Admitted:
    """A row that the device is yet to be told of."""

    record: Record
    state: NDArray[np.float32] | None


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
        """Allocates for `slots` sequences and captures what calls of every size are made of."""
        refuse_pointers(model)
        if slots < 1:
            raise ValueError(f"slots {slots} is below 1")
        self.slots = slots
        self.workers = 1  # a step takes as long for a few rows as for hundreds: splitting them gains nothing
        self.selection_reason = selection_reason
        self._config = config or CudaConfig()
        self._model = model.config
        self._device = device
        self._step = step
        fitting = [s for s in self._config.sizes if s * model.config.vocabulary_size <= MOST_LOGITS]
        self.sizes = _enough(fitting or [min(self._config.sizes)], slots)
        self.max_rows = self.saturating_rows = self.sizes[-1]
        self.memory = Memory(model.config, slots, self.sizes[-1], step.hidden_size, device.kind)
        self._stops = StopPool(device, self._config.stop_entries)
        step.attach(self.memory, self._stops)
        device.settle()
        text = f"{self.name} {VERSION} {step.description} {device.description}"
        self.numerics_id = hashlib.sha256(text.encode()).hexdigest()[:16]
        # What a call must know of its slots' rows, by slot; all else is on the device.
        self._held = np.zeros(slots, dtype=bool)
        self._forced: list[NDArray[np.int32]] = [_NO_TOKENS] * slots
        self._stop_bases = np.full(slots, -1, dtype=np.int64)
        self._forced_at = np.zeros(slots, dtype=np.int64)
        self._forced_left = np.zeros(slots, dtype=np.int64)
        self._plain = np.ones(slots, dtype=bool)
        self._asked = np.full(slots, -1, dtype=np.int64)
        self._admitted: dict[int, _Admitted] = {}
        self._programs: dict[tuple[object, ...], Work] = {}
        self._capture_all()

    def admit(self, slot: int, row: Row, state: NDArray[np.float32] | None) -> None:
        """Puts a sequence into a slot; see the contract. Raises `ValueError` for what is out of bounds."""
        self._check_slot(slot)
        check_row(row, self._model.vocabulary_size)
        shape = (self._model.state_tensors, self._model.num_layers, self._model.hidden_size)
        if state is not None and state.shape != shape:
            raise ValueError(f"a state of shape {state.shape}; this model's is {shape}")
        self._drop_stops(slot)
        base = -1 if row.stops is None else self._add_stops(row.stops.table)
        record = record_of(row, self._model.vocabulary_size, base)
        self._stop_bases[slot] = base
        self._held[slot] = True
        self._forced[slot] = row.forced
        self._forced_at[slot], self._forced_left[slot] = 0, len(row.forced)
        self._plain[slot] = is_plain(record, self._model.vocabulary_size)
        self._asked[slot] = -1 if row.logprobs is None else row.logprobs
        self._admitted[slot] = _Admitted(record, None if state is None else state.astype(np.float32))

    def release(self, slot: int) -> None:
        """Forgets the row in the slot."""
        self._check_slot(slot)
        self._drop_stops(slot)
        self._held[slot] = False
        self._forced[slot] = _NO_TOKENS
        self._admitted.pop(slot, None)

    def decode(self, slots: Sequence[int], limits: Sequence[int], steps: int, *, exclusive: bool = True) -> Block:  # noqa: ARG002
        """Runs a block of steps; see the contract. Raises `ValueError` for what is out of bounds."""
        return self.submit(slots, limits, steps)()

    @torch.inference_mode()
    def submit(self, slots: Sequence[int], limits: Sequence[int], steps: int) -> Callable[[], Block]:
        """Gives a call to the device; what is returned waits for what it has made.

        Raises `ValueError` for what is out of bounds; what goes wrong on the device is raised by who waits.
        """
        which, most = self._checked(slots, limits, steps)
        self._tell_admitted()
        rows = self.memory.rows(next(size for size in self.sizes if size >= len(which)))
        asked = [(int(i), int(self._asked[which[i]])) for i in np.flatnonzero(self._asked[which] >= 0)]
        plain = bool(self._plain[which].all()) and True in self._step.kinds
        # Steps whose logits are wanted may not wrap around what is kept of them.
        together = min(steps, rows.logits.shape[0]) if asked else steps
        # All programs first: one that has to be captured now must find nobody there.
        gather, scatter = self._program(rows.size, "gather"), self._program(rows.size, "scatter")
        parts = self._parts(rows.size, steps, together, plain=plain)
        self._device.put(*self._inbox(rows, which, most, steps))
        recorder = Recorder(self._device, rows, asked) if asked else None
        self._device.run(gather)
        for first, work in parts:
            for piece in work:
                self._device.run(piece)
            if recorder is not None:
                recorder.record(first, min(together, steps - first))
        self._device.run(scatter)
        outbox = self._device.take(lambda: rows.outbox[: OUTBOX + steps])
        return functools.partial(_block, outbox, recorder, len(which))

    @torch.inference_mode()
    def snapshot(self, slot: int) -> NDArray[np.float32]:
        """A copy of the slot's state after every call submitted so far; see the contract."""
        return self.states([slot])[:, :, 0]

    def snapshots(self, slots: Sequence[int]) -> Sequence[NDArray[np.float32]]:
        """Copies of several slots' states, for one wait."""
        return list(np.ascontiguousarray(self.states(slots).transpose(2, 0, 1, 3)))

    @torch.inference_mode()
    def states(self, slots: Sequence[int]) -> NDArray[np.float32]:
        """Copies of several slots' states, (state tensors, L, slots, H), for one wait."""
        for slot in slots:
            self._check_slot(slot)
        self._tell_admitted()
        which, H = self._device.put(np.array(slots, dtype=np.int64)), self._model.hidden_size
        states: NDArray[np.float32] = self._device.take(lambda: self.memory.states[:, :, which, :H]).wait()
        return states.copy()

    def check_health(self) -> None:
        """Raises where the device is lost; see the contract."""
        self._device.settle()

    def run(self, work: Work) -> None:
        """For measurements: does `work` on the device after everything submitted so far."""
        self._device.run(work)

    def kept_logits(self, count: int, steps: int) -> NDArray[np.float32]:
        """For checks: the logits (steps, rows, V) of the last call, which had so many rows and steps; of those that
        asked for log-probabilities, and of no more steps than are kept."""
        rows = self.memory.rows(next(size for size in self.sizes if size >= count))
        logits: NDArray[np.float32] = self._device.take(lambda: rows.logits[:steps, :count]).wait()
        return logits

    def poison(self) -> None:
        """For checks, between two calls: fills what a call writes before it reads it with what is no number."""
        self._device.run(self.memory.poison)
        self._device.run(self._step.poison)

    def _checked(
        self, slots: Sequence[int], limits: Sequence[int], steps: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        count = len(slots)
        if not 1 <= count <= self.max_rows or len(limits) != count:
            raise ValueError(f"{count} slots and {len(limits)} limits; a call takes 1 to {self.max_rows} of each")
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"steps {steps} is not between 1 and {MAX_STEPS}")
        which, most = np.array(slots, dtype=np.int64), np.array(limits, dtype=np.int64)
        self._check_slot(int(which.min()))
        self._check_slot(int(which.max()))
        if not self._held[which].all():
            raise ValueError(f"slot {which[~self._held[which]][0]} holds no sequence")
        ordered = np.sort(which)
        if (twice := ordered[1:][ordered[1:] == ordered[:-1]]).size:
            raise ValueError(f"slot {twice[0]} is given twice")
        if most.min() < 0:
            raise ValueError(f"limit {most.min()} is below 0")
        return which, np.minimum(most, steps)

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not between 0 and {self.slots - 1}")

    def _inbox(
        self, rows: Rows, slots: NDArray[np.int64], limits: NDArray[np.int64], steps: int
    ) -> tuple[NDArray[np.int32], torch.Tensor]:
        """What the call is told, and where; moves the prompts along, which no draw can change."""
        left = self._forced_left[slots]
        most = int(min(steps, left.max()))
        inbox = np.zeros((INBOX + most, rows.size), dtype=np.int32)
        inbox[SLOT] = self.memory.empty
        inbox[SLOT, : len(slots)], inbox[LIMIT, : len(slots)], inbox[FORCED, : len(slots)] = slots, limits, left
        for i in np.flatnonzero(left):
            at, taken = self._forced_at[slots[i]], min(left[i], limits[i])
            inbox[INBOX : INBOX + taken, i] = self._forced[slots[i]][at : at + taken]
        taken = np.minimum(left, limits)
        self._forced_at[slots] += taken
        self._forced_left[slots] -= taken
        return inbox, rows.inbox[: len(inbox)]

    def _parts(self, size: int, steps: int, together: int, *, plain: bool) -> list[tuple[int, list[Work]]]:
        """(first step, the works that take it and those after it) of every `together` steps."""
        parts = []
        for first in range(0, steps, together):
            works, done, end = [], first, min(first + together, steps)
            while done < end:
                piece = next(piece for piece in self._config.pieces if piece <= end - done)
                works.append(self._program(size, "steps", piece, done % 2, plain))
                done += piece
            parts.append((first, works))
        return parts

    def _tell_admitted(self) -> None:
        """Writes the rows admitted since the last call into their slots, all at once."""
        if not self._admitted:
            return
        admitted, memory = self._admitted, self.memory
        records = {slot: told.record for slot, told in admitted.items()}
        self._write(memory.integers, {slot: record.integers for slot, record in records.items()})
        self._write(memory.reals, {slot: record.reals for slot, record in records.items()})
        self._write(memory.seen, {slot: r.seen for slot, r in records.items() if r.seen is not None})
        self._write(memory.bias, {slot: r.bias for slot, r in records.items() if r.bias is not None})
        self._write(memory.masks, {slot: r.masks for slot, r in records.items() if r.masks is not None})
        # The padding as well: a row before whose state was no number left none there either.
        everybody = self._device.put(np.array(list(admitted), dtype=np.int64))
        self._device.run(lambda: _nothing(memory.states.index_fill_(2, everybody, 0.0)))
        given = {slot: told.state for slot, told in admitted.items() if told.state is not None}
        if given:
            where = self._device.put(np.array(list(given), dtype=np.int64))
            states = self._device.put(np.stack(list(given.values()), axis=2))
            H = self._model.hidden_size
            self._device.run(lambda: _nothing(memory.states[..., :H].index_copy_(2, where, states)))
        self._admitted = {}  # only now: what raises halfway is done again

    def _write(self, target: torch.Tensor, values: dict[int, NDArray[np.generic]]) -> None:
        if values:
            where = self._device.put(np.array(list(values), dtype=np.int64))
            rows = self._device.put(np.stack(list(values.values())))
            self._device.run(lambda: _nothing(target.index_copy_(0, where, rows)))

    def _add_stops(self, table: NDArray[np.int32]) -> int:
        before = self._stops.entries
        base = self._stops.add(table)
        if self._stops.entries is not before:  # what was captured reads where the tables no longer are
            self._device.settle()
            self._programs.clear()
        return base

    def _drop_stops(self, slot: int) -> None:
        if self._stop_bases[slot] >= 0:
            self._stops.drop(int(self._stop_bases[slot]))
            self._stop_bases[slot] = -1

    def _program(self, size: int, what: str, *key: int) -> Work:
        """What does a part of a call; captured at its first use, before the call begins, if not at the start."""
        found = self._programs.get((size, what, *key))
        if found is None:
            rows = self.memory.rows(size)
            self._device.put(np.array([[self.memory.empty], [0], [0]], dtype=np.int32), rows.inbox[:INBOX])
            # Capturing does the work as well.
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
        for size in self.sizes:
            for plain in self._step.kinds:
                most = 2 * self._config.pieces[0] - 1
                self._parts(size, most, most, plain=plain)
                if self.memory.rows(size).logits.shape[0] == 1:  # they are taken one by one then
                    self._parts(size, 2, 1, plain=plain)
            self._program(size, "gather")
            self._program(size, "scatter")
        self._device.settle()


def _enough(sizes: Sequence[int], rows: int) -> list[int]:
    """The sizes up to the first that has place for all rows."""
    ordered = sorted(sizes)
    return ordered[: next((i for i, size in enumerate(ordered) if size >= rows), len(ordered) - 1) + 1]


def _block(outbox: Pending, recorder: Recorder | None, rows: int) -> Block:
    """Waits for a call that was submitted."""
    made = outbox.wait()[:, :rows].astype(np.int32)
    logprobs = None if recorder is None else recorder.result(rows)
    return Block(made[OUTBOX:], made[TAKEN], made[REASON], logprobs)


def _nothing(_: object) -> None:
    """For what gives something that nobody wants."""
