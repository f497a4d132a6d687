"""The generated models of the benchmarks."""

from __future__ import annotations

import pytest
import torch

from gruve.bench.synthetic import CELLS, LARGE, MEDIUM, Size, blueprint, flop_per_token, make_model


def test_a_token_of_3_x_512_takes_eight_megaflop():
    assert flop_per_token(blueprint(MEDIUM)) == pytest.approx(8.01e6, rel=1e-3)
    assert flop_per_token(blueprint(LARGE)) == pytest.approx(19.16e6, rel=1e-3)


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_can_be_made_and_loaded_and_was_exact_in_fp16(tmp_path, cell):
    model = make_model(tmp_path / cell.replace("_", "-"), Size(2, 16), cell)
    assert all(torch.equal(w, w.half().float()) for w in model.weights.values())
    assert float(model.weights["layers.1.weight_hh"].std()) > 0.01


def test_the_same_size_has_the_same_digest_everywhere(tmp_path):
    assert make_model(tmp_path / "one", Size(1, 16)).digest == make_model(tmp_path / "two", Size(1, 16)).digest


@torch.no_grad()
def test_its_distribution_is_neither_flat_nor_certain(tmp_path):
    model = make_model(tmp_path / "m", Size(2, 64))
    network = model.network()
    logits, _ = network.step(torch.arange(8), network.zero_state(8))
    probabilities = torch.softmax(logits, dim=1)
    entropy_bits = -(probabilities * probabilities.log2()).sum(1)
    assert 1.0 < float(entropy_bits.mean()) < 7.1


def test_a_size_is_read_as_it_is_written():
    assert str(Size.parse("3x512")) == "3x512"
    with pytest.raises(ValueError, match="invalid literal"):
        Size.parse("3 by 512")
