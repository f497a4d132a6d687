"""Models with pointers on every backend: the oracle's logits, and the same tokens however a transcript is cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import torch_backend
from gruve.decode import RowStatus
from gruve.decode.native import NativeBackend, unavailable_reason
from gruve.decode.reference import ReferenceBackend
from gruve.errors import ModelBroken
from gruve.model.oracle import Oracle
from gruve.model.pointers import point
from gruve.model.sampling import SamplingParameters
from natively import life, row_with
from nets import CELLS, config_of, model_of, pointers_of

V = 14
SAMPLED = SamplingParameters(seed=5, temperature=1.2)
BOUND = 1e-4
"""What a float32 backend's logits may differ by from the oracle's."""

POINTERS = {
    "all": pointers_of(V),
    "followers": pointers_of(V, bars=(), places=0, counts=0, matches=0, followers=(1, 3, 8)),
    "bars": pointers_of(V, bars=(1, 2, 4, 16), followers=(), matches=5, places=40, counts=9),
    "no-start": dataclasses.replace(pointers_of(V, matches=3), start_token=-1),
}
BACKENDS = {"reference": lambda model, slots: ReferenceBackend(model, slots)}
if unavailable_reason() is None:
    BACKENDS["native"] = lambda model, slots: NativeBackend(model, slots, 1)
every_backend = pytest.mark.parametrize("backend_of", BACKENDS.values(), ids=BACKENDS)
every_kind = pytest.mark.parametrize("pointers", POINTERS.values(), ids=POINTERS)


def pointer_model(pointers, cell=CELLS[0], **more):
    return model_of(config_of(cell, V=V, H=16, pointers=pointers, **more))


def tune(length: int, seed: int = 1, *, start=True) -> list[int]:
    """Tokens that repeat what came before at the distances that pointers look back, with bar lines among them."""
    rng = np.random.default_rng(seed)
    tokens = [0] if start else [3]
    while len(tokens) < length:
        if len(tokens) > 40 and rng.random() < 0.3:
            at = int(rng.integers(1, len(tokens) - 20))
            tokens += [token for token in tokens[at : at + 20] if token]
        tokens += [*rng.integers(2, V - 2, 4).tolist(), V - 1 if rng.random() < 0.8 else V - 2]
    return tokens[:length]


def logprobs(logits):
    logits = logits - logits.max()
    return logits - np.log(np.exp(logits).sum())


@every_backend
@every_kind
@pytest.mark.parametrize("cell", CELLS, ids=[name for name, _ in CELLS])
def test_the_distribution_is_the_oracles_over_a_window_that_slides(backend_of, pointers, cell):
    model = pointer_model(pointers, cell)
    tokens = tune(1_400)
    backend = backend_of(model, 1)
    backend.admit(0, row_with(tokens[1:], history=tokens[:1], max_tokens=0, logprobs=V), None)
    oracle = Oracle(model.config, {name: weight.numpy() for name, weight in model.weights.items()})
    worst = 0.0
    for first in range(0, len(tokens) - 1, 200):
        block = backend.decode([0], [200], 200)
        for step in range(int(block.steps_taken[0])):
            expected = logprobs(oracle.step(tokens[first + step]))
            given_ids = block.logprobs.top_ids[step, 0]
            worst = max(worst, float(np.abs(block.logprobs.top[step, 0] - expected[given_ids]).max()))
    assert worst <= BOUND


@every_kind
@pytest.mark.skipif("native" not in BACKENDS, reason="the native library was not built")
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 1_200), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_transcript_continues_alike_however_it_was_cut(pointers, seed, length, steps):
    check_cuts(BACKENDS["native"], pointers, seed, length, steps)


@every_kind
@settings(max_examples=2, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_the_reference_continues_a_transcript_alike_however_it_was_cut(pointers, seed, length, steps):
    check_cuts(BACKENDS["reference"], pointers, seed, length, steps)


def check_cuts(backend_of, pointers, seed, length, steps):
    """Whole in one slot, or taken up from its history and state in another, among other rows and in other calls."""
    model = pointer_model(pointers)
    tokens = tune(length, seed)
    whole = backend_of(model, 1)
    whole.admit(0, row_with(tokens[1:], history=tokens[:1], max_tokens=24, sampling=SAMPLED), None)
    expected, _ = life(whole, 0, 64)

    pieces = backend_of(model, 4)
    for slot in (1, 2):
        pieces.admit(slot, row_with(tune(30, seed + slot)[1:], history=[0], max_tokens=500, sampling=SAMPLED), None)
    made, history, state, drawn = [], tokens[:1], None, 0
    forced = tokens[1:]
    turn = 0
    while len(made) < len(expected):
        row = row_with(
            forced,
            history=history[-1_024:],
            position=len(history) - 1,
            max_tokens=24,
            sampling=SAMPLED,
            generated=drawn,
        )
        pieces.admit(0, row, state)
        count = min(steps[turn % len(steps)] * (60 if forced else 1), len(forced) + 3)
        block = pieces.decode([1, 0, 2], [1, count, 2], count)
        taken = block.tokens[: block.steps_taken[1], 1].tolist()
        made += taken
        history = history + taken
        drawn += max(0, len(taken) - len(forced))
        forced = forced[len(taken) :]
        state = pieces.snapshot(0)
        pieces.release(0)
        turn += 1
    assert made == expected


@every_backend
def test_a_pointer_moves_the_logit_of_the_token_it_names_by_its_gate(backend_of):
    """With no weight but the gates' biases, the log-probabilities are those of the gates alone."""
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
        given_ids = block.logprobs.top_ids[step, 0]
        assert np.abs(block.logprobs.top[step, 0] - logprobs(logits)[given_ids]).max() < 1e-5
    assert named > 20


