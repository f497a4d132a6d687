"""A model's weights in the layout of the torch and CUDA backends: padded to whole vectors, linear maps folded.

Padding keeps rows exact at every width: a library computes the part of a row that does not fill a vector register
with other instructions, depending on its place in the tile. A padded unit has zero weights, so its state stays 0 in
every cell.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gruve.model.config import ModelConfig
from gruve.model.repository import Model

WIDTH = 16
"""fp32 numbers in the widest vector register."""


def padded_size(size: int, width: int = WIDTH) -> int:
    """The size rounded up to whole vectors."""
    return -(-size // width) * width


def padded_weights(model: Model, width: int = WIDTH) -> dict[str, Tensor]:
    """The weights with E and H rounded up to whole vectors, zeros in what is added."""
    return {name: _padded(name, weight, model.config, width) for name, weight in model.weights.items()}


def padded_count(config: ModelConfig, width: int = WIDTH) -> int:
    """The number of weights with what `padded_weights` adds."""
    unread = {name: torch.empty(shape, device="meta") for name, shape in config.shapes().items()}
    return sum(_padded(name, weight, config, width).numel() for name, weight in unread.items())


def input_table(weights: dict[str, Tensor]) -> Tensor:
    """Layer 0's input projection as a table (V, G*H): embedding times W, bias added, rounded once."""
    embedding, W = weights["embedding.weight"].double(), weights["layers.0.weight_ih"].double()
    return (embedding @ W.T + weights["layers.0.bias"].double()).float()


def head(weights: dict[str, Tensor]) -> Tensor:
    """The head as one matrix (V, H)."""
    if "head.weight" in weights:
        return weights["head.weight"]
    if "head.projection" in weights:
        return (weights["embedding.weight"].double() @ weights["head.projection"].double()).float()
    return weights["embedding.weight"]


def _padded(name: str, weight: Tensor, config: ModelConfig, width: int) -> Tensor:
    if name in ("head.bias", "pointers.gate_bias"):
        return weight
    if name.startswith("layers"):  # each gate's block of units by itself
        weight = _grown(weight.reshape(-1, config.hidden_size, *weight.shape[1:]), 1, width).flatten(0, 1)
    elif name == "head.projection":
        weight = _grown(weight, 0, width)
    return weight if weight.dim() == 1 else _grown(weight, weight.dim() - 1, width)


def _grown(weight: Tensor, dim: int, width: int) -> Tensor:
    """`weight` with zeros at the end of one dimension."""
    more = padded_size(weight.shape[dim], width) - weight.shape[dim]
    return pad(weight, [0, 0] * (weight.dim() - 1 - dim) + [0, more])
