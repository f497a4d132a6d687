"""One step of a call's rows in the int8 arithmetic: fused Triton kernels on tensor cores, and the bits of every CPU.

Packs the integers of `decode/int8.py` for the kernels and launches them. Not run on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from gruve.decode import Arithmetic, int8
from gruve.decode.cuda import int8_layers, layers
from gruve.decode.cuda.memory import Rows
from gruve.decode.cuda.shapes import Tile
from gruve.decode.cuda.triton_step import CELL, Tiling, TritonStep
from gruve.decode.int8 import Int8Step, IntegerMatrix
from gruve.model.config import ModelConfig
from gruve.model.repository import Model

INT8 = Tiling(Tile(128, 16, 64, 8, 3), Tile(16, 0, 64, 8, 3), "int8")


class TritonInt8Step(TritonStep):
    """Steps in fused kernels; see `TritonStep`."""

    arithmetic: Arithmetic = "int8"

    def begin(self, rows: Rows) -> None:
        """See `Step`."""
        self._operand(0, rows).copy_(int8.integer_inputs(rows.states[0]))

    def _layer(self, l: int, rows: Rows, before: Tensor, after: Tensor) -> None:
        tile, H = self._tiling.layer, self.hidden_size
        grid = (H // tile.units, triton.cdiv(rows.size, tile.rows))
        x, X = (after[l - 1], layers.BELOW) if l else (self._x, self._input)
        W, W_steps = self._W[l], self._W_steps[l]
        U, U_steps, b, h = self._U[l], self._U_steps[l], self._b[l], rows.states[0, l]
        shape = {"X": X, "sizes": self._sizes, "tile": tile, "num_warps": tile.warps, "num_stages": tile.stages}
        shape |= {"enable_fp_fusion": False}
        given = (rows.integers, x, W, W_steps, U, U_steps, b, self._pointed, self._pointer_rows)
        if self._config.reset == "before":
            int8_layers.reset_and_update[grid](*given, h, before, self._reset, self._update, rows.size, **shape)
            int8_layers.candidate[grid](*given, h, self._reset, self._update, after[l], rows.size, **shape)
            return
        c, b_hn = rows.states[-1, l], self._b_hn[l]
        int8_layers.layer[grid](*given, b_hn, h, c, before, after[l], rows.size, CELL=CELL[self._config.cell], **shape)

    def _default_tiling(self, config: ModelConfig) -> Tiling:  # noqa: ARG002 - one for every model
        return INT8

    def _pack(self, model: Model, width: int, device: torch.device, *, fused: bool) -> Int8Step | None:  # noqa: ARG002
        """Pads the integers of the statement's own step. Returns that step for its head, or None if `fused`."""
        config, L = self._config, self._config.num_layers
        self._dtype = torch.int8
        made = Int8Step(model, device)
        recurrent = [self._matrix(made.U[l], made.n[l]) for l in range(L)]
        # Layer 0 has no product with its input; the arguments of its kernel are not read.
        products = [self._matrix(W) if (W := made.W[l]) else recurrent[l] for l in range(L)]
        self._U, self._U_steps = [integers for integers, _ in recurrent], [steps for _, steps in recurrent]
        self._W, self._W_steps = [integers for integers, _ in products], [steps for _, steps in products]
        self._b = [self._by_gate(made.weights[f"layers.{l}.bias"], 0) for l in range(L)]
        nothing, more = torch.zeros(config.hidden_size, device=device), self.hidden_size - config.hidden_size
        given = [made.weights.get(f"layers.{l}.bias_hn", nothing) for l in range(L)]
        self._b_hn = [torch.nn.functional.pad(bias, (0, more)) for bias in given]
        self._inputs = made if made.table is None else None
        self._pack_input(made.table, made.added, made.weights, device)
        outputs = len(made.head_bias)  # the tokens, and each pointer's gate
        self._head = torch.zeros(self._tokens, self.hidden_size, dtype=torch.int8, device=device)
        self._head[:outputs, : config.hidden_size] = made.head.integers
        self._head_steps, self._head_bias = torch.zeros(2, self._tokens, device=device)
        self._head_steps[:outputs], self._head_bias[:outputs] = made.head.steps, made.head_bias
        return None if fused else made

    def _matrix(self, *parts: IntegerMatrix | None) -> tuple[Tensor, Tensor]:
        """The integers (G, H, H) and their steps (G, H), H padded."""
        given = [part for part in parts if part is not None]
        integers, steps = torch.cat([part.integers for part in given]), torch.cat([part.steps for part in given])
        more = self.hidden_size - self._config.hidden_size
        return torch.nn.functional.pad(self._by_gate(integers, 0), (0, more)).contiguous(), self._by_gate(steps, 0)
