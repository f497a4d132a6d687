"""The sampling of the native backend: equal to `model/sampling.py` on equal logits, and correctly distributed."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.decode.native import NativeBackend
from gruve.decode.native.backend import native_sampling
from gruve.decode.native.library import library
from gruve.model import sampling as law
from natively import ISAS, every_isa, native, row_with
from nets import CELLS, config_of, model_of
from sampling_cases import FEW, masked_of, rows

__all__ = ["native"]
MAX32 = 0xFFFFFFFF


def draw(isa, logits, parameters, *, position, history=(), masked=()) -> int:
    sampling, *keep = native_sampling(parameters)
    token = drawn_with(isa, logits, sampling, position=position, history=history, masked=masked)
    assert keep
    return token


def drawn_with(isa, logits, sampling, *, position, history=(), masked=()) -> int:
    history, masked = np.array(history, dtype=np.int32), np.array(masked, dtype=np.int32)
    token = ctypes.c_int32(-1)
    library().call(
        "gruve_draw",
        isa.encode(),
        logits.ctypes.data,
        len(logits),
        ctypes.byref(sampling),
        position,
        history.ctypes.data,
        len(history),
        masked.ctypes.data,
        len(masked),
        ctypes.byref(token),
    )
    return token.value


def check(V, made):
    for row, logits, drawn in made:
        position, masked = row.position + 1, masked_of(row, drawn)
        with np.errstate(over="ignore", invalid="ignore"):  # at temperatures near 0 the definition overflows fp32
            expected = law.draw(logits, row.sampling, position=position, history=row.history, masked=masked)
        for isa in ISAS:
            got = draw(isa, logits, row.sampling, position=position, history=row.history, masked=masked)
            assert got == expected


@settings(max_examples=300)
@given(rows([*FEW, 300]))
def test_every_draw_is_the_laws(made):
    check(*made)


@settings(max_examples=8)
@given(rows([5_000]))
def test_a_vocabulary_of_thousands_draws_what_the_law_draws(made):
    check(*made)


@pytest.mark.slow
@settings(max_examples=1_000)
@given(rows([*FEW, 300, 65_535]))
def test_every_draw_is_the_laws_for_long(made):
    check(*made)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_the_uniform_is_the_laws(seed, position):
    words = (ctypes.c_uint32 * 4)()
    key, counter = (
        (ctypes.c_uint32 * n)(*(value >> shift & MAX32 for shift in range(0, 32 * n, 32)))
        for value, n in ((seed, 2), (position, 4))
    )
    library().plain("gruve_philox", key, counter, words)
    assert words[0] == law.uniform(seed, position)


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MAX32, MAX32), (MAX32,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(key, counter, words):
    made = (ctypes.c_uint32 * 4)()
    library().plain("gruve_philox", (ctypes.c_uint32 * 2)(*key), (ctypes.c_uint32 * 4)(*counter), made)
    assert tuple(made) == words


@every_isa
@pytest.mark.parametrize("masked", [(), (0, 1), (0, 1, 2)])
def test_logits_that_are_no_numbers_draw_some_token_and_break_nothing(isa, masked):
    for bad in (np.nan, np.inf, -np.inf):
        logits = np.array([bad, 1.0, bad], dtype=np.float32)
        for parameters in (law.SamplingParameters(), law.SamplingParameters(temperature=0.0, repetition_penalty=2.0)):
            assert draw(isa, logits, parameters, position=3, history=(0, 1), masked=masked) in (0, 1, 2)


@every_isa
def test_denormal_differences_are_seen_as_the_law_sees_them(isa):
    logits = np.array([1e-40, 2e-40, -3e-41, 0.0], dtype=np.float32)
    for temperature in (0.0, 1e-30):
        parameters = law.SamplingParameters(temperature=temperature, repetition_penalty=3.0)
        for position in range(1, 9):
            expected = law.draw(logits, parameters, position=position, history=np.array([1]))
            assert draw(isa, logits, parameters, position=position, history=(1,)) == expected


@pytest.mark.parametrize("position", [-(2**63), -1, 2**62 + 1])
def test_a_position_out_of_bounds_is_refused(position):
    with pytest.raises(ValueError, match=f"position {position} is not between 0 and {2**62}"):
        draw("portable", np.zeros(3, dtype=np.float32), law.SamplingParameters(), position=position)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"scale": math.inf}, "scale inf is not positive and finite"),
        ({"penalty": -1.5}, "penalty -1.5 is not positive and finite"),
        ({"inverse_penalty": 0.0}, "inverse_penalty 0 is not positive and finite"),
        ({"bias_size": -1}, "the size of the array of each logit_bias token -1 is not between 0 and 1073741824"),
    ],
)
def test_parameters_out_of_bounds_are_quoted(changes, complaint):
    sampling, *keep = native_sampling(law.SamplingParameters(logit_bias=((2, 1.0),)))
    for name, value in changes.items():
        setattr(sampling, name, value)
    with pytest.raises(ValueError, match=complaint):
        drawn_with("portable", np.zeros(3, dtype=np.float32), sampling, position=1)
    assert keep


def test_a_bias_that_is_no_number_is_quoted_with_its_token():
    sampling, ids, bias = native_sampling(law.SamplingParameters(logit_bias=((2, 1.0),)))
    bias[:] = np.inf
    with pytest.raises(ValueError, match="logit_bias inf of token 2 is not finite"):
        drawn_with("portable", np.zeros(3, dtype=np.float32), sampling, position=1)
    assert len(ids) == 1


def test_an_unknown_instruction_set_is_quoted():
    with pytest.raises(ValueError, match="isa 'sse9' is unknown, or this CPU does not support it"):
        draw("sse9", np.zeros(3, dtype=np.float32), law.SamplingParameters(), position=1)


def test_the_draws_of_many_seeds_have_the_distribution_of_the_logits():
    model = model_of(config_of(CELLS[0], V=9))
    backend, n = NativeBackend(model, 64), 6_400
    counts = np.zeros(9)
    for batch in range(n // 64):
        for slot in range(64):
            seed = law.SamplingParameters(seed=batch * 64 + slot)
            backend.admit(slot, row_with([3, 5], max_tokens=1, sampling=seed), None)
        counts += np.bincount(backend.decode(range(64), [3] * 64, 3).tokens[2], minlength=9)
    p = np.exp(backend.last_logits(0).astype(np.float64))
    expected = n * p / p.sum()
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < 26.1  # chi-square, 8 degrees of freedom: p = 0.001
