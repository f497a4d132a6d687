"""The bits of the native backend: near the oracle, and independent of instruction set, other rows, threads and steps.

The same holds for float32 and int8, with different bounds.
"""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding import admission_of, alone, row_of
from engines import random_schedule
from gruve.decode import HISTORY_TOKENS
from gruve.decode.native import NativeBackend
from gruve.decode.native.library import library
from gruve.decode.native.weights import native_sizes, packed_weights, weights_struct
from gruve.decode.reference import ReferenceBackend
from gruve.model.oracle import Oracle, sigmoid
from gruve.model.sampling import SamplingParameters
from natively import ISAS, every_isa, life, native, row_with
from nets import CELL_NAMES, CELLS, config_of, configs, model_of, pointers_of, weights_of

__all__ = ["native"]
cells = pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)
ARITHMETICS = ("float32", "int8")
arithmetics = pytest.mark.parametrize("arithmetic", ARITHMETICS)
BOUND = 1e-4
INT8_MEAN = 0.1
"""Of logits up to 10: finds a wrong scale. `test_int8.py` tests the bits."""


def forced_logits(backend: NativeBackend, tokens: np.ndarray) -> np.ndarray:
    """The logits (T, V) after each of `tokens` except the last."""
    backend.admit(0, row_with(tokens[1:], history=tokens[:1], max_tokens=1, logprobs=0), None)
    rows = []
    for _ in tokens[1:]:
        backend.decode([0], [1], 1)
        rows.append(backend.last_logits(0))
    return np.stack(rows)


def distances_to_oracle(config, tokens: int, threads: int = 1, arithmetic="float32") -> np.ndarray:
    model = model_of(config)
    if config.cell == "elman":  # a gain above 1 makes it chaotic, so every rounding error grows
        calm = {name: (w * 0.5).half().float() if "weight_hh" in name else w for name, w in model.weights.items()}
        model = dataclasses.replace(model, weights=calm)
    forced = np.random.default_rng(5).integers(0, config.vocabulary_size, tokens + 1).astype(np.int32)
    logits = forced_logits(NativeBackend(model, 1, threads, arithmetic=arithmetic), forced)
    return np.abs(logits - Oracle(config, model.weights).run(forced[:-1].tolist()))


def distance_to_oracle(config, tokens: int, threads: int = 1) -> float:
    return float(distances_to_oracle(config, tokens, threads).max())


@every_isa
def test_sigmoid_and_tanh_err_by_less_than_2e_7_everywhere(isa):
    x = np.concatenate([np.linspace(-100, 100, 60_001), np.linspace(-1, 1, 20_001), [0.0, -0.0, 1e-30, 3e38, -3e38]])
    x = x.astype(np.float32)
    s, t = np.empty_like(x), np.empty_like(x)
    library().call("gruve_activations", isa.encode(), x.ctypes.data, len(x), s.ctypes.data, t.ctypes.data)
    assert np.abs(s - sigmoid(x.astype(np.float64))).max() < 2e-7
    assert np.abs(t - np.tanh(x.astype(np.float64))).max() < 2e-7


@cells
@pytest.mark.parametrize(
    ("H", "L", "tied", "precision"),
    [(24, 4, False, "float16"), (72, 1, True, "float16"), (17, 3, True, "float32"), (40, 2, False, "float32")],
)
def test_logits_stay_within_a_ten_thousandth_of_the_oracle_over_a_thousand_forced_tokens(cell, H, L, tied, precision):
    assert distance_to_oracle(config_of(cell, V=31, E=H - 4, H=H, L=L, tied=tied, precision=precision), 1_000) < BOUND


@cells
def test_in_int8_logits_stay_near_the_oracles_in_the_mean(cell):
    config = config_of(cell, V=31, E=68, H=72, L=1, tied=True)
    assert distances_to_oracle(config, 500, arithmetic="int8").mean() < INT8_MEAN


