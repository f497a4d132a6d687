"""The torch sampler: on equal logits every row gets the token of `model/sampling.py`, whatever the other rows are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.decode import HISTORY_TOKENS, Row
from gruve.decode.sampler import RowSampling, Sampler, multiply_high, seen_in_ring, uniform
from gruve.model import sampling as law
from sampling_cases import FEW, masked_of, rows, seeds


def check(V, made):
    drawer, sampling = Sampler(V, torch.device("cpu")), RowSampling([r for r, _, _ in made], V, torch.device("cpu"))
    ring = torch.full((len(made), HISTORY_TOKENS), V - 1)  # left in the slot by an earlier sequence
    for i, (row, _, _) in enumerate(made):
        places = np.arange(row.position - len(row.history) + 1, row.position + 1) % HISTORY_TOKENS
        ring[i, places] = torch.from_numpy(row.history.astype(np.int64))
    position = torch.tensor([row.position + 1 for row, _, _ in made])
    tokens = drawer.draw(
        torch.from_numpy(np.stack([logits for _, logits, _ in made])),
        sampling,
        position,
        torch.tensor([drawn for _, _, drawn in made]),
        seen_in_ring(ring, position, sampling.window, V) if sampling.penalised else None,
    )
    expected = [
        law.draw(logits, row.sampling, position=row.position + 1, history=row.history, masked=masked_of(row, drawn))
        for row, logits, drawn in made
    ]
    assert tokens.tolist() == expected


@settings(max_examples=150)
@given(rows(FEW))
def test_every_row_draws_what_the_law_draws_for_it_alone(made):
    check(*made)


@settings(max_examples=8)
@given(rows([2_000, 5_000]))
def test_a_vocabulary_of_thousands_draws_what_the_law_draws(made):
    check(*made)


@pytest.mark.slow
@settings(max_examples=400)
@given(rows([*FEW, 300, 65_535]))
def test_every_row_draws_what_the_law_draws_for_long(made):
    check(*made)


@given(st.lists(st.tuples(seeds, st.integers(0, 2**40)), min_size=1, max_size=8))
def test_philox_in_torch_is_philox_in_python(pairs):
    low, high = (torch.tensor([s >> shift & 0xFFFFFFFF for s, _ in pairs]) for shift in (0, 32))
    drawn = uniform(low, high, torch.tensor([p for _, p in pairs]))
    assert drawn.tolist() == [law.uniform(s, p) for s, p in pairs]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**39 - 1)), min_size=1))
def test_the_high_word_of_a_product_is_exact(pairs):
    u, total = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert multiply_high(u, total).tolist() == [a * b >> 32 for a, b in pairs]


@pytest.mark.parametrize("u", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("total", [1, 2**16 - 1, 2**16, 2**22, 65_535 * 2**22, 2**39 - 1])
def test_the_high_word_of_a_product_is_exact_at_the_edges(u, total):
    assert multiply_high(torch.tensor([u]), torch.tensor([total])).item() == u * total >> 32


@pytest.mark.parametrize("top_p", [1e-38, 1e-9, 2.0**-24])
def test_the_smallest_top_p_keeps_the_likeliest_token(top_p):
    logits = np.array([0.0, 2.0, 1.0], dtype=np.float32)
    assert {law.draw(logits, law.SamplingParameters(top_p=top_p), position=p) for p in range(20)} == {1}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_give_some_token_and_leave_the_neighbours_theirs(temperature):
    V, cpu = 7, torch.device("cpu")
    row = Row(
        np.zeros(1, np.int32), 0, np.empty(0, np.int32), law.SamplingParameters(temperature, seed=3), max_tokens=9
    )
    logits = torch.stack([torch.arange(V) * 0.5, torch.full((V,), torch.nan)])
    nothing = torch.zeros(2, dtype=torch.int64)
    good, bad = Sampler(V, cpu).draw(logits, RowSampling([row, row], V, cpu), nothing + 1, nothing, None).tolist()
    assert good == law.draw(logits[0].numpy(), row.sampling, position=1)
    assert 0 <= bad < V
