"""The cells' equations, compared with float64 and with torch's layers: values and gradients, step and sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.nn.functional import linear

from gruve.model.network import Dropout, Network, to_torch_gru
from gruve.model.oracle import Oracle
from gruve.model.pointer_tracker import point_all
from nets import CELL_NAMES, CELLS, config_of, configs, model_of, pointers_of, weights_of

cells = pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)


def network_of(config, seed=1, dropout=None):
    network = Network(config, dropout)
    network.load_weights(weights_of(config, seed))
    return network.eval()


@settings(max_examples=25, deadline=None)
@given(configs())
def test_stepping_the_network_gives_the_oracles_logits(config):
    network, oracle = network_of(config), Oracle(config, weights_of(config))
    state = network.zero_state(1)
    for token in torch.randint(config.vocabulary_size, (20,)).tolist():
        with torch.no_grad():
            logits, state = network.step(torch.tensor([token]), state)
        assert np.abs(logits[0].numpy() - oracle.step(token)).max() < 1e-4


@settings(max_examples=25, deadline=None)
@given(configs())
def test_a_sequence_is_its_steps(config):
    network = network_of(config).double()
    tokens = torch.randint(config.vocabulary_size, (3, 12))
    start = tuple(torch.rand_like(s) for s in network.zero_state(3))
    with torch.no_grad():
        logits, final, outputs = network(tokens, start)
        state, steps = start, []
        for t in range(12):
            step, state = network.step(tokens[:, t], state)
            steps.append(step)
    torch.testing.assert_close(logits, torch.stack(steps, dim=1), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(final, state, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(outputs[:, -1], state[0][-1], rtol=1e-9, atol=1e-10)


POINTERS = [
    pointers_of(13),
    pointers_of(13, bars=(), matches=0, places=0, counts=0),
    pointers_of(13, followers=(), counts=0),
]


@cells
@pytest.mark.parametrize("pointers", POINTERS, ids=["all", "followers", "bars"])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_a_network_with_pointers_gives_the_oracles_logits_in_steps_and_as_a_sequence(cell, pointers, tied):
    config = config_of(cell, pointers=pointers, tied=tied)
    network, oracle = network_of(config).double(), Oracle(config, weights_of(config))
    tokens = [0, *torch.randint(2, 13, (30,)).tolist(), 0, *torch.randint(9, 13, (40,)).tolist()]
    expected = oracle.run(tokens)
    pointed = torch.from_numpy(point_all(pointers, 13, tokens)).long()
    assert pointed[:, : pointers.size].min() < 13  # a pointer names a token
    state, steps = network.zero_state(1), []
    with torch.no_grad():
        for token, row in zip(tokens, pointed, strict=True):
            logits, state = network.step(torch.tensor([token]), state, row[None])
            steps.append(logits[0])
        whole, _, _ = network(torch.tensor([tokens]), network.zero_state(1), pointed[None])
    assert np.abs(torch.stack(steps).numpy() - expected).max() < 1e-9
    assert np.abs(whole[0].numpy() - expected).max() < 1e-9


def test_a_network_with_pointers_needs_what_they_name():
    network = network_of(config_of(CELLS[0], pointers=POINTERS[0]))
    with pytest.raises(ValueError, match="needs `pointed`"):
        network.step(torch.tensor([1]), network.zero_state(1))


def test_gates_add_up_where_pointers_name_one_token():
    config = config_of(CELLS[0], pointers=POINTERS[1])
    network = network_of(config)
    row = torch.tensor([[5, 5, 13, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        logits, state = network.step(torch.tensor([1]), network.zero_state(1), row)
        without = network._head(state[0][-1])
        gates = linear(state[0][-1], network["pointers.gate"]) + network["pointers.gate_bias"][:, 0]
    torch.testing.assert_close((logits - without)[0, 5], gates[0, 0] + gates[0, 1])
    assert torch.equal(logits[0, :5], without[0, :5])
    assert torch.equal(logits[0, 6:], without[0, 6:])


def torch_layer(config, network):
    """The torch.nn layer that computes what layer 0 of a network does."""
    W, U, b = (network[f"layers.0.{name}"].detach() for name in ("weight_ih", "weight_hh", "bias"))
    b_hh = torch.zeros_like(b)
    if config.cell == "gru":
        W, U, b, b_hh = to_torch_gru(W, U, b, network["layers.0.bias_hn"].detach())
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM, "elman": torch.nn.RNN}[config.cell]
    layer = kind(config.embedding_size, config.hidden_size).double()
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), (W, U, b, b_hh), strict=True):
            parameter.copy_(value)
    return layer


@pytest.mark.parametrize("cell", [CELLS[0], CELLS[2], CELLS[3]], ids=["gru-after", "lstm", "elman"])
@pytest.mark.parametrize("path", ["step", "sequence"])
def test_values_and_gradients_are_those_of_torchs_layer(cell, path):
    config = config_of(cell, L=1, H=10)
    network = network_of(config).double()
    layer = torch_layer(config, network)
    x = network["embedding.weight"].detach()[torch.arange(7)][:, None].requires_grad_()
    expected, _ = layer(x)
    expected.square().sum().backward()
    tokens = torch.arange(7)[None]
    if path == "sequence":
        _, _, outputs = network(tokens, network.zero_state(1))
    else:
        state, steps = network.zero_state(1), []
        for t in range(7):
            _, state = network.step(tokens[:, t], state)
            steps.append(state[0][-1])
        outputs = torch.stack(steps, dim=1)
    outputs.square().sum().backward()
    torch.testing.assert_close(outputs[0], expected[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(network["embedding.weight"].grad[:7], x.grad[:, 0], rtol=0, atol=1e-11)
    ours = [network[f"layers.0.{name}"].grad for name in ("weight_ih", "weight_hh", "bias")]
    if config.cell == "gru":
        ours = to_torch_gru(*ours, network["layers.0.bias_hn"].grad)
    for gradient, parameter in zip(ours, layer.parameters(), strict=False):
        if parameter is not layer.bias_hh_l0:  # torch keeps both biases of a gate; ours is their sum
            torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-11)


@cells
def test_gradients_of_the_sequence_are_those_of_the_steps(cell):
    config = config_of(cell, L=2)
    tokens = torch.randint(config.vocabulary_size, (2, 6))
    gradients = []
    for stepwise in (False, True):
        network = network_of(config).double()
        if stepwise:
            state, steps = network.zero_state(2), []
            for t in range(6):
                logits, state = network.step(tokens[:, t], state)
                steps.append(logits)
            logits = torch.stack(steps, dim=1)
        else:
            logits, _, _ = network(tokens, network.zero_state(2))
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        gradients.append({name: network[name].grad for name in config.shapes()})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-10)


def test_translating_a_gru_to_torch_and_back_changes_nothing():
    config = config_of(CELLS[0])
    w = weights_of(config)
    ours = tuple(w[f"layers.0.{name}"] for name in ("weight_ih", "weight_hh", "bias", "bias_hn"))
    W, U, b, b_hh = to_torch_gru(*ours)
    back = to_torch_gru(W, U, b, b_hh[2 * config.hidden_size :])
    assert all(torch.equal(x, y) for x, y in zip(ours[:3], back[:3], strict=True))


def test_the_update_gate_opens_towards_the_new():
    config = config_of(CELLS[0], L=1)
    network = network_of(config)
    H = config.hidden_size
    with torch.no_grad():
        network["layers.0.bias"][H : 2 * H] = -100.0
    state = tuple(torch.rand_like(s) for s in network.zero_state(1))
    assert torch.equal(network.step(torch.tensor([3]), state)[1][0], state[0])


def test_the_parameters_bear_the_names_and_shapes_of_the_config():
    for cell in CELLS:
        for tied, E in ((True, 8), (True, 6), (False, 6)):
            config = config_of(cell, E=E, tied=tied)
            network = Network(config)
            assert {n: tuple(w.shape) for n, w in network.named_weights().items()} == config.shapes()
            assert sum(p.numel() for p in network.parameters()) == config.parameter_count()


def test_dropout_is_off_in_evaluation_and_one_mask_for_all_steps_in_training():
    config = config_of(CELLS[0], V=5, E=32, H=32)
    network = network_of(config, dropout=Dropout(embedding=0.5, between=0.5, head=0.5))
    tokens = torch.randint(5, (1, 6))
    with torch.no_grad():
        plain, again = (network(tokens, network.zero_state(1))[0] for _ in range(2))
    assert torch.equal(plain, again)
    masked = network.train()._locked_dropout(torch.ones(6, 1, 32), 0.5)
    assert set(masked.unique().tolist()) == {0.0, 2.0}
    assert all(torch.equal(masked[0], step) for step in masked)


@cells
def test_a_fresh_network_remembers_and_its_recurrence_is_orthogonal(cell):
    network = Network(config_of(cell, H=16))
    block = network["layers.1.weight_hh"][:16].detach()
    torch.testing.assert_close(block @ block.T, torch.eye(16), rtol=0, atol=1e-5)
    if cell[0] != "elman":
        assert set(network["layers.1.bias"][16:32].tolist()) == {-1.0 if cell[0] == "gru" else 1.0}


def test_a_models_network_is_in_evaluation_mode_and_shares_nothing_with_it():
    model = model_of(config_of(CELLS[0]))
    network = model.network()
    with torch.no_grad():
        network["head.bias"].add_(1.0)
    assert not network.training
    assert not torch.equal(network["head.bias"], model.weights["head.bias"])