@pytest.mark.skipif("native" not in BACKENDS, reason="the native library was not built")
@pytest.mark.parametrize("large", [False, True], ids=["table", "no-table"])
def test_native_gives_the_same_bits_for_every_thread_count_and_with_or_without_a_table(large):
    pointers = pointers_of(V)
    model = pointer_model(pointers)
    if large:  # beyond 2**24 entries the rows are added before the product
        config = config_of(CELLS[0], V=4_000, E=8, H=256, pointers=pointers_of(4_000, bars=(1,), followers=(1, 2)))
        model = model_of(config)
    tokens = [token if token < 10 else token + model.config.vocabulary_size - V for token in tune(200)]
    lives = []
    for threads in (1, 2):
        backend = NativeBackend(model, 2, threads)
        for slot in (0, 1):
            backend.admit(slot, row_with(tokens[1:], history=tokens[:1], max_tokens=50, sampling=SAMPLED), None)
        block = backend.decode([0, 1], [400, 400], 400)
        lives.append(block.tokens.tolist())
        assert block.statuses.tolist() == [RowStatus.LENGTH] * 2
    assert lives[0] == lives[1]


def test_the_fused_gpu_kernels_refuse_a_model_with_pointers():
    with pytest.raises(ModelBroken, match=r"model 'small' has 5 pointers; backend 'cuda' computes none"):
        torch_backend(pointer_model(POINTERS["all"]))


@pytest.mark.skipif("native" not in BACKENDS, reason="the native library was not built")
def test_native_without_a_table_has_the_oracles_logits():
    V = 4_000
    model = model_of(config_of(CELLS[0], V=V, E=9, H=256, pointers=pointers_of(V, bars=(1,), followers=(1, 2))))
    tokens = [token if token < 10 else token + V - 14 for token in tune(150)]
    backend = NativeBackend(model, 1, 1)
    backend.admit(0, row_with(tokens[1:], history=tokens[:1], max_tokens=0, logprobs=5), None)
    block = backend.decode([0], [150], 150)
    oracle = Oracle(model.config, {name: weight.numpy() for name, weight in model.weights.items()})
    for step, token in enumerate(tokens[:-1]):
        expected = logprobs(oracle.step(token))
        assert np.abs(block.logprobs.top[step, 0] - expected[block.logprobs.top_ids[step, 0]]).max() < BOUND