def test_a_real_size_stays_as_near():
    config = config_of(CELLS[0], V=140, E=256, H=512)
    assert distance_to_oracle(config, 100, threads=2) < BOUND


@pytest.mark.slow
@cells
def test_every_real_size_stays_as_near_over_a_thousand_tokens(cell):
    config = config_of(cell, V=140, E=256, H=512)
    assert distance_to_oracle(config, 1_000, threads=2) < BOUND


@cells
def test_a_vocabulary_too_large_for_a_table_stays_as_near(cell):
    H = 2**24 // (30_000 * {"gru": 3, "lstm": 4, "elman": 1}[cell[0]]) + 1
    config = config_of(cell, V=30_000, E=9, H=H, L=1)
    assert distance_to_oracle(config, 5) < BOUND


@settings(max_examples=50)
@given(configs(hidden_sizes=(8, 9, 16, 17, 24, 72, 100)), st.integers(0, 2**32), st.sampled_from(ARITHMETICS))
def test_every_instruction_set_makes_the_same_bits(config, seed, arithmetic):
    model = model_of(config)
    admission = admission_of([1, 2, 0], max_tokens=12, seed=seed)
    runs = [alone(NativeBackend(model, 1, 1, isa=isa, arithmetic=arithmetic), admission) for isa in ISAS]
    for tokens, states, _ in runs[1:]:
        assert tokens == runs[0][0]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(states, runs[0][1], strict=True))


@cells
@pytest.mark.parametrize("rows", [2, 3, 5, 7, 8, 9, 13, 25, 33, 64])
@pytest.mark.parametrize("threads", [1, 3])
@arithmetics
def test_whoever_shares_the_call_and_whichever_row_it_is_a_sequence_is_as_alone(cell, rows, threads, arithmetic):
    model = model_of(config_of(cell, V=70, H=72))
    admissions = [admission_of([i % 5] * (i % 7), max_tokens=6, seed=i) for i in range(rows)]
    together = NativeBackend(model, rows, threads, arithmetic=arithmetic)
    for i, admission in enumerate(admissions):
        together.admit(i, row_of(admission), None)
    block = together.decode(range(rows)[::-1], [20] * rows, 20)
    solo = NativeBackend(model, 1, 1, arithmetic=arithmetic)
    for i in {0, rows // 2, rows - 1}:
        tokens, states, _ = alone(solo, admissions[i])
        assert block.tokens[: block.steps_taken[rows - 1 - i], rows - 1 - i].tolist() == tokens
        assert together.snapshot(i).tobytes() == states[-1].tobytes()


@settings(max_examples=30)
@given(
    configs(), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**32), st.sampled_from(ARITHMETICS)
)
def test_how_many_steps_a_call_takes_changes_no_bit(config, steps, seed, arithmetic):
    model = model_of(config)
    admission = admission_of([1, 2, 1, 2], max_tokens=12, seed=seed, repetition_penalty=1.2)
    tokens, states, _ = alone(NativeBackend(model, 1, 1, arithmetic=arithmetic), admission)
    backend, got = NativeBackend(model, 3, 2, arithmetic=arithmetic), []
    backend.admit(2, row_of(admission), None)
    while len(got) < len(tokens):
        block = backend.decode([2], [100], steps[len(got) % len(steps)])
        got += block.tokens[: block.steps_taken[0], 0].tolist()
    assert got == tokens
    assert backend.snapshot(2).tobytes() == states[-1].tobytes()


@cells
@pytest.mark.parametrize(("H", "L"), [(8, 2), (17, 1), (40, 3)])
@arithmetics
def test_no_schedule_of_joins_leaves_parks_and_cancels_changes_a_bit(cell, H, L, arithmetic):
    model = model_of(config_of(cell, H=H, L=L, tied=L == 3))
    random_schedule(H, lambda: NativeBackend(model, 23, 2, arithmetic=arithmetic), 13, end_id=1, sequences=20)


