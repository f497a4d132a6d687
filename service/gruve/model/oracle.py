"""The network in float64 numpy, gate by gate and row by row: what every other implementation is held against.

Slow on purpose. Shares no code with the rest; the equations stand in `cells.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gruve.model.config import ModelConfig

Array = NDArray[np.float64]


class Oracle:
    """One sequence of a model, stepped in float64 from the weights as stored."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, ArrayLike]) -> None:
        self.config = config
        self._w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
        self.h: list[Array] = [np.zeros(config.hidden_size) for _ in range(config.num_layers)]
        self.c: list[Array] = [np.zeros(config.hidden_size) for _ in range(config.num_layers)]

    def step(self, token: int) -> Array:
        """Consumes one token and returns the logits (V,)."""
        x = self._w["embedding.weight"][token]
        for l in range(self.config.num_layers):
            self._layer(l, x)
            x = self.h[l]
        if self.config.tied_head and self.config.embedding_size != self.config.hidden_size:
            x = self._w["head.projection"] @ x
        head = self._w["embedding.weight" if self.config.tied_head else "head.weight"]
        logits: Array = head @ x + self._w["head.bias"]
        return logits

    def run(self, tokens: Sequence[int]) -> Array:
        """The logits (T, V) after each of `tokens`."""
        return np.stack([self.step(token) for token in tokens])

    def _layer(self, l: int, x: Array) -> None:
        H, h = self.config.hidden_size, self.h[l]

        def rows(name: str, gate: int) -> Array:
            return self._w[f"layers.{l}.{name}"][gate * H : (gate + 1) * H]

        def x_part(gate: int) -> Array:
            return rows("weight_ih", gate) @ x + rows("bias", gate)

        def h_part(gate: int, state: Array = h) -> Array:
            return rows("weight_hh", gate) @ state

        if self.config.cell == "elman":
            self.h[l] = np.tanh(x_part(0) + h_part(0))
        elif self.config.cell == "lstm":
            i = sigmoid(x_part(0) + h_part(0))
            f = sigmoid(x_part(1) + h_part(1))
            g = np.tanh(x_part(2) + h_part(2))
            o = sigmoid(x_part(3) + h_part(3))
            self.c[l] = f * self.c[l] + i * g
            self.h[l] = o * np.tanh(self.c[l])
        else:
            r = sigmoid(x_part(0) + h_part(0))
            z = sigmoid(x_part(1) + h_part(1))
            if self.config.reset == "before":
                n = np.tanh(x_part(2) + h_part(2, r * h))
            else:
                n = np.tanh(x_part(2) + r * (h_part(2) + self._w[f"layers.{l}.bias_hn"]))
            self.h[l] = (1 - z) * h + z * n


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * a))
