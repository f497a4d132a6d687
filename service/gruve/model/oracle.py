"""The network in float64 numpy, gate by gate and row by row. Every other implementation is compared with it.

It is slow on purpose. It shares no code with the others but `pointers.py`, which defines what the pointers name. The
equations are in `cells.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gruve.model.config import ModelConfig
from gruve.model.pointers import WINDOW, Pointed, point

Array = NDArray[np.float64]


class Oracle:
    """Steps one sequence of a model in float64, starting from the stored weights."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, ArrayLike]) -> None:
        self.config = config
        self._w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
        self.h: list[Array] = [np.zeros(config.hidden_size) for _ in range(config.num_layers)]
        self.c: list[Array] = [np.zeros(config.hidden_size) for _ in range(config.num_layers)]
        self._transcript: list[int] = []  # the last tokens, for the pointers

    def step(self, token: int) -> Array:
        """Consumes one token and returns the logits (V,)."""
        x = self._w["embedding.weight"][token]
        pointed = self._pointed(token)
        if pointed is not None:
            x = x + self._pointer_rows(pointed)
        for l in range(self.config.num_layers):
            self._layer(l, x)
            x = self.h[l]
        gates = None if pointed is None else self._gates(pointed, x)
        if self.config.tied_head and self.config.embedding_size != self.config.hidden_size:
            x = self._w["head.projection"] @ x
        head = self._w["embedding.weight" if self.config.tied_head else "head.weight"]
        logits: Array = head @ x + self._w["head.bias"]
        if pointed is not None and gates is not None:
            for named, gate in zip(pointed.tokens, gates, strict=True):
                if named < self.config.vocabulary_size:
                    logits[named] += gate
        return logits

    def run(self, tokens: Sequence[int]) -> Array:
        """The logits (T, V) after each of `tokens`."""
        return np.stack([self.step(token) for token in tokens])

    def _pointed(self, token: int) -> Pointed | None:
        if self.config.pointers is None:
            return None
        self._transcript = [*self._transcript[-WINDOW + 1 :], token]
        return point(self.config.pointers, self.config.vocabulary_size, self._transcript)

    def _pointer_rows(self, pointed: Pointed) -> Array:
        """The sum of the pointers' rows that is added to layer 0's input (E,)."""
        w, rows = self._w, np.zeros(self.config.embedding_size)
        for k, (named, match) in enumerate(zip(pointed.tokens, pointed.matches, strict=True)):
            rows += w["pointers.weight"][k, named]
            if "pointers.match" in w:
                rows += w["pointers.match"][k, match]
        for name, row in (("pointers.place", pointed.place_row), ("pointers.count", pointed.count_row)):
            if name in w:
                rows += w[name][row]
        return rows

    def _gates(self, pointed: Pointed, h: Array) -> Array:
        """The number that each pointer adds to the logit of the token it names (K,)."""
        bias = [self._w["pointers.gate_bias"][k, match] for k, match in enumerate(pointed.matches)]
        gates: Array = self._w["pointers.gate"] @ h + np.array(bias)
        return gates

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
