"""A backend of plain arithmetic, with one call at a time or two, and a sequence decoded alone for comparison."""

from __future__ import annotations

import dataclasses

import numpy as np

from gruve.decode import Block, Row, RowStatus
from gruve.decode.stops import MATCHED
from gruve.engine.sequence import Admission, FinishReason
from gruve.model.sampling import SamplingParameters, philox

PATIENCE_S = 20.0


class FakeBackend:
    """Tokens and states from plain arithmetic: a state is a hash of the consumed tokens, a token a hash of state and
    seed.

    `hook` is called with the slots of each call before it computes.
    """

    name, selection_reason, numerics_id, max_rows = "fake", "a test", "fake", 64
    saturating_rows, nice = 16, 0

    def __init__(self, slots: int = 8, vocabulary_size: int = 13, workers: int = 1) -> None:
        self.slots, self.V, self.workers = slots, vocabulary_size, workers
        self.in_use: set[int] = set()
        self.beside: int = 0
        """Calls that began while another was under way."""
        self.rows: dict[int, dict] = {}
        self.calls: list[tuple[list[int], list[int], int]] = []
        self.hook = lambda slots: None

    def admit(self, slot, row: Row, state):
        assert slot not in self.rows, "a slot that is in use was given away"
        assert slot not in self.in_use, "a slot was filled while a call had it"
        self.rows[slot] = {
            "row": row,
            "state": 7 if state is None else int(state.flat[0]),
            "pending": int(row.history[-1]),
            "position": row.position,
            "generated": row.generated,
            "forced": row.forced.tolist(),
            "stop": row.stop_state,
            "reason": RowStatus.RUNNING,
        }

    def decode(self, slots, limits, steps, *, exclusive=True):
        self.calls.append((list(slots), list(limits), steps))
        assert len(set(slots)) == len(slots) <= self.max_rows
        assert not self.in_use & set(slots), "two calls had the same slot"
        assert not (exclusive and self.in_use), "a call that takes the whole machine began beside another"
        self.beside += bool(self.in_use)
        self.in_use |= set(slots)
        try:
            self.hook(slots)
            return self._decode(slots, limits, steps)
        finally:
            self.in_use -= set(slots)

    def _decode(self, slots, limits, steps):
        tokens = np.full((steps, len(slots)), -1, dtype=np.int32)
        taken, statuses = np.zeros(len(slots), dtype=np.int32), np.zeros(len(slots), dtype=np.int32)
        for i, slot in enumerate(slots):
            at = self.rows[slot]
            while taken[i] < min(limits[i], steps) and at["reason"] is RowStatus.RUNNING:
                tokens[taken[i], i], at["reason"] = self._step(at)
                taken[i] += 1
            statuses[i] = at["reason"]
        return Block(tokens, taken, statuses, None)

    def _step(self, at):
        row = at["row"]
        at["state"] = (at["state"] * 31 + at["pending"] + 1) % 1_000_003
        at["position"] += 1
        at["pending"] = at["forced"][0] if at["forced"] else self._draw(at)
        if at["forced"]:
            del at["forced"][0]
        else:
            at["generated"] += 1
            entry = 0 if row.stops is None else int(row.stops.table[at["stop"], at["pending"]])
            at["stop"] = entry & (MATCHED - 1)
            if at["pending"] == row.end_id and not row.ignore_eos and at["generated"] >= row.min_tokens:
                return at["pending"], RowStatus.END_OF_SEQUENCE
            if entry & MATCHED and at["generated"] >= row.min_tokens:
                return at["pending"], RowStatus.STOP
        full = at["generated"] >= row.max_tokens and not at["forced"]
        return at["pending"], RowStatus.LENGTH if full else RowStatus.RUNNING

    def _draw(self, at):
        return philox(at["state"], at["row"].sampling.seed & 0xFFFFFFFF, at["position"], 0)[0] % self.V

    def snapshot(self, slot):
        assert slot not in self.in_use
        return np.full((1, 1, 1), self.rows[slot]["state"], dtype=np.float32)

    def release(self, slot):
        assert slot not in self.in_use
        del self.rows[slot]

    def close(self):
        pass


class AheadBackend(FakeBackend):
    """Accepts one more call before the earlier one has returned. It computes when a call is submitted."""

    max_in_flight = 2

    def __init__(self, slots: int = 8) -> None:
        super().__init__(slots)
        self.submitted, self.continued, self.read_together = [], 0, 0

    def submit(self, slots, limits, steps):
        assert len(self.submitted) < self.max_in_flight
        self.continued += any(set(slots) & set(others) for others in self.submitted)
        self.submitted.append(slots)
        block = self.decode(slots, limits, steps)

        def result():
            assert self.submitted.pop(0) is slots, "results are to be waited for in order"
            return block

        return result

    def check_health(self) -> None:
        pass

    def snapshots(self, slots):
        self.read_together += 1
        return [self.snapshot(slot) for slot in slots]


def admission_of(prompt=(), *, max_tokens=10, seed=1, keep_state=True, **more) -> Admission:
    """The admission of a new sequence. `more` has fields of the admission or of its sampling parameters."""
    names = {field.name for field in dataclasses.fields(SamplingParameters)}
    sampling = SamplingParameters(seed=seed, **{name: more.pop(name) for name in list(more) if name in names})
    return Admission(
        sampling,
        np.zeros(1, dtype=np.int32),
        0,
        np.array(prompt, dtype=np.int32),
        max_tokens,
        keep_state=keep_state,
        **more,
    )


def row_of(admission: Admission, end_id=None) -> Row:
    shared = {field.name for field in dataclasses.fields(Row)} - {"end_id"}
    return Row(end_id=end_id, **{name: getattr(admission, name) for name in shared})


def alone(backend, admission: Admission, end_id=None):
    """Decodes a sequence alone, one step per call: (tokens, the states after 0, 1, ... of them, finish reason)."""
    backend.admit(0, row_of(admission, end_id), admission.state)
    tokens, states, reason = [], [backend.snapshot(0)], RowStatus.RUNNING
    while reason is RowStatus.RUNNING:
        block = backend.decode([0], [1], 1)
        tokens.append(int(block.tokens[0, 0]))
        states.append(backend.snapshot(0))
        reason = RowStatus(int(block.statuses[0]))
    backend.release(0)
    return tokens, states, FinishReason[reason.name]
