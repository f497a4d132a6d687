"""The int8 arithmetic: its parts against exact numbers, and native against reference, bit for bit."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding import admission_of, alone
from gruve.decode import int8
from gruve.decode.native import NativeBackend
from gruve.decode.native.library import library
from gruve.decode.reference import ReferenceBackend
from natively import ISAS, every_isa, native, row_with
from nets import CELL_NAMES, CELLS, config_of, configs, model_of, pointers_of

__all__ = ["native"]
cells = pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)
fp32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rounded(exact: Fraction) -> np.float32:
    """The fp32 number nearest to `exact`, ties to even."""
    near = np.float32(float(exact))
    around = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    return min(around, key=lambda value: (abs(Fraction(float(value)) - exact), int(value.view(np.int32)) & 1))


def made_by(backend, steps: int, *, rows: int = 3, state=None, **more):
    """The bits of everything that some rows make in one call."""
    for slot in range(rows):
        backend.admit(slot, row_with([1, 2, slot], max_tokens=steps, logprobs=2, **more), state)
    block = backend.decode(range(rows), [steps] * rows, steps)
    states = [backend.snapshot(slot).tobytes() for slot in range(rows)]
    return block.tokens.tolist(), states, block.logprobs.chosen.tobytes(), block.logprobs.top.tobytes()


def both(model, slots: int = 3):
    return ReferenceBackend(model, slots, arithmetic="int8"), [
        NativeBackend(model, slots, 1, isa=isa, arithmetic="int8") for isa in ISAS
    ]


@given(fp32, fp32, fp32)
def test_a_fused_multiply_add_rounds_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if abs(exact) < 2**126:
        made = int8.fma(*(torch.tensor([value], dtype=torch.float32) for value in (a, b, c)))
        assert made.item() == float(rounded(exact))


def test_a_fused_multiply_add_is_not_rounded_to_float64_first():
    a, b, c = (torch.tensor([value]) for value in (1.0 + 2**-23, 2.0**-24, -(2.0**-60)))
    # (1 + 2**-23) / 2**24 - 2**-60 + 1, in two parts: above a tie in fp32 by what float64 would have rounded away.
    exact = Fraction(a.item()) * Fraction(b.item()) + 1
    assert int8.fma(a, b, torch.ones(1)).item() == float(rounded(exact))
    low = torch.tensor([2.0**-24 * (1 + 2**-20)])
    assert int8.fma(low, low, c + 1).item() == float(rounded(Fraction(low.item()) ** 2 + Fraction((c + 1).item())))


@every_isa
def test_sigmoid_and_tanh_have_the_bits_of_the_native_ones(isa):
    x = np.concatenate([np.linspace(-130, 130, 9_001), np.linspace(-1, 1, 4_001), [0.0, -0.0, 1e-30, 3e38, -3e38]])
    x = x.astype(np.float32)
    s, t = np.empty_like(x), np.empty_like(x)
    library().call("gruve_activations", isa.encode(), x.ctypes.data, len(x), s.ctypes.data, t.ctypes.data)
    given_x = torch.from_numpy(x)
    assert int8.sigmoid(given_x).numpy().tobytes() == s.tobytes()
    assert int8.tanh(given_x).numpy().tobytes() == t.tobytes()


@pytest.mark.parametrize("depth", [8, 41, int8.EXACT_DEPTH, int8.EXACT_DEPTH + 1, 4_096])
@pytest.mark.parametrize("largest", [False, True])
def test_the_references_sums_are_those_of_plain_integers(depth, largest):
    rng = np.random.default_rng(depth)
    weight = np.full((5, depth), 0.7) if largest else rng.normal(size=(5, depth))
    h = np.full((3, depth), -1.0) if largest else rng.uniform(-1.2, 1.2, (3, depth))
    matrix = int8.IntegerMatrix(torch.tensor(weight, dtype=torch.float32), torch.device("cpu"))
    inputs = np.rint(np.clip(h.astype(np.float32) * np.float32(127), -127, 127)).astype(np.int64)
    sums = inputs @ matrix.integers.numpy().T.astype(np.int64)
    expected = int8.fma(torch.from_numpy(sums).float(), matrix.steps, torch.ones(5))
    made = matrix.add_to(torch.ones(5), torch.tensor(h, dtype=torch.float32))
    assert made.numpy().tobytes() == expected.numpy().tobytes()
    assert int(matrix.integers.abs().max()) == 63


@every_isa
@cells
def test_the_native_logits_are_those_of_plain_integers(isa, cell):
    model = model_of(config_of(cell, V=53, H=41, L=2))
    backend = NativeBackend(model, 1, 1, isa=isa, arithmetic="int8")
    backend.admit(0, row_with([5, 6, 7], max_tokens=9, logprobs=0), None)
    backend.decode([0], [7], 7)
    weight = model.weights["head.weight"].numpy().astype(np.float64)
    scale = 63 / np.abs(weight).max(axis=1)
    integers = np.rint(weight * scale[:, None]).astype(np.int64)
    inputs = np.rint(backend.snapshot(0)[0, -1] * np.float32(127)).astype(np.int64)
    sums = (integers @ inputs).astype(np.float32)
    steps = (1.0 / (scale * 127)).astype(np.float32)
    bias = model.weights["head.bias"].numpy()
    expected = [
        rounded(Fraction(float(s)) * Fraction(float(d)) + Fraction(float(b)))
        for s, d, b in zip(sums, steps, bias, strict=True)
    ]
    assert backend.last_logits(0).tolist() == [float(value) for value in expected]


@settings(max_examples=8, deadline=None)
@given(configs(hidden_sizes=(8, 9, 16, 17, 24, 72, 100)), st.integers(0, 2**32), st.booleans())
def test_native_and_reference_make_the_same_bits(config, seed, pointed):
    if pointed:
        config = dataclasses.replace(config, pointers=pointers_of(config.vocabulary_size))
    reference, natives = both(model_of(config, seed=seed % 1_000))
    expected = made_by(reference, 12)
    assert all(made_by(backend, 12) == expected for backend in natives)


@cells
def test_they_make_the_same_bits_over_many_tokens(cell):
    reference, natives = both(model_of(config_of(cell, V=40, H=41, L=3, pointers=pointers_of(40))))
    expected = made_by(reference, 25)
    assert all(made_by(backend, 25) == expected for backend in natives)


def test_they_make_the_same_bits_where_the_vocabulary_is_too_large_for_a_table():
    reference, natives = both(model_of(config_of(CELLS[0], V=7_000, E=9, H=800, L=1)))
    expected = made_by(reference, 2, rows=1)
    assert all(made_by(backend, 2, rows=1) == expected for backend in natives)


@cells
@pytest.mark.parametrize("value", [1e-40, 3.0, np.inf, np.nan])
def test_they_agree_on_states_that_no_cell_makes(cell, value):
    """Denormals are kept; beyond 1 a state multiplies as 1."""
    model = model_of(config_of(cell, H=24))
    state = np.random.default_rng(1).uniform(-1, 1, (model.config.state_tensors, 2, 24)).astype(np.float32)
    state[..., ::5] = value
    reference, natives = both(model, 1)
    for backend in (reference, *natives):
        backend.admit(0, row_with(max_tokens=3), state)
        backend.decode([0], [1], 1)
    after = reference.snapshot(0)
    assert all(np.array_equal(backend.snapshot(0), after, equal_nan=True) for backend in natives)


@cells
def test_a_sequence_goes_on_in_the_other_backend_as_if_uninterrupted(cell):
    model = model_of(config_of(cell, H=41, pointers=pointers_of(13)))
    reference, (one, *_) = both(model)
    tokens, states, _ = alone(one, admission_of([4, 5], max_tokens=12))
    for backend in (reference, one):
        backend.admit(1, row_with(history=[0, *tokens[:9]], max_tokens=12, generated=7), states[9])
        block = backend.decode([1], [40], 40)
        assert block.tokens[: block.steps_taken[0], 0].tolist() == tokens[9:]
        assert backend.snapshot(1).tobytes() == states[-1].tobytes()


def test_the_arithmetic_has_one_id_with_every_backend_and_one_of_its_own_with_pointers():
    plain, pointed = (model_of(config_of(CELLS[0], pointers=p)) for p in (None, pointers_of(13)))
    ids = {
        backend.numerics_id
        for one, more in (both(plain), both(model_of(config_of(CELLS[2], precision="float32"))))
        for backend in (one, *more)
    }
    others = {NativeBackend(plain, 1).numerics_id, ReferenceBackend(plain, 1).numerics_id}
    assert len(ids) == 1
    assert len(ids | others | {both(pointed)[0].numerics_id}) == 4


def test_weights_that_are_no_numbers_are_refused():
    model = model_of(config_of(CELLS[0], precision="float32"))
    model.weights["head.weight"][3, 1] = torch.inf
    for make in (ReferenceBackend, NativeBackend):
        with pytest.raises(ValueError, match="a weight is inf; int8 takes finite ones only"):
            make(model, 1, arithmetic="int8")