@pytest.mark.slow
@settings(max_examples=60)
@given(configs(), st.integers(0, 2**32))
def test_no_schedule_changes_a_bit_for_long(config, seed):
    model = model_of(config)
    for arithmetic in ARITHMETICS:
        random_schedule(
            seed,
            lambda arithmetic=arithmetic: NativeBackend(model, 5 + seed % 90, 1 + seed % 4, arithmetic=arithmetic),
            config.vocabulary_size,
            end_id=1,
        )


@cells
def test_greedy_tokens_are_the_references_where_the_two_likeliest_differ_by_more_than_twice_the_bound(cell):
    model = model_of(config_of(cell, V=40, H=32, L=2))
    tokens, _, _ = alone(NativeBackend(model, 1), admission_of(max_tokens=200, temperature=0.0))
    forced = row_with(tokens, max_tokens=0, sampling=SamplingParameters(temperature=0.0), logprobs=2)
    reference = ReferenceBackend(model, 1)
    reference.admit(0, forced, None)
    likeliest = reference.decode([0], [200], 200).logprobs
    sure = likeliest.top[:, 0, 0] - likeliest.top[:, 0, 1] > 2 * BOUND
    assert sure.sum() > 150
    assert np.array_equal(np.array(tokens)[sure], likeliest.top_ids[sure, 0, 0])


def test_a_state_taken_from_one_slot_goes_on_in_another_backend():
    model = model_of(config_of(CELLS[2], H=24))
    tokens, states, _ = alone(NativeBackend(model, 1), admission_of([4, 5], max_tokens=20))
    backend = NativeBackend(model, 5, isa="portable")
    backend.admit(3, row_with(history=[0, *tokens[:9]], max_tokens=20, generated=7), states[9])
    assert life(backend, 3, 4)[0] == tokens[9:]
    assert backend.snapshot(3).tobytes() == states[-1].tobytes()


def test_the_callers_denormals_are_as_before_and_a_decayed_state_is_zero_inside():
    model = model_of(config_of(CELLS[0]))
    backend = NativeBackend(model, 1, 2)
    tiny = np.full(8, 1e-40, dtype=np.float32)
    backend.admit(0, row_with(max_tokens=9), np.full((1, 2, 8), 1e-40, dtype=np.float32))
    zero = NativeBackend(model, 1)
    zero.admit(0, row_with(max_tokens=9), None)
    assert life(backend, 0, 9) == life(zero, 0, 9)
    assert backend.snapshot(0).tobytes() == zero.snapshot(0).tobytes()
    assert np.all(tiny * np.float32(0.5) != 0)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_numerics_depend_on_precision_and_arithmetic_alone(threads):
    backends = [NativeBackend(model_of(config_of(CELLS[0])), 1, threads, isa=isa) for isa in ISAS]
    backends.append(NativeBackend(model_of(config_of(CELLS[2], H=17)), 9, threads))
    assert len({backend.numerics_id for backend in backends}) == 1
    wide = NativeBackend(model_of(config_of(CELLS[0], precision="float32")), 1)
    whole = NativeBackend(model_of(config_of(CELLS[0])), 1, arithmetic="int8")
    assert len({backend.numerics_id for backend in (wide, whole, backends[0])}) == 3


def test_the_weights_of_a_model_are_packed_once_for_all_decoders():
    config = config_of(CELLS[0])
    first, second = (NativeBackend(model_of(config), 1) for _ in range(2))
    whole = NativeBackend(model_of(config), 1, arithmetic="int8")
    other = NativeBackend(model_of(config, seed=2), 1)
    assert first._packed is second._packed is packed_weights(model_of(config), first.isa, "float32")
    assert len({other._packed, whole._packed, first._packed}) == 3


