"""Builds the decode step of a GRU as one ONNX graph, for the runtimes that take such graphs. Needs onnx (optional).

Inputs: tokens (B,), state (L, B, H), uniform (B, 1) in [0, 1). Outputs: tokens_out (B,), state_out, logits (B, V).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gruve.bench.machine import optional_package
from gruve.model.network import to_torch_gru
from gruve.model.repository import Model

onnx = optional_package("onnx")

OPSET = 17
IR_VERSION = 9


def make_step_graph(model: Model, *, products: bool = False) -> bytes:
    """Returns the serialised graph; raises `ValueError` for a cell that is not a GRU. Needs `onnx`.

    `products` writes each layer as matrix products and gates, for quantisers: they leave the GRU operator in float32.
    """
    if model.config.cell != "gru":
        raise ValueError(f"the cell is {model.config.cell!r}; the graph is a GRU's")
    if products and model.config.reset != "after":
        raise ValueError(f"reset is {model.config.reset!r}; the products are those of a GRU that resets after them")
    return _Graph(model, products).serialised()


class _Graph:
    """Collects nodes and constants; batch and vocabulary stay symbolic."""

    def __init__(self, model: Model, products: bool) -> None:
        self._model = model
        self._layer = self._products if products else self._gru
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def serialised(self) -> bytes:
        """Embedding, layers, head, and a draw by inverse CDF."""
        config, w = self._model.config, self._model.weights
        x = self._node("Gather", self._constant("embedding", w["embedding.weight"].numpy()), "tokens")
        x = self._node("Unsqueeze", x, self._constant("axis_0", np.array([0])))  # (1, B, E)
        axis_1 = self._constant("axis_1", np.array([1]))
        states = []
        for l in range(config.num_layers):
            state = self._node("Slice", "state", *(self._constant(f"{n}_{l}", np.array([v])) for n, v in _slice(l)))
            outputs, final = self._layer(l, x, state)
            x = self._node("Squeeze", outputs, axis_1)
            states.append(final)
        h = self._node("Squeeze", x, self._constant("time", np.array([0])))
        self._affine(h, "head", w["head.weight"].numpy(), w["head.bias"].numpy(), output="logits")
        self._node("Concat", *states, output="state_out", axis=0)
        self._draw()
        return self._serialise()

    def _gru(self, l: int, x: str, state: str) -> tuple[str, str]:
        """One layer: outputs (1, 1, B, H) and the final state (1, B, H)."""
        model = self._model
        W, U, b, b_hh = self._weights(l)
        names = [self._constant(f"{name}_{l}", _zrn(value)[None]) for name, value in (("W", W), ("R", U))]
        bias = self._constant(f"B_{l}", np.concatenate((_zrn(b), _zrn(b_hh)))[None])
        outputs, final = f"outputs_{l}", f"final_{l}"
        self._nodes.append(
            onnx.helper.make_node(
                "GRU",
                [x, *names, bias, "", state],
                [outputs, final],
                hidden_size=model.config.hidden_size,
                linear_before_reset=int(model.config.reset == "after"),
            )
        )
        return outputs, final

    def _products(self, l: int, x: str, state: str) -> tuple[str, str]:
        """The same without the GRU operator (Chung et al. 2014, with the reset gate after the product)."""
        W, U, b, b_hh = self._weights(l)
        axis_0 = self._constant(f"layer_{l}", np.array([0]))
        h = self._node("Squeeze", state, axis_0)
        r_x, z_x, n_x = self._thirds(self._affine(self._node("Squeeze", x, axis_0), f"W_{l}", W, b))
        r_h, z_h, n_h = self._thirds(self._affine(h, f"U_{l}", U, b_hh))
        r = self._node("Sigmoid", self._node("Add", r_x, r_h))
        z = self._node("Sigmoid", self._node("Add", z_x, z_h))
        n = self._node("Tanh", self._node("Add", n_x, self._node("Mul", r, n_h)))
        new = self._node("Add", n, self._node("Mul", z, self._node("Sub", h, n)))
        outputs = self._node("Unsqueeze", new, self._constant(f"shape_{l}", np.array([0, 1])))
        return outputs, self._node("Unsqueeze", new, axis_0)

    def _weights(self, l: int) -> tuple[NDArray[np.float32], ...]:
        """W, U and both biases of a layer, gates in torch's order."""
        w = self._model.weights
        b_hn = w.get(f"layers.{l}.bias_hn")
        W, U, b = w[f"layers.{l}.weight_ih"], w[f"layers.{l}.weight_hh"], w[f"layers.{l}.bias"]
        zero = b.new_zeros(self._model.config.hidden_size)
        return tuple(value.numpy() for value in to_torch_gru(W, U, b, zero if b_hn is None else b_hn))

    def _affine(
        self, x: str, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32], output: str = ""
    ) -> str:
        """x W^T + b. A `Gemm` would be shorter, but quantisers look for `MatMul`."""
        product = self._node("MatMul", x, self._constant(name, weight.T))
        return self._node("Add", product, self._constant(f"{name}_bias", bias), output=output)

    def _thirds(self, stacked: str) -> list[str]:
        names = [f"{stacked}_{gate}" for gate in "rzn"]
        self._nodes.append(onnx.helper.make_node("Split", [stacked], names, axis=1))
        return names

    def _draw(self) -> None:
        """The lowest id whose cumulative probability exceeds the uniform number, at most V - 1."""
        probabilities = self._node("Softmax", "logits", axis=1)
        cumulative = self._node("CumSum", probabilities, self._constant("rows", np.array(1)))
        below = self._node("Cast", self._node("LessOrEqual", cumulative, "uniform"), to=onnx.TensorProto.INT64)
        count = self._node("ReduceSum", below, self._constant("over", np.array([1])), keepdims=0)
        last = self._constant("last", np.array(self._model.config.vocabulary_size - 1))
        self._node("Min", count, last, output="tokens_out")

    def _serialise(self) -> bytes:
        config, types, info = self._model.config, onnx.TensorProto, onnx.helper.make_tensor_value_info
        state = [config.num_layers, "B", config.hidden_size]
        graph = onnx.helper.make_graph(
            self._nodes,
            "step",
            [
                info("tokens", types.INT64, ["B"]),
                info("state", types.FLOAT, state),
                info("uniform", types.FLOAT, ["B", 1]),
            ],
            [
                info("tokens_out", types.INT64, ["B"]),
                info("state_out", types.FLOAT, state),
                info("logits", types.FLOAT, ["B", config.vocabulary_size]),
            ],
            self._constants,
        )
        whole = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        onnx.checker.check_model(whole)
        return bytes(whole.SerializeToString())

    def _node(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def _slice(l: int) -> tuple[tuple[str, int], ...]:
    return ("from", l), ("to", l + 1), ("along", 0)


def _zrn(stacked: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gates in ONNX's order: z, r, n instead of r, z, n."""
    r, z, n = np.split(stacked, 3)
    return np.concatenate((z, r, n))
