"""The fast sequence for training computes the same as the plain one."""

from __future__ import annotations

import pytest
import torch

from gruve.model.config import ModelConfig
from gruve.model.network import Dropout, Network
from gruve.training import recurrence
from gruve.training.recurrence import TrainingNetwork

CONFIG = ModelConfig("gru", vocabulary_size=11, embedding_size=6, hidden_size=16, num_layers=2, reset="after")


def both() -> tuple[Network, TrainingNetwork]:
    torch.manual_seed(7)
    plain = Network(CONFIG)
    fast = TrainingNetwork(CONFIG, in_bfloat16=True)
    fast.load_weights(plain.named_weights())
    return plain, fast


def loss(network: Network) -> torch.Tensor:
    torch.manual_seed(8)
    tokens, state = torch.randint(0, 11, (3, 20)), (torch.randn(2, 3, 16) * 0.5,)
    logits, state, outputs = network(tokens, state)
    return logits.square().mean() + state[0].sum() * 0.1 + outputs[:, ::3].sum() * 0.01


def gradients(network: Network) -> dict[str, torch.Tensor]:
    loss(network).backward()
    return {name: weight.grad for name, weight in network.named_weights().items() if weight.grad is not None}


def test_without_rounding_the_fast_sequence_has_the_plain_ones_loss_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recurrence, "BF16", torch.float32)
    plain, fast = both()
    torch.testing.assert_close(loss(plain), loss(fast))
    expected, found = gradients(plain), gradients(fast)
    assert expected.keys() == found.keys() == CONFIG.shapes().keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_in_bfloat16_the_gradients_point_where_the_plain_ones_point() -> None:
    plain, fast = both()
    expected, found = gradients(plain), gradients(fast)
    for name, gradient in expected.items():
        cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), found[name].flatten(), dim=0)
        assert cosine > 0.999, name


def test_dropped_weights_return_after_the_batch() -> None:
    network = TrainingNetwork(CONFIG, in_bfloat16=False)
    network.weight_dropout = 0.5
    before = network["layers.0.weight_hh"]
    tokens, state = torch.randint(0, 11, (1, 4)), network.zero_state(1)
    assert not torch.equal(network(tokens, state)[0], network(tokens, state)[0])
    assert network["layers.0.weight_hh"] is before


def test_an_evaluated_network_drops_nothing() -> None:
    network = TrainingNetwork(CONFIG, in_bfloat16=False).eval()
    network.dropout, network.weight_dropout = Dropout(0.5, 0.5, 0.5), 0.5
    tokens, state = torch.randint(0, 11, (1, 4)), network.zero_state(1)
    assert torch.equal(network(tokens, state)[0], network(tokens, state)[0])