@every_isa
@pytest.mark.parametrize("H", [8, 511, 1_024])
def test_no_sum_of_integers_overflows_even_if_every_product_is_the_largest_there_can_be(isa, H):
    config = config_of(CELLS[3], H=H, L=1, precision="float32")
    model = model_of(config)
    weights = {name: torch.zeros_like(weight) for name, weight in model.weights.items()}
    weights["layers.0.weight_hh"] += 7.7
    backend = NativeBackend(dataclasses.replace(model, weights=weights), 1, isa=isa, arithmetic="int8")
    backend.admit(0, row_with(max_tokens=9), np.full((1, 1, H), 2.0, dtype=np.float32))  # multiplied as 1
    backend.decode([0], [1], 1)
    assert np.all(backend.snapshot(0) == 1.0)  # after an overflow it would be -1


def test_a_decoder_outlives_the_name_of_its_weights():
    model = model_of(config_of(CELLS[0]))
    backend = NativeBackend(model, 1)
    expected = alone(backend, admission_of(max_tokens=9))[0]
    backend._packed = None
    gc.collect()
    assert alone(backend, admission_of(max_tokens=9))[0] == expected


def test_weights_that_are_no_numbers_are_refused_for_int8():
    model = model_of(config_of(CELLS[0], precision="float32"))
    model.weights["layers.0.weight_hh"][3, 1] = torch.nan
    with pytest.raises(ValueError, match="a weight is nan; int8 takes finite ones only"):
        NativeBackend(model, 1, arithmetic="int8")


def test_weights_that_are_no_float16_are_refused_where_the_model_says_they_are():
    model = model_of(config_of(CELLS[0]))
    weights = weights_of(config_of(CELLS[0], precision="float32"))
    with pytest.raises(ValueError, match=r"said to be float16 and hold -?\d\.\d+(e-\d+)?, which is none"):
        NativeBackend(type(model)("odd", model.config, model.tokenizer, weights), 1)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"cell": 4}, "cell 4 is not between 0 and 3"),
        ({"vocabulary_size": 65_536}, "vocabulary_size 65536 is not between 1 and 65535"),
        ({"embedding_size": 0}, "embedding_size 0 is not between 1 and 4096"),
        ({"hidden_size": 7}, "hidden_size 7 is not between 8 and 4096"),
        ({"num_layers": 5}, "num_layers 5 is not between 1 and 4"),
        ({"num_layers": 2}, "weight_ih of layer 1 is missing"),
        ({"head_bias": None}, "head_bias is missing"),
        ({"head_weight": None}, "head_projection, which a tied head needs where E differs from H, is missing"),
    ],
)
def test_weights_that_are_no_model_are_refused_with_what_is_wrong(changes, complaint):
    config = config_of(CELLS[0], E=9, L=1)
    arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in config.shapes().items()}
    weights, _ = weights_struct(config, arrays, "float32")
    for name, value in changes.items():
        setattr(weights, name, value)
    with pytest.raises(ValueError, match=complaint):
        library().memory(weights, "portable", 1, 1)


@every_isa
@cells
@arithmetics
def test_the_size_of_packed_weights_is_known_before_they_are_packed(cell, arithmetic, isa):
    for more in ({}, {"pointers": pointers_of(13)}, {"tied": True}, {"precision": "float32", "L": 4}):
        config = config_of(cell, **more)
        packed = packed_weights(model_of(config), isa, arithmetic)
        assert native_sizes(config, 8, 2, isa, arithmetic)[0] == packed.bytes


def test_the_size_of_a_decoder_grows_by_what_each_slot_and_thread_takes():
    config = config_of(CELLS[0], H=64)
    one, two, more = (native_sizes(config, n, t, "portable", "float32")[1] for n, t in ((64, 1), (128, 1), (64, 2)))
    state, history = 2 * config.state_bytes, 4 * HISTORY_TOKENS
    assert 64 * (state + history) < two - one < 64 * (state + history + 1_024)
    assert more > one
