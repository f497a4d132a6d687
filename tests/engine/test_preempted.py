"""Sequences that lose their slots to other tenants, and get them back, generate the same tokens."""

from __future__ import annotations

import dataclasses

import numpy as np

from decoding import AheadBackend, FakeBackend, admission_of, alone
from engines import Recorder, engine_of
from gruve.engine.sequence import Admission, FinishReason


def rest_of(admission, tokens, progress):
    """What is left of an admission after `tokens` of its tokens; as a session's record would give it."""
    history = np.array([*admission.history, *tokens], dtype=np.int32)
    forced = admission.forced[len(tokens) :]
    generated = max(0, len(tokens) - len(admission.forced))
    return admission_of(
        forced,
        max_tokens=admission.max_tokens,
        seed=admission.sampling.seed,
        tenant=admission.tenant,
    ), {"history": history, "position": len(tokens), "state": progress.state, "generated": generated}


class Readmitting(Recorder):
    """Admits the rest of each preempted sequence again, as streams do."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = None
        self.admissions: dict[int, Admission] = {}
        self.whole: dict[int, list[int]] = {}
        self.origin: dict[int, int] = {}
        self.preempted = 0
        self.done: dict[int, FinishReason] = {}

    def admit(self, admission):
        with self.changed:
            id_ = self.engine.admit(admission)
            self.admissions[id_], self.whole[id_], self.origin[id_] = admission, [], id_
        return id_

    def __call__(self, report):
        super().__call__(report)
        with self.changed:
            for progress in report.progress:
                origin = self.origin[progress.sequence_id]
                self.whole[origin] += progress.tokens
                if progress.finish_reason is not FinishReason.PREEMPTED:
                    if progress.ended:
                        self.done[origin] = progress.finish_reason
                    continue
                self.preempted += 1
                self.origin[self._readmit(origin, progress)] = origin
            self.changed.notify_all()

    def _readmit(self, origin, progress):
        rest, fields = rest_of(self.admissions[origin], self.whole[origin], progress)
        return self.engine.admit(dataclasses.replace(rest, **fields), preempted=True)


def check_exact(backend, streams_of_each=12):
    with engine_of(backend, recorder := Readmitting()) as (engine, _):
        recorder.engine = engine
        for tenant in ("a", "b", "c"):
            for i in range(streams_of_each):
                prompt = [1 + i % 7] * (i % 4 * 9)
                recorder.admit(admission_of(prompt, max_tokens=300, seed=i, tenant=tenant))
            recorder.wait(lambda r: len(r.calls) > 3)
        recorder.wait(lambda r: len(r.done) == 3 * streams_of_each)
    assert recorder.preempted > 0
    for id_, admission in recorder.admissions.items():
        tokens, _, reason = alone(type(backend)(), admission)
        assert (recorder.whole[id_], recorder.done[id_]) == (tokens, reason)


def test_sequences_that_lose_their_slots_and_get_them_back_generate_the_same_tokens():
    check_exact(FakeBackend(slots=6))


def test_sequences_that_lose_their_slots_between_calls_in_flight_generate_the_same_tokens():
    check_exact(AheadBackend(slots=6))
