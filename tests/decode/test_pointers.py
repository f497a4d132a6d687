"""Models with pointers in every backend: the oracle's distribution, and the same tokens however calls are cut."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import torch_backend
from gruve.decode import RowStatus
from gruve.decode.native import NativeBackend, unavailable_reason
from gruve.decode.reference import ReferenceBackend
from gruve.errors import ModelBroken
from gruve.model import oracle as oracles
from gruve.model.pointers import point
from gruve.model.sampling import SamplingParameters
from natively import ISAS, life, row_with
from nets import CELLS, config_of, model_of, pointers_of
from pointing import POINTERS, V, tune

LENGTH = 1_100
SAMPLED = SamplingParameters(seed=5, temperature=1.2)
BOUND = 1e-4
"""The bound on the difference of a float32 backend's log-probabilities to the oracle's."""

BACKENDS = {"reference": ReferenceBackend}
if unavailable_reason() is None:
    BACKENDS["native"] = functools.partial(NativeBackend, threads=1)
every_backend = pytest.mark.parametrize("backend_of", BACKENDS.values(), ids=BACKENDS)
every_kind = pytest.mark.parametrize("kind", POINTERS)
native_only = pytest.mark.skipif("native" not in BACKENDS, reason=str(unavailable_reason()))


def pointer_model(pointers, cell=CELLS[0], **more):
    return model_of(config_of(cell, V=V, H=16, pointers=pointers, **more))


def logprobs(logits):
    logits = logits - logits.max()
    return logits - np.log(np.exp(logits).sum())


@functools.cache
def points(kind: str):
    """The definition at every token of `tune(LENGTH)`, computed once because it is slow."""
    tokens = tune(LENGTH)
    return [point(POINTERS[kind], V, tokens[: t + 1]) for t in range(LENGTH)]


@functools.cache
def expected_logprobs(kind: str, cell: int):
    model = pointer_model(POINTERS[kind], CELLS[cell])
    pointed = iter(points(kind))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracles, "point", lambda *_: next(pointed))
        oracle = oracles.Oracle(model.config, {name: weight.numpy() for name, weight in model.weights.items()})
        return [logprobs(oracle.step(token)) for token in tune(LENGTH)]


@every_backend
@pytest.mark.parametrize(
    ("kind", "cell"), [*((kind, 0) for kind in POINTERS), *(("all", c) for c in range(1, len(CELLS)))]
)
def test_the_distribution_is_the_oracles_also_when_the_window_slides(backend_of, kind, cell):
    model = pointer_model(POINTERS[kind], CELLS[cell])
    tokens = tune(LENGTH)
    backend = backend_of(model, 1)
    backend.admit(0, row_with(tokens[1:], history=tokens[:1], max_tokens=0, logprobs=V), None)
    expected, worst = expected_logprobs(kind, cell), 0.0
    for first in range(0, LENGTH - 1, 200):
        block = backend.decode([0], [200], 200)
        for step in range(int(block.steps_taken[0])):
            ids = block.logprobs.top_ids[step, 0]
            worst = max(worst, float(np.abs(block.logprobs.top[step, 0] - expected[first + step][ids]).max()))
    assert worst <= BOUND


@native_only
@every_kind
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 1_200), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_native_makes_the_same_tokens_however_a_transcript_is_cut(kind, seed, length, steps):
    check_cuts(BACKENDS["native"], POINTERS[kind], seed, length, steps)


@every_kind
@settings(max_examples=2, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_the_reference_makes_the_same_tokens_however_a_transcript_is_cut(kind, seed, length, steps):
    check_cuts(BACKENDS["reference"], POINTERS[kind], seed, length, steps)


def check_cuts(backend_of, pointers, seed, length, steps):
    """Compares one call in a slot of its own with many calls among other rows, each from a history and a snapshot."""
    model, tokens = pointer_model(pointers), tune(length, seed)
    whole = backend_of(model, 1)
    whole.admit(0, row_with(tokens[1:], history=tokens[:1], max_tokens=24, sampling=SAMPLED), None)
    expected, _ = life(whole, 0, length + 24)

    pieces = backend_of(model, 4)
    for slot in (1, 2):
        pieces.admit(slot, row_with(tune(30, seed + slot)[1:], history=[0], max_tokens=9_000, sampling=SAMPLED), None)
    made, history, state, generated, forced, turn = [], tokens[:1], None, 0, tokens[1:], 0
    while len(made) < len(expected):
        position = len(history) - 1
        row = row_with(forced, history=history[-1_024:], position=position, max_tokens=24, sampling=SAMPLED)
        pieces.admit(0, dataclasses.replace(row, generated=generated), state)
        count = min(steps[turn % len(steps)] * (60 if forced else 1), len(forced) + 3)
        block = pieces.decode([1, 0, 2], [1, count, 2], count)
        taken = block.tokens[: block.steps_taken[1], 1].tolist()
        made, history = made + taken, history + taken
        generated += max(0, len(taken) - len(forced))
        forced = forced[len(taken) :]
        state = pieces.snapshot(0)
        pieces.release(0)
        turn += 1
    assert made == expected


@every_backend
def test_a_pointer_adds_its_gate_to_the_logit_of_the_token_it_names(backend_of):
    """All weights but the gates' biases are zero, so the log-probabilities are those of the gates."""
    pointers = POINTERS["followers"]
    model = pointer_model(pointers)
    for name, weight in model.weights.items():
        weight.zero_()
        if name == "pointers.gate_bias":
            weight += 2.0
    tokens = tune(60)
    backend = backend_of(model, 1)
    backend.admit(0, row_with(tokens[1:], history=tokens[:1], max_tokens=0, logprobs=V), None)
    block = backend.decode([0], [60], 60)
    named = 0
    for step in range(int(block.steps_taken[0])):
        logits = np.zeros(V)
        for token in point(pointers, V, tokens[: step + 1]).tokens:
            if token < V:
                logits[token] += 2.0
                named += 1
        ids = block.logprobs.top_ids[step, 0]
        assert np.abs(block.logprobs.top[step, 0] - logprobs(logits)[ids]).max() < 1e-5
    assert named > 20


