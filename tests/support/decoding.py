"""What the tests of the engine share: a backend that is only arithmetic, sequences alone, and an ear for an engine."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading

import numpy as np

from gruve.decode import Block, Reason, Row
from gruve.decode.stops import MATCHED
from gruve.engine.engine import Engine, EngineConfig
from gruve.engine.sequence import Admission, CallReport, FinishReason
from gruve.model.sampling import SamplingParameters, philox

PATIENCE_S = 20.0


class FakeBackend:
    """Tokens and states by arithmetic: the state is a hash of what was consumed, the token a hash of state and seed."""

    name, why, numerics_id, most_rows = "fake", "a test", "fake", 64
    enough_rows, nice = 16, 0

    def __init__(self, slots: int = 8, vocabulary_size: int = 13, lanes: int = 1) -> None:
        self.slots, self.V, self.lanes = slots, vocabulary_size, lanes
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
            "drawn": row.drawn,
            "forced": row.forced.tolist(),
            "stop": row.stop_state,
            "reason": Reason.RUNNING,
        }

    def decode(self, slots, limits, steps, *, alone=False):
        self.calls.append((list(slots), list(limits), steps))
        assert len(set(slots)) == len(slots) <= self.most_rows
        assert not self.in_use & set(slots), "two calls had the same slot"
        assert alone or not self.in_use, "a call that takes the whole machine began beside another"
        self.beside += bool(self.in_use)
        self.in_use |= set(slots)
        try:
            self.hook(slots)
            return self._decode(slots, limits, steps)
        finally:
            self.in_use -= set(slots)

    def _decode(self, slots, limits, steps):
        tokens = np.full((steps, len(slots)), -1, dtype=np.int32)
        taken, reasons = np.zeros(len(slots), dtype=np.int32), np.zeros(len(slots), dtype=np.int32)
        for i, slot in enumerate(slots):
            at = self.rows[slot]
            while taken[i] < min(limits[i], steps) and at["reason"] is Reason.RUNNING:
                tokens[taken[i], i], at["reason"] = self._step(at)
                taken[i] += 1
            reasons[i] = at["reason"]
        return Block(tokens, taken, reasons, None)

    def _step(self, at):
        row = at["row"]
        at["state"] = (at["state"] * 31 + at["pending"] + 1) % 1_000_003
        at["position"] += 1
        at["pending"] = at["forced"][0] if at["forced"] else self._draw(at)
        if at["forced"]:
            del at["forced"][0]
        else:
            at["drawn"] += 1
            entry = 0 if row.stops is None else int(row.stops.table[at["stop"], at["pending"]])
            at["stop"] = entry & (MATCHED - 1)
            if at["pending"] == row.end_id and not row.ignore_eos and at["drawn"] >= row.min_tokens:
                return at["pending"], Reason.END_OF_SEQUENCE
            if entry & MATCHED and at["drawn"] >= row.min_tokens:
                return at["pending"], Reason.STOP
        full = at["drawn"] >= row.max_tokens and not at["forced"]
        return at["pending"], Reason.LENGTH if full else Reason.RUNNING

    def _draw(self, at):
        return philox(at["state"], at["row"].sampling.seed & 0xFFFFFFFF, at["position"], 0)[0] % self.V

    def snapshot(self, slot):
        assert slot not in self.in_use
        return np.full((1, 1, 1), self.rows[slot]["state"], dtype=np.float32)

    def release(self, slot):
        assert slot not in self.in_use
        del self.rows[slot]


class AheadBackend(FakeBackend):
    """Takes one call before the earlier one has returned, and has done it by then as far as anybody can see."""

    ahead = 1

    def __init__(self, slots: int = 8) -> None:
        super().__init__(slots)
        self.under_way, self.went_on, self.read_together = [], 0, 0

    def submit(self, slots, limits, steps):
        assert len(self.under_way) <= self.ahead
        self.went_on += any(set(slots) & set(others) for others in self.under_way)
        self.under_way.append(slots)
        block = self.decode(slots, limits, steps)

        def result():
            assert self.under_way.pop(0) is slots, "results are asked for in order"
            return block

        return result

    def check(self) -> None:
        pass

    def snapshots(self, slots):
        self.read_together += 1
        return [self.snapshot(slot) for slot in slots]


def admission_of(prompt=(), *, max_tokens=10, seed=1, keep_state=True, **more) -> Admission:
    """A new sequence; `more` are further fields of the admission or of its sampling parameters."""
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
    shared = {field.name for field in dataclasses.fields(Row)} - {"end_id", "drawn"}
    return Row(end_id=end_id, drawn=admission.generated, **{name: getattr(admission, name) for name in shared})


def alone(backend, admission: Admission, end_id=None):
    """(tokens, the state after so many of them, finish reason) of a sequence that nobody disturbs, one step a call."""
    backend.admit(0, row_of(admission, end_id), admission.state)
    tokens, states, reason = [], [backend.snapshot(0)], Reason.RUNNING
    while reason is Reason.RUNNING:
        block = backend.decode([0], [1], 1)
        tokens.append(int(block.tokens[0, 0]))
        states.append(backend.snapshot(0))
        reason = Reason(int(block.reasons[0]))
    backend.release(0)
    return tokens, states, FinishReason[reason.name]


class Ear:
    """Hears what an engine delivers and puts it together again for each sequence."""

    def __init__(self, then=lambda call: None) -> None:
        self.calls: list[CallReport] = []
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list] = {}
        self.last: dict[int, object] = {}
        self.changed = threading.Condition()
        self._then = then

    def __call__(self, call: CallReport) -> None:
        with self.changed:
            self.calls.append(call)
            for progress in call.progress:
                assert progress.sequence_id not in self.last, "told of a sequence that had ended"
                self.tokens.setdefault(progress.sequence_id, []).extend(progress.tokens)
                self.logprobs.setdefault(progress.sequence_id, []).extend(progress.logprobs)
                if progress.ended:
                    self.last[progress.sequence_id] = progress
            self.changed.notify_all()
        self._then(call)

    def wait(self, holds) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: holds(self), PATIENCE_S), "the engine never came so far"

    def end(self, sequence_id):
        """The last progress of a sequence, once it has come."""
        self.wait(lambda ear: sequence_id in ear.last)
        return self.last[sequence_id]

    def begun(self, sequence_id):
        self.wait(lambda ear: ear.tokens.get(sequence_id))


@contextlib.contextmanager
def engine_of(backend, ear=None, *, end_id=None, clock=None, message_gap_s=0.0, **config):
    ear = ear or Ear()
    more = {} if clock is None else {"clock": clock}
    engine = Engine(backend, ear, EngineConfig(**config), end_id=end_id, **more)
    engine.message_gap_s = message_gap_s
    engine.start()
    try:
        yield engine, ear
    finally:
        engine.close()


def random_schedule(seed, backend_of, V, *, end_id, sequences=24, steps_ms=1.0, message_gap_s=0.0):
    """Decodes sequences that join, leave, starve and are paced at random, and compares each with itself alone."""
    chance = random.Random(seed)
    waiting = [
        (
            admission_of(
                [chance.randrange(V) for _ in range(chance.choice([0, 1, 3, 17, 60]))],
                max_tokens=chance.choice([1, 2, 9, 30, 300]),
                seed=chance.randrange(1 << 64),
                temperature=chance.choice([0.0, 1.0, 1.5]),
                repetition_penalty=chance.choice([1.0, 1.3]),
                top_p=chance.choice([1.0, 0.8]),
                min_tokens=chance.choice([0, 1]),
                ignore_eos=chance.random() < 0.3,
                max_tokens_per_second=chance.choice([None, None, None, 5_000.0]),
                snapshot_tokens=chance.choice([None, 70, 200]),
            ),
            chance.choice([None, None, 0, 2]),
        )
        for _ in range(sequences)
    ]
    admitted, cancelled = {}, set()
    started = threading.Event()

    def steer(call):
        """On the engine's thread, so that the schedule is the seed's: joins, leaves and grants between two calls."""
        started.wait()
        for _ in range(chance.choice([0, 0, 1, 4])):
            if waiting:
                admission, credit = waiting.pop()
                admitted[engine.admit(admission, credit)] = admission
        for id_ in list(admitted):  # another thread is still admitting
            engine.grant(id_, chance.choice([0, 1, 3]))
        if chance.random() < 0.1:
            cancelled.add(victim := chance.choice(list(admitted)))
            engine.cancel(victim)

    timing = {"max_call_ms": steps_ms, "message_gap_s": message_gap_s}
    with engine_of(backend_of(), Ear(steer), end_id=end_id, **timing) as (engine, ear):
        first = admission_of([1, 2], max_tokens=40)
        admitted[engine.admit(first)] = first
        started.set()
        while waiting or len(ear.last) < len(admitted):
            if waiting and len(ear.last) == len(admitted):  # nobody is left who could steer
                admission, _ = waiting.pop()
                admitted[engine.admit(admission)] = admission
            before = len(ear.calls)
            for id_ in list(admitted):
                engine.grant(id_, 1)
            ear.wait(lambda ear, before=before: len(ear.calls) > before or len(ear.last) == len(admitted))
    solo = backend_of()
    for id_, admission in admitted.items():
        tokens, states, reason = alone(solo, admission, end_id)
        got, last = ear.tokens[id_], ear.last[id_]
        assert got == tokens[: len(got)]
        state = states[0] if last.state is None and not got else last.state
        assert state.tobytes() == states[len(got)].tobytes()
        at = 0
        for progress in (p for call in ear.calls for p in call.progress if p.sequence_id == id_):
            at += len(progress.tokens)
            assert progress.state is None or progress.state.tobytes() == states[at].tobytes()
        assert (last.finish_reason, len(got)) == (reason, len(tokens)) or (
            id_ in cancelled and last.finish_reason is FinishReason.CANCELLED
        )
