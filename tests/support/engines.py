"""An engine with a recorder of its reports, and random schedules that are checked for exactness."""

from __future__ import annotations

import contextlib
import random
import threading

from decoding import PATIENCE_S, admission_of, alone
from gruve.engine.engine import Engine, EngineConfig
from gruve.engine.sequence import Admission, CallReport, FinishReason


class Clock:
    """A clock that stands still until the test sets `now`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def wake(engine):
    """Makes an idle engine read its clock again."""
    engine.grant(0, 1)


class Recorder:
    """Records the reports of an engine and joins the tokens of each sequence."""

    def __init__(self, then=lambda report: None) -> None:
        """`then` is called with each report, on the engine's thread."""
        self.calls: list[CallReport] = []
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list] = {}
        self.last: dict[int, object] = {}
        self.changed = threading.Condition()
        self._then = then

    def __call__(self, report: CallReport) -> None:
        with self.changed:
            self.calls.append(report)
            for progress in report.progress:
                assert progress.sequence_id not in self.last, "progress of a sequence that had ended"
                self.tokens.setdefault(progress.sequence_id, []).extend(progress.tokens)
                self.logprobs.setdefault(progress.sequence_id, []).extend(progress.logprobs)
                if progress.ended:
                    self.last[progress.sequence_id] = progress
            self.changed.notify_all()
        self._then(report)

    def wait(self, holds) -> None:
        """Waits until `holds(self)` is true."""
        with self.changed:
            assert self.changed.wait_for(lambda: holds(self), PATIENCE_S), "the engine did not get there in time"

    def wait_for_end(self, sequence_id):
        """Waits for the last progress of a sequence and returns it."""
        self.wait(lambda recorder: sequence_id in recorder.last)
        return self.last[sequence_id]

    def wait_for_tokens(self, sequence_id):
        """Waits for a sequence's first token."""
        self.wait(lambda recorder: recorder.tokens.get(sequence_id))


def delivered(recorder, sequence):
    """The number of tokens in each progress of a sequence."""
    return [len(p.tokens) for call in recorder.calls for p in call.progress if p.sequence_id == sequence]


@contextlib.contextmanager
def engine_of(backend, recorder=None, *, end_id=None, clock=None, message_gap_s=0.0, **config):
    """A started engine and the recorder of its reports. The engine is closed at the end."""
    recorder = recorder or Recorder()
    more = {} if clock is None else {"clock": clock}
    engine = Engine(backend, recorder, EngineConfig(**config), end_id=end_id, **more)
    engine.message_gap_s = message_gap_s
    engine.start()
    try:
        yield engine, recorder
    finally:
        engine.close()


def random_schedule(seed, backend_of, V, *, end_id, sequences=24, steps_ms=1.0, message_gap_s=0.0):
    """Decodes sequences that join, leave, park and are paced at random.

    Compares each with the same sequence decoded alone.
    """
    chance = random.Random(seed)
    waiting = [_random_admission(chance, V) for _ in range(sequences)]
    admitted, cancelled = {}, set()
    started = threading.Event()

    def steer(report):
        """Joins, leaves and grants between two calls; on the engine's thread, so that `seed` fixes the schedule."""
        started.wait()
        for _ in range(chance.choice([0, 0, 1, 4])):
            if waiting:
                admission, credit = waiting.pop()
                admitted[engine.admit(admission, credit)] = admission
        for id_ in list(admitted):  # a copy: the test's thread admits as well
            engine.grant(id_, chance.choice([0, 1, 3]))
            engine.acknowledge(id_, chance.choice([0, 1, 20]))
        if chance.random() < 0.1:
            cancelled.add(victim := chance.choice(list(admitted)))
            engine.cancel(victim)

    timing = {"max_call_ms": steps_ms, "message_gap_s": message_gap_s}
    with engine_of(backend_of(), Recorder(steer), end_id=end_id, **timing) as (engine, recorder):
        first = admission_of([1, 2], max_tokens=40)
        admitted[engine.admit(first)] = first
        started.set()
        while waiting or len(recorder.last) < len(admitted):
            if waiting and len(recorder.last) == len(admitted):  # no call follows in which `steer` could admit
                admission, _ = waiting.pop()
                admitted[engine.admit(admission)] = admission
            before = len(recorder.calls)
            for id_ in list(admitted):
                engine.grant(id_, 1)
                engine.acknowledge(id_, 1)
            recorder.wait(lambda r, before=before: len(r.calls) > before or len(r.last) == len(admitted))
    solo = backend_of()
    for id_, admission in admitted.items():
        _check_exact(recorder, id_, alone(solo, admission, end_id), id_ in cancelled)


def _random_admission(chance, V) -> tuple[Admission, int | None]:
    """An admission and its credit."""
    admission = admission_of(
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
        window=chance.choice([None, None, 1, 40]),
    )
    return admission, chance.choice([None, None, 0, 2])


def _check_exact(recorder, id_, expected, cancelled):
    """Compares tokens, every delivered state and the finish reason with those of the sequence alone."""
    tokens, states, reason = expected
    got, last = recorder.tokens[id_], recorder.last[id_]
    assert got == tokens[: len(got)]
    state = states[0] if last.state is None and not got else last.state
    assert state.tobytes() == states[len(got)].tobytes()
    at = 0
    for progress in (p for call in recorder.calls for p in call.progress if p.sequence_id == id_):
        at += len(progress.tokens)
        assert progress.state is None or progress.state.tobytes() == states[at].tobytes()
    assert (last.finish_reason, len(got)) == (reason, len(tokens)) or (
        cancelled and last.finish_reason is FinishReason.CANCELLED
    )
