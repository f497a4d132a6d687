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


def padded_count(config: ModelConfig) -> int:
    """The number of weights with what `padded_weights` adds for the default width."""
    unread = {name: torch.empty(shape, device="meta") for name, shape in config.shapes().items()}
    return sum(_padded(name, weight, config, WIDTH).numel() for name, weight in unread.items())


def input_table(weights: dict[str, Tensor]) -> Tensor:
    """Layer 0's input projection as a table (V, G*H): embedding times W, bias added, rounded once."""
    embedding, W = weights["embedding.weight"].double(), weights["layers.0.weight_ih"].double()
    return (embedding @ W.T + weights["layers.0.bias"].double()).float()


def input_tables(weights: dict[str, Tensor], config: ModelConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Layer 0's input projection as fp32 tables, for a model with or without pointers; each row is rounded once.

    The first has a row (G*H) for each token, with the bias. The others, by name, have what pointers add to it: `weight`
    (K, V+1, G*H) and `match` (K, matches, G*H) as differences to the rows of a pointer that names nothing, or matches
    nothing, which are in the first table; `place` (places, G*H); `count` (counts, G*H). Absent tables have no key.
    Takes weights that are not padded. The sums are in float64 and in the order of E, so their bits are the same
    everywhere.
    """
    W = weights["layers.0.weight_ih"].double()

    def projected(rows: Tensor, start: Tensor) -> Tensor:
        sums = start.expand(len(rows), -1).clone()
        for e in range(rows.shape[1]):
            sums += rows[:, e : e + 1].double() * W[:, e]
        return sums

    pointers, V = config.pointers, config.vocabulary_size
    none = weights["layers.0.bias"].double()
    nothing = torch.zeros_like(none)
    added: dict[str, Tensor] = {}

    def differences(rows: Tensor, base: int) -> Tensor:
        return projected(rows, -projected(rows[base : base + 1], nothing)[0])

    if pointers is not None:
        for k in range(pointers.size):
            none = projected(weights["pointers.weight"][k, V:], none)[0]
            if pointers.matches:
                none = projected(weights["pointers.match"][k, :1], none)[0]
        added["weight"] = torch.stack([differences(rows, V) for rows in weights["pointers.weight"]])
        if pointers.matches:
            added["match"] = torch.stack([differences(rows, 0) for rows in weights["pointers.match"]])
        for name, size in (("place", pointers.places), ("count", pointers.counts)):
            if size:
                added[name] = projected(weights[f"pointers.{name}"], nothing)
    table = projected(weights["embedding.weight"], none)
    return table.float(), {name: rows.float() for name, rows in added.items()}


def table_entries(config: ModelConfig) -> int:
    """The entries of all of `input_tables`."""
    pointers, V = config.pointers, config.vocabulary_size
    rows = V
    if pointers is not None:
        rows += pointers.size * (V + 1 + pointers.matches) + pointers.places + pointers.counts
    return rows * config.gates * config.hidden_size


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