@native_only
@pytest.mark.parametrize("arithmetic", ["float32", "int8"])
@pytest.mark.parametrize("size", ["table", "no-table"])
def test_native_makes_the_same_bits_with_every_instruction_set_and_thread_count(size, arithmetic):
    model = pointer_model(POINTERS["all"])
    if size == "no-table":  # beyond 2**24 entries, rows of E are added before the product
        model = large_model()
    tokens, runs = moved(tune(200), model), []
    for isa in ISAS:
        for threads in (1, 2):
            backend = NativeBackend(model, 2, threads, isa=isa, arithmetic=arithmetic)
            for slot in (0, 1):
                backend.admit(slot, row_with(tokens[1:], history=tokens[:1], max_tokens=50, sampling=SAMPLED), None)
            block = backend.decode([0, 1], [400, 400], 400)
            assert block.statuses.tolist() == [RowStatus.LENGTH] * 2
            runs.append((block.tokens.tolist(), backend.snapshot(0).tobytes(), backend.snapshot(1).tobytes()))
    assert all(run == runs[0] for run in runs)


@native_only
def test_native_without_a_table_has_the_oracles_logits():
    model = large_model()
    tokens = moved(tune(150), model)
    backend = NativeBackend(model, 1, 1)
    backend.admit(0, row_with(tokens[1:], history=tokens[:1], max_tokens=0, logprobs=5), None)
    block = backend.decode([0], [150], 150)
    oracle = oracles.Oracle(model.config, {name: weight.numpy() for name, weight in model.weights.items()})
    for step, token in enumerate(tokens[:-1]):
        expected = logprobs(oracle.step(token))
        assert np.abs(block.logprobs.top[step, 0] - expected[block.logprobs.top_ids[step, 0]]).max() < BOUND


def test_captured_graphs_refuse_a_model_with_pointers():
    with pytest.raises(ModelBroken, match="has pointers, which the mode 'graph' does not compute"):
        torch_backend(pointer_model(POINTERS["all"]), 1)


def large_model():
    pointers = pointers_of(4_000, bars=(1,), followers=(1, 2))
    return model_of(config_of(CELLS[0], V=4_000, E=9, H=256, pointers=pointers))


def moved(tokens: list[int], model) -> list[int]:
    """A tune's tokens, with its bar lines at the end of the model's vocabulary."""
    return [token if token < V - 2 else token + model.config.vocabulary_size - V for token in tokens]


def test_pointers_have_a_numerics_id_of_their_own():
    for backend_of in BACKENDS.values():
        plain, with_pointers = (backend_of(pointer_model(pointers), 1) for pointers in (None, POINTERS["all"]))
        assert plain.numerics_id != with_pointers.numerics_id
