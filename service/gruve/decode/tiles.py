"""A model's step in torch operations, on tiles of a fixed number of rows.

Every matrix product has exactly so many rows, padded, because a library that may choose another kernel for another
batch size may also round differently. Knows tensors; nothing of slots, rows that freeze, or sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from gruve.decode.folding import head, input_table, padded_size, padded_weights
from gruve.errors import ModelBroken
from gruve.model.cells import cell_function
from gruve.model.repository import Model

TILE = {"cpu": 16, "cuda": 256}
"""Rows of a tile, by the type of the device: on a GPU a tile costs about the same however few rows it has."""
MAX_TABLE_ENTRIES = 1 << 24
"""Beyond so many entries (64 MiB) the input projection is computed, not looked up."""


class Tiles:
    """Steps a model's rows in fp32 on `device`, `rows` of them at a time.

    Raises `ModelBroken` where the library gives a row other bits at another place of a tile: the promise would be
    empty.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        config = model.config
        self.rows = TILE[device.type]
        self.hidden_size = padded_size(config.hidden_size)
        self._device = device
        self._config = config
        self._cell = cell_function(config)
        weights = padded_weights(model)
        small = config.vocabulary_size * config.gates * config.hidden_size <= MAX_TABLE_ENTRIES
        self._w = {name: weight.to(device) for name, weight in weights.items()}
        self.input_table = input_table(weights).to(device) if small else None
        self._head = head(weights).to(device)
        self._check_exactness()

    def padded(self, rows: int) -> int:
        """The number of rows rounded up to whole tiles."""
        return -(-rows // self.rows) * self.rows

    def step(self, tokens: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step of whole tiles: logits (B, V) and the new state, each tensor (L, B, H), H padded."""
        tiles = [
            self._tile(tokens[t : t + self.rows], tuple(s[:, t : t + self.rows] for s in state))
            for t in range(0, len(tokens), self.rows)
        ]
        logits = torch.cat([tile[0] for tile in tiles])
        return logits, tuple(torch.cat(parts, dim=1) for parts in zip(*(tile[1] for tile in tiles), strict=True))

    def logits(self, h: Tensor) -> Tensor:
        """The head alone: whole tiles of the last layer's state (B, H) -> logits (B, V)."""
        return torch.cat([self._logits(h[t : t + self.rows]) for t in range(0, len(h), self.rows)])

    def _tile(self, tokens: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One tile through every layer and the head."""
        layers = []
        x = tokens
        for l in range(self._config.num_layers):
            W, b = self._w[f"layers.{l}.weight_ih"], self._w[f"layers.{l}.bias"]
            if l == 0 and self.input_table is not None:
                gates = self.input_table[tokens]
            else:
                gates = linear(self._w["embedding.weight"][tokens] if l == 0 else x, W, b)
            U, b_hn = self._w[f"layers.{l}.weight_hh"], self._w.get(f"layers.{l}.bias_hn")
            layers.append(self._cell(gates, tuple(s[l].contiguous() for s in state), U, b_hn))
            x = layers[-1][0]
        return self._logits(x), tuple(torch.stack(tensors) for tensors in zip(*layers, strict=True))

    def _logits(self, h: Tensor) -> Tensor:
        return linear(h, self._head, self._w["head.bias"])

    @torch.inference_mode()
    def _check_exactness(self) -> None:
        generator = torch.Generator().manual_seed(1)
        config = self._config
        tokens = torch.randint(config.vocabulary_size, (self.rows,), generator=generator).to(self._device)
        shape = (config.num_layers, self.rows, self.hidden_size)
        state = tuple(
            (torch.rand(shape, generator=generator) * 2 - 1).to(self._device) for _ in range(config.state_tensors)
        )
        logits, after = self._tile(tokens, state)
        turn = torch.arange(self.rows, device=self._device).roll(5)
        logits_turned, after_turned = self._tile(tokens[turn], tuple(s[:, turn] for s in state))
        same = torch.equal(logits[turn], logits_turned) and all(
            torch.equal(a[:, turn], b) for a, b in zip(after, after_turned, strict=True)
        )
        if not same:
            raise ModelBroken(
                f"torch {torch.__version__} on {self._device} gives a row of a {self.rows}-row tile other bits at "
                "another place; a backend of torch operations cannot be exact here"
            )
