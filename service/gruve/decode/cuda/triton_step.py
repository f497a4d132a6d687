"""One step of a call's rows in fused Triton kernels: one per layer (two with reset=before), then head and sampling.

Packs the weights, holds the operands, and launches the kernels. Knows the kernels and their tiles, not streams or
graphs.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import triton
from torch import Tensor

from gruve.decode import Arithmetic
from gruve.decode.cuda import draw, layers
from gruve.decode.cuda.memory import Memory, Rows
from gruve.decode.cuda.pointing import PointerMemory
from gruve.decode.cuda.pool import StopPool
from gruve.decode.cuda.torch_step import TorchTail
from gruve.decode.int8 import Int8Step
from gruve.decode.tiles import Tiles
from gruve.decode.weight_packing import head, input_table, padded_size, padded_weights
from gruve.model.config import ModelConfig
from gruve.model.repository import Model

MAX_TABLE_ENTRIES = 1 << 26
"""With more entries (256 MiB), layer 0's input projection is computed instead of looked up."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """How a kernel divides its work.

    It is the same for every batch size, so that bits do not depend on the batch size.
    """

    rows: int
    units: int
    depth: int
    """The elements of a product's inner dimension loaded at once; divides padded H and E."""
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """The tiles for one precision."""

    layer: Tile
    head: Tile
    """`units` is not used: the head's tile has the whole vocabulary. See `head_tile`."""
    precision: str
    """The type of the products' operands, `float16`, `float32` or `int8`. States are fp32, sums fp32 or s32."""


HALF = Tiling(Tile(128, 32, 64, 8, 3), Tile(16, 0, 64, 8, 3), "float16")
FULL = Tiling(Tile(32, 32, 32, 4, 2), Tile(16, 0, 32, 8, 2), "float32")


def head_tile(tiling: Tiling, tokens: int) -> Tile:
    """The head's tile for `tokens` tokens, a power of two. Above 256 it has more warps and less depth."""
    tile = tiling.head
    return tile if tokens <= 256 else dataclasses.replace(tile, warps=2 * tile.warps, depth=min(32, tile.depth))


def tiling_of(config: ModelConfig) -> Tiling:
    """The tiling of the model's precision. Weights that are stored in fp32 are multiplied in fp32."""
    return HALF if config.precision == "float16" else FULL


