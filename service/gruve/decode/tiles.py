"""A model's step in torch operations, on tiles of a fixed number of rows.

Every matrix product has the same number of rows, padded if necessary: a library may choose another kernel for another
batch size, and round differently. Knows tensors; nothing of slots, frozen rows or sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from gruve.decode.weight_packing import head, input_table, padded_count, padded_size, padded_weights
from gruve.errors import ModelBroken
from gruve.model.cells import cell_function
from gruve.model.config import ModelConfig
from gruve.model.repository import Model

TILE = {"cpu": 16, "cuda": 256}
"""The rows of a tile by device type. On a GPU a tile costs about the same with any smaller number of rows."""
MAX_TABLE_ENTRIES = 1 << 24
"""With more entries (64 MiB), the input projection is computed instead of looked up."""


def tiles_bytes(config: ModelConfig) -> int:
    """The size of the weights that `Tiles` holds."""
    count, hidden_size = padded_count(config), padded_size(config.hidden_size)
    if _has_table(config):
        count += config.vocabulary_size * config.gates * hidden_size
    if "head.projection" in config.shapes():
        count += config.vocabulary_size * hidden_size
    return 4 * count


def _has_table(config: ModelConfig) -> bool:
    """Whether layer 0's input is looked up. A table has the projection of one row; with pointers the input is many."""
    return config.pointers is None and config.vocabulary_size * config.gates * config.hidden_size <= MAX_TABLE_ENTRIES


def _rows_of(pointed: Tensor | None, begin: int, rows: int) -> Tensor | None:
    """The pointers of a tile's rows, if there are any."""
    return None if pointed is None else pointed[begin : begin + rows]


