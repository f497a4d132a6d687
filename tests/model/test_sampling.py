"""The definition of sampling: known answers, limits, and the distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gruve.errors import InvalidField
from gruve.model.sampling import SamplingParameters, adjust, draw, philox, scale, uniform, weights

LOGITS = np.array([1.0, 3.0, 2.0, 3.0, -1.0], dtype=np.float32)
MAX32 = 0xFFFFFFFF


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
    assert philox(*key, *counter) == words


def test_weights_are_the_softmax_to_a_millionth_of_the_likeliest():
    logits = np.linspace(-14, 3, 200, dtype=np.float32)
    w = weights(logits, np.float32(3), scale(1.0))
    assert np.abs(w / 2**22 - np.exp(logits.astype(np.float64) - 3)).max() < 1.5e-6


def test_temperature_0_takes_the_likeliest_and_ties_go_to_the_lower_id():
    assert draw(LOGITS, SamplingParameters(temperature=0.0), position=9) == 1
    assert draw(LOGITS, SamplingParameters(temperature=0.0), position=9, masked=(1,)) == 3


def test_top_k_1_is_greedy_at_any_temperature():
    assert {draw(LOGITS, SamplingParameters(temperature=50.0, top_k=1), position=p) for p in range(50)} == {1}


def test_top_p_keeps_the_fewest_tokens_that_reach_the_share():
    p = SamplingParameters(top_p=0.7)
    assert {draw(LOGITS, p, position=i) for i in range(300)} == {1, 3}


def test_min_p_drops_what_is_too_unlikely_beside_the_likeliest():
    p = SamplingParameters(temperature=1.0, min_p=0.2)
    assert {draw(LOGITS, p, position=i) for i in range(400)} == {1, 2, 3}


def test_the_penalty_divides_positive_and_multiplies_negative_logits_inside_its_window():
    p = SamplingParameters(repetition_penalty=2.0, repetition_window=2)
    out = adjust(LOGITS, p, np.array([1, 4, 0]))
    assert out.tolist() == [0.5, 3.0, 2.0, 3.0, -2.0]


def test_the_random_number_of_a_position_is_philoxs_for_the_seed():
    seed, position = 0x299F31D0_A4093822, 0x85A308D3_243F6A88
    assert uniform(seed, position) == philox(0xA4093822, 0x299F31D0, 0x243F6A88, 0x85A308D3)[0]


def test_a_bias_is_added_to_its_logit_alone():
    assert adjust(LOGITS, SamplingParameters(logit_bias=((1, -2.5), (4, 3.0))), None).tolist() == [
        1.0,
        0.5,
        2.0,
        3.0,
        2.0,
    ]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution_by_chi_square(temperature):
    n = 20_000
    p = SamplingParameters(temperature=temperature, seed=7)
    counts = np.bincount([draw(LOGITS, p, position=i) for i in range(n)], minlength=5)
    expected = np.exp(LOGITS / temperature)
    expected = n * expected / expected.sum()
    assert float(((counts - expected) ** 2 / expected).sum()) < 23.5  # chi-square, 4 degrees, p = 0.0001


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_window", 1025),
        ("seed", 2**64),
        ("logit_bias", ((3, 101.0),)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InvalidField, match=field):
        SamplingParameters(**{field: value})


@pytest.mark.parametrize(
    ("field", "bounds"),
    [
        ("temperature", (0.0, 100.0)),
        ("top_k", (1, 65_535)),
        ("top_p", (1e-9, 1.0)),
        ("min_p", (0.0, 1.0)),
        ("repetition_penalty", (0.01, 100.0)),
        ("repetition_window", (0, 1_024)),
        ("seed", (0, 2**64 - 1)),
        ("logit_bias", (((3, -100.0), (4, 100.0)), tuple((token, 1.0) for token in range(1_024)))),
    ],
)
def test_a_bound_itself_is_allowed(field, bounds):
    for bound in bounds:
        assert getattr(SamplingParameters(**{field: bound}), field) == bound


def test_more_biases_than_allowed_are_refused():
    with pytest.raises(InvalidField, match="1025 entries; at most 1024"):
        SamplingParameters(logit_bias=tuple((token, 1.0) for token in range(1_025)))


def test_a_token_that_a_bias_has_several_times_is_named():
    with pytest.raises(InvalidField, match="it has the token id 7 2 times; at most once"):
        SamplingParameters(logit_bias=((3, 1.0), (7, 1.0), (4, 1.0), (7, 2.0)))