class TritonStep:
    """Steps in fused kernels; see `gruve.decode.cuda.step.Step`.

    For a vocabulary of more than `draw.MAX_VOCABULARY` tokens, torch operations compute the head and sample.
    """

    arithmetic: Arithmetic = "float32"
    pointers: PointerMemory | None = None

    def __init__(self, model: Model, device: torch.device, tiling: Tiling | None = None) -> None:
        config = model.config
        self._config = config
        self._tiling = tiling or self._default_tiling(config)
        layer = self._tiling.layer
        width = max(layer.units, layer.depth, self._tiling.head.depth)
        self.hidden_size = padded_size(config.hidden_size, width)
        self.kinds: tuple[bool, ...] = (False,)
        outputs = config.vocabulary_size + (0 if config.pointers is None else config.pointers.size)
        fused = outputs <= draw.MAX_VOCABULARY
        if not fused:
            self.kinds = (True, False)
        self.description = (
            f"triton {triton.__version__} {self._tiling} {'fused' if fused else 'torch ' + torch.__version__}"
        )
        self._tiles = self._pack(model, width, device, fused=fused)

    def attach(self, memory: Memory, stops: StopPool) -> None:
        """See `Step`."""
        self._memory = memory
        self._stops = stops
        self._tail = None if self._tiles is None else TorchTail(memory, stops)
        H, L, max_rows = self.hidden_size, self._config.num_layers, memory.max_rows
        device = memory.states.device
        self._operands = torch.zeros(2, L * max_rows * H, dtype=self._dtype, device=device)
        before = self._config.reset == "before"
        self._reset = torch.zeros(max_rows * H if before else 1, dtype=self._dtype, device=device)
        self._update = torch.zeros(max_rows * H if before else 1, device=device)

    def begin(self, rows: Rows) -> None:
        """See `Step`."""
        self._operand(0, rows).copy_(rows.states[0])

    def poison(self) -> None:
        """See `Step`."""
        for buffer in (self._operands, self._reset, self._update):
            buffer.fill_(math.nan if buffer.is_floating_point() else -77)

    def step(self, rows: Rows, parity: int, *, plain: bool) -> None:
        """See `Step`."""
        before, after = self._operand(parity, rows), self._operand(1 - parity, rows)
        for l in range(self._config.num_layers):
            self._layer(l, rows, before[l], after)
        if self._tail is not None and self._tiles is not None:
            self._torch_tail(rows, plain=plain)
        else:
            self._head_and_draw(rows, after[-1])

    def _layer(self, l: int, rows: Rows, before: Tensor, after: Tensor) -> None:
        tile, H = self._tiling.layer, self.hidden_size
        grid = (H // tile.units, triton.cdiv(rows.size, tile.rows))
        x, K, kind = (after[l - 1], H, layers.BELOW) if l else (self._x, self._input_size, self._input)
        shape = {
            "X": kind,
            "H": H,
            "K": K,
            "BM": tile.rows,
            "BU": tile.units,
            "BK": tile.depth,
            "PRECISION": "ieee",
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }
        W, U, b, h = self._W[l], self._U[l], self._b[l], rows.states[0, l]
        if self._config.reset == "before":
            layers.reset_and_update[grid](
                rows.integers, x, W, U, b, h, before, self._reset, self._update, rows.size, **shape
            )
            layers.candidate[grid](
                rows.integers, x, W, U, b, h, self._reset, self._update, after[l], rows.size, **shape
            )
            return
        cell = {"gru": layers.GRU, "lstm": layers.LSTM, "elman": layers.ELMAN}[self._config.cell]
        c = rows.states[-1, l]
        layers.layer[grid](
            rows.integers, x, W, U, b, self._b_hn[l], h, c, before, after[l], rows.size, CELL=cell, **shape
        )

    def _head_and_draw(self, rows: Rows, operand: Tensor) -> None:
        tile, memory = head_tile(self._tiling, len(self._head_bias)), self._memory
        draw.head_and_draw[(triton.cdiv(rows.size, tile.rows),)](
            rows.integers,
            rows.reals,
            rows.inbox,
            rows.outbox,
            rows.logits,
            memory.seen,
            memory.bias,
            memory.masks,
            self._stops.entries,
            operand,
            self._head,
            self._head_steps,
            self._head_bias,
            self._pointed,
            self._gate_bias,
            rows.size,
            rows.logits.shape[0],
            V=self._config.vocabulary_size,
            H=self.hidden_size,
            BR=tile.rows,
            BV=len(self._head_bias),
            BK=tile.depth,
            PRECISION=self._tiling.precision,
            K=0 if self._config.pointers is None else self._config.pointers.size,
            MATCHES=1 if self._config.pointers is None else max(self._config.pointers.matches, 1),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=False,
        )

    def _torch_tail(self, rows: Rows, *, plain: bool) -> None:
        if self._tiles is not None and self._tail is not None:
            self._tail.step(rows, self._tail_logits(rows, self._tiles), plain=plain)

    def _tail_logits(self, rows: Rows, tiles: Tiles | Int8Step) -> Tensor:
        """The head in torch."""
        last = rows.states[0, -1]
        padded = torch.nn.functional.pad(last[:, : tiles.hidden_size], (0, 0, 0, tiles.padded(rows.size) - rows.size))
        return tiles.logits(padded)[: rows.size]

    def _operand(self, side: int, rows: Rows) -> Tensor:
        """(L, B, H): one of the two copies that steps use in turn."""
        L, H = self._config.num_layers, self.hidden_size
        return self._operands[side, : L * rows.size * H].view(L, rows.size, H)

    def _default_tiling(self, config: ModelConfig) -> Tiling:
        return tiling_of(config)

    def _pack(self, model: Model, width: int, device: torch.device, *, fused: bool) -> Tiles | Int8Step | None:
        """Converts the weights to the type of the products, and biases and the input table to fp32.

        Returns torch's head, or None if `fused`.
        """
        w = padded_weights(model, width)
        config, L, H = self._config, self._config.num_layers, self.hidden_size
        self._dtype = torch.float16 if self._tiling.precision == "float16" else torch.float32

        def operand(weight: Tensor) -> Tensor:
            return weight.to(device, self._dtype).contiguous()

        self._W = [operand(w[f"layers.{l}.weight_ih"]) for l in range(L)]
        self._U = [operand(w[f"layers.{l}.weight_hh"]) for l in range(L)]
        self._b = [w[f"layers.{l}.bias"].to(device) for l in range(L)]
        nothing = torch.zeros(H)
        self._b_hn = [w.get(f"layers.{l}.bias_hn", nothing).to(device) for l in range(L)]
        small = config.vocabulary_size * config.gates * H <= MAX_TABLE_ENTRIES
        self._x = input_table(w).to(device) if small else operand(w["embedding.weight"])
        self._input = layers.TABLE if small else layers.EMBEDDING
        self._input_size = self._W[0].shape[1]
        tokens = max(16, triton.next_power_of_2(config.vocabulary_size))
        self._head = torch.zeros(tokens, H, dtype=self._dtype, device=device)
        self._head[: config.vocabulary_size] = operand(head(w))
        self._head_bias = torch.zeros(tokens, device=device)
        self._head_bias[: config.vocabulary_size] = w["head.bias"].to(device)
        # For the arguments of a kernel that does not read them.
        self._head_steps = self._gate_bias = self._head_bias
        self._pointed = torch.zeros(1, dtype=torch.int32, device=device)
        return None if fused else Tiles(model, device)