class Tiles:
    """Steps a model's rows in fp32 on `device`, `rows` of them at a time.

    Raises `ModelBroken` if the library gives a row different bits in different places of a tile, because then no
    result would be reproducible.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        config = model.config
        self.rows = TILE[device.type]
        self.hidden_size = padded_size(config.hidden_size)
        self._device = device
        self._config = config
        self._cell = cell_function(config)
        weights = padded_weights(model)
        self._w = {name: weight.to(device) for name, weight in weights.items()}
        self.input_table = input_table(weights).to(device) if _has_table(config) else None
        self._head = head(weights).to(device)
        self._check_exactness()

    def padded(self, rows: int) -> int:
        """The number of rows rounded up to whole tiles."""
        return -(-rows // self.rows) * self.rows

    def step(
        self, tokens: Tensor, state: tuple[Tensor, ...], pointed: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step of whole tiles: logits (B, V) and the new state, each tensor (L, B, H), H padded.

        `pointed` (B, 2 K + 2) has the rows of `pointers.Pointed`, for a model with pointers.
        """
        tiles = [
            self._tile(
                tokens[t : t + self.rows],
                tuple(s[:, t : t + self.rows] for s in state),
                _rows_of(pointed, t, self.rows),
            )
            for t in range(0, len(tokens), self.rows)
        ]
        logits = torch.cat([tile[0] for tile in tiles])
        return logits, tuple(torch.cat(parts, dim=1) for parts in zip(*(tile[1] for tile in tiles), strict=True))

    def input(self, tokens: Tensor, pointed: Tensor | None = None) -> Tensor:
        """The input's share of layer 0's gates by itself: whole tiles of tokens (B,) -> (B, G*H), H padded."""
        shares = [
            self._input_share(tokens[t : t + self.rows], _rows_of(pointed, t, self.rows))
            for t in range(0, len(tokens), self.rows)
        ]
        return torch.cat(shares)

    def logits(self, h: Tensor, pointed: Tensor | None = None) -> Tensor:
        """The head by itself: whole tiles of the last layer's state (B, H) -> logits (B, V)."""
        tiles = [
            self._logits(h[t : t + self.rows], _rows_of(pointed, t, self.rows)) for t in range(0, len(h), self.rows)
        ]
        return torch.cat(tiles)

    def _tile(
        self, tokens: Tensor, state: tuple[Tensor, ...], pointed: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One tile through every layer and the head."""
        layers: list[tuple[Tensor, ...]] = []
        for l in range(self._config.num_layers):
            if l == 0:
                gates = self._input_share(tokens, pointed)
            else:
                gates = linear(layers[-1][0], self._w[f"layers.{l}.weight_ih"], self._w[f"layers.{l}.bias"])
            U, b_hn = self._w[f"layers.{l}.weight_hh"], self._w.get(f"layers.{l}.bias_hn")
            layers.append(self._cell(gates, tuple(s[l].contiguous() for s in state), U, b_hn))
        logits = self._logits(layers[-1][0], pointed)
        return logits, tuple(torch.stack(tensors) for tensors in zip(*layers, strict=True))

    def _input_share(self, tokens: Tensor, pointed: Tensor | None) -> Tensor:
        """The input's share of layer 0's gates, of one tile."""
        if self.input_table is not None:
            return self.input_table[tokens]
        return linear(self._input(tokens, pointed), self._w["layers.0.weight_ih"], self._w["layers.0.bias"])

    def _input(self, tokens: Tensor, pointed: Tensor | None) -> Tensor:
        """The token's row of the embedding, and the rows of the pointers' tables added one after the other."""
        x = self._w["embedding.weight"][tokens]
        pointers = self._config.pointers
        if pointers is None or pointed is None:
            return x
        K = pointers.size
        for k in range(K):
            x = x + self._w["pointers.weight"][k][pointed[:, k]]
            if pointers.matches:
                x = x + self._w["pointers.match"][k][pointed[:, K + k]]
        if pointers.places:
            x = x + self._w["pointers.place"][pointed[:, 2 * K]]
        if pointers.counts:
            x = x + self._w["pointers.count"][pointed[:, 2 * K + 1]]
        return x

    def _add_gates(self, logits: Tensor, h: Tensor, pointed: Tensor) -> Tensor:
        """Each pointer's gate added to the logit of the token that it names, one pointer after the other."""
        K, V = self._w["pointers.gate"].shape[0], self._config.vocabulary_size
        gates = linear(h, self._w["pointers.gate"])
        rows = torch.arange(len(h), device=self._device)
        for k in range(K):
            gate = gates[:, k] + self._w["pointers.gate_bias"][k][pointed[:, K + k]]
            named = pointed[:, k]
            gate = gate.masked_fill(named == V, 0.0)
            logits = logits.index_put((rows, named.clamp_max(V - 1)), gate, accumulate=True)
        return logits

    def _logits(self, h: Tensor, pointed: Tensor | None) -> Tensor:
        """The head on one tile: the last layer's state (rows, H) -> logits (rows, V)."""
        logits = linear(h, self._head, self._w["head.bias"])
        return logits if pointed is None else self._add_gates(logits, h, pointed)

    @torch.inference_mode()
    def _check_exactness(self) -> None:
        """Raises `ModelBroken` unless random rows have the same bits in another order."""
        generator = torch.Generator().manual_seed(1)
        config = self._config
        tokens = torch.randint(config.vocabulary_size, (self.rows,), generator=generator).to(self._device)
        shape = (config.num_layers, self.rows, self.hidden_size)
        state = tuple(
            (torch.rand(shape, generator=generator) * 2 - 1).to(self._device) for _ in range(config.state_tensors)
        )
        pointed = self._random_pointed(generator)
        logits, after = self._tile(tokens, state, pointed)
        turn = torch.arange(self.rows, device=self._device).roll(5)
        logits_turned, after_turned = self._tile(
            tokens[turn], tuple(s[:, turn] for s in state), None if pointed is None else pointed[turn]
        )
        same = torch.equal(logits[turn], logits_turned) and all(
            torch.equal(a[:, turn], b) for a, b in zip(after, after_turned, strict=True)
        )
        if not same:
            raise ModelBroken(
                f"torch {torch.__version__} on {self._device} gives a row of a {self.rows}-row tile other bits at "
                "another place; a backend of torch operations cannot be exact here"
            )

    def _random_pointed(self, generator: torch.Generator) -> Tensor | None:
        """Rows of the pointers' tables drawn at random, None for a model without pointers."""
        pointers = self._config.pointers
        if pointers is None:
            return None
        sizes = [self._config.vocabulary_size + 1] * pointers.size + [max(pointers.matches, 1)] * pointers.size
        sizes += [max(pointers.places, 1), max(pointers.counts, 1)]
        columns = [torch.randint(size, (self.rows,), generator=generator) for size in sizes]
        return torch.stack(columns, dim=1).to(self._device)
