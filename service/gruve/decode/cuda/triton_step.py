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
from gruve.decode.cuda import draw, layers, point
from gruve.decode.cuda.memory import Memory, Rows
from gruve.decode.cuda.pointing import PointerMemory
from gruve.decode.cuda.pool import StopPool
from gruve.decode.cuda.records import Field
from gruve.decode.cuda.shapes import Sizes, Tile
from gruve.decode.cuda.torch_step import TorchTail
from gruve.decode.int8 import Int8Step
from gruve.decode.tiles import Tiles
from gruve.decode.weight_packing import head, input_tables, padded_size, padded_weights, table_entries
from gruve.model.config import ModelConfig
from gruve.model.repository import Model

MAX_TABLE_ENTRIES = 1 << 24
"""With more entries (64 MiB), pointers' included, torch operations compute layer 0's input projection."""
POINTERS_VERSION = 1
"""The version of what float32 computes for pointers. Any change of a bit needs a new one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """The tiles for one precision."""

    layer: Tile
    head: Tile
    """Without `units`, which are the whole vocabulary."""
    precision: str
    """The type of the products' operands, `float16`, `float32` or `int8`. States are fp32, sums fp32 or s32."""
    wide_head: Tile | None = dataclasses.field(default=None, repr=False)
    """The head's tile for more than 256 tokens, if it is another one."""


CELL = {"gru": layers.GRU, "lstm": layers.LSTM, "elman": layers.ELMAN}
# Chosen by the compiler's figures for sm_80 and sm_90; not run on a GPU. With more than 256 tokens a thread holds so
# much of the distribution that the search for the last token of top-k and top-p spills registers with any number of
# warps. In fp16 the wide head spills least: 12 to 28 bytes a thread if the number of tokens is a multiple of 4, else up
# to 232, because rows are not aligned then; 16 warps and depth 32 spill 108 to 120, else up to 1,464. In fp32 it spills
# 76 to 100, else up to 464; 16 warps and depth 32 spill 92 to 112, else up to 1,412. In int8 the common head spills 16
# to 60 if the number is a multiple of 4.
HALF = Tiling(Tile(128, 32, 64, 8, 3), Tile(16, 0, 64, 8, 3), "float16", wide_head=Tile(16, 0, 16, 8, 3))
FULL = Tiling(Tile(32, 32, 32, 4, 2), Tile(16, 0, 32, 8, 2), "float32", wide_head=Tile(16, 0, 16, 8, 2))


def with_head_for(tiling: Tiling, tokens: int) -> Tiling:
    """The tiling with the head's tile for `tokens` tokens."""
    return tiling if tokens <= 256 else dataclasses.replace(tiling, head=tiling.wide_head or tiling.head)


class TritonStep:
    """Steps in fused kernels; see `gruve.decode.cuda.step.Step`.

    Torch operations compute layer 0's input where the vocabulary is too large for a table, and the head and the samples
    where it is too large for one tile.
    """

    arithmetic: Arithmetic = "float32"
    pointers: PointerMemory | None = None

    def __init__(self, model: Model, device: torch.device, tiling: Tiling | None = None) -> None:
        config = model.config
        self._config = config
        outputs = config.vocabulary_size + (0 if config.pointers is None else config.pointers.size)
        self._tokens = max(16, triton.next_power_of_2(outputs))
        self._tiling = with_head_for(tiling or self._default_tiling(config), self._tokens)
        layer = self._tiling.layer
        width = max(layer.units, layer.depth, self._tiling.head.depth)
        self.hidden_size = padded_size(config.hidden_size, width)
        self.plain_values: tuple[bool, ...] = (False,)
        self._inputs: Tiles | Int8Step | None = None
        """Computes layer 0's input; None if it is looked up."""
        fused = outputs <= draw.MAX_VOCABULARY
        if not fused:
            self.plain_values = (True, False)
        self._tiles = self._pack(model, width, device, fused=fused)
        how = "fused" if self._tiles is None and self._inputs is None else f"torch {torch.__version__}"
        pointers = "" if config.pointers is None else f" pointers {POINTERS_VERSION}"
        self.description = f"triton {triton.__version__} {self._tiling} {how}{pointers}"

    def attach(self, memory: Memory, stops: StopPool) -> None:
        """See `Step`."""
        self._memory = memory
        self._stops = stops
        self._tail = TorchTail(memory, stops)
        H, L, max_rows = self.hidden_size, self._config.num_layers, memory.max_rows
        device = memory.states.device
        self._operands = torch.zeros(2, L * max_rows * H, dtype=self._dtype, device=device)
        before = self._config.reset == "before"
        self._reset = torch.zeros(max_rows * H if before else 1, dtype=self._dtype, device=device)
        self._update = torch.zeros(max_rows * H if before else 1, device=device)
        pointers = self._config.pointers
        if pointers is not None:
            self.pointers = PointerMemory(pointers, self._config.vocabulary_size, memory.empty, device)
            self._pointed = torch.zeros(max_rows * (2 * pointers.size + 2), dtype=torch.int32, device=device)

    def begin(self, rows: Rows) -> None:
        """See `Step`."""
        self._operand(0, rows).copy_(rows.states[0])

    def poison(self) -> None:
        """See `Step`."""
        for buffer in (self._operands, self._reset, self._update, self._pointed):
            buffer.fill_(math.nan if buffer.is_floating_point() else -77)

    def step(self, rows: Rows, parity: int, *, plain: bool) -> None:
        """See `Step`."""
        self._point(rows)
        if self._inputs is not None:
            self._x = self._by_gate(self._computed_input(rows, self._inputs), 1)
        before, after = self._operand(parity, rows), self._operand(1 - parity, rows)
        for l in range(self._config.num_layers):
            self._layer(l, rows, before[l], after)
        if self._tiles is None:
            self._head_and_draw(rows, after[-1])
        else:
            self._tail.step(rows, self._tail_logits(rows, self._tiles), plain=plain)

    def _layer(self, l: int, rows: Rows, before: Tensor, after: Tensor) -> None:
        tile, H = self._tiling.layer, self.hidden_size
        grid = (H // tile.units, triton.cdiv(rows.size, tile.rows))
        x, X = (after[l - 1], layers.BELOW) if l else (self._x, self._input)
        shape = {"X": X, "sizes": self._sizes, "tile": tile, "num_warps": tile.warps, "num_stages": tile.stages}
        given = (rows.integers, x, self._W[l], self._U[l], self._b[l], self._pointed, self._pointer_rows)
        h, c, b_hn = rows.states[0, l], rows.states[-1, l], self._b_hn[l]
        if self._config.reset == "before":
            layers.reset_and_update[grid](*given, h, before, self._reset, self._update, rows.size, **shape)
            layers.candidate[grid](*given, h, self._reset, self._update, after[l], rows.size, **shape)
            return
        layers.layer[grid](*given, b_hn, h, c, before, after[l], rows.size, CELL=CELL[self._config.cell], **shape)

    def _point(self, rows: Rows) -> None:
        """Feeds every row's pending token to its pointers."""
        config, transcripts = self._config.pointers, self.pointers
        if config is None or transcripts is None:
            return
        point.point[(rows.size,)](
            rows.integers,
            rows.inbox,
            transcripts.tokens,
            transcripts.places,
            transcripts.bars,
            transcripts.states,
            transcripts.kinds,
            transcripts.advances,
            transcripts.reaches,
            transcripts.steps,
            transcripts.scale,
            self._pointed,
            rows.size,
            DISTANCES=len(config.bars),
            TRANSPOSED=len(config.transposed),
            SCALE=len(config.scale),
            LONGEST=transcripts.longest,
            START=config.start_token,
            PLACE_STEP=config.place_step,
            sizes=self._sizes,
        )

    def _pointed_rows(self, rows: Rows) -> Tensor | None:
        """The pointers (B, 2 K + 2) for torch, within bounds also for inactive rows; None for a model without."""
        if self._config.pointers is None:
            return None
        width = 2 * self._config.pointers.size + 2
        return self._pointed[: rows.size * width].view(rows.size, width).clamp_min(0).to(torch.int64)

    def _head_and_draw(self, rows: Rows, operand: Tensor) -> None:
        tile, memory = self._tiling.head._replace(units=self._tokens), self._memory
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
            sizes=self._sizes,
            tile=tile,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=False,
        )

    def _tail_logits(self, rows: Rows, tiles: Tiles | Int8Step) -> Tensor:
        """The head in torch."""
        more = tiles.padded(rows.size) - rows.size
        last, pointed = rows.states[0, -1][:, : tiles.hidden_size], self._pointed_rows(rows)
        return tiles.logits(_more_rows(last, more), None if pointed is None else _more_rows(pointed, more))[: rows.size]

    def _computed_input(self, rows: Rows, inputs: Tiles | Int8Step) -> Tensor:
        """The input's share of layer 0's gates (B, G*H) in torch."""
        more = inputs.padded(rows.size) - rows.size
        tokens, pointed = _more_rows(rows.integers[:, Field.PENDING, None], more)[:, 0], self._pointed_rows(rows)
        return inputs.input(tokens, None if pointed is None else _more_rows(pointed, more))[: rows.size]

    def _operand(self, side: int, rows: Rows) -> Tensor:
        """(L, B, H): one of the two copies that steps use in turn."""
        L, H = self._config.num_layers, self.hidden_size
        return self._operands[side, : L * rows.size * H].view(L, rows.size, H)

    def _default_tiling(self, config: ModelConfig) -> Tiling:
        """The tiling of the model's precision. Weights that are stored in fp32 are multiplied in fp32."""
        return HALF if config.precision == "float16" else FULL

    def _pack(self, model: Model, width: int, device: torch.device, *, fused: bool) -> Tiles | Int8Step | None:
        """Converts the weights to the type of the products, and biases and the input table to fp32.

        Returns torch's head, or None if `fused`.
        """
        w = padded_weights(model, width)
        config, L, H = self._config, self._config.num_layers, self.hidden_size
        self._dtype = torch.float16 if self._tiling.precision == "float16" else torch.float32

        def operand(weight: Tensor) -> Tensor:
            return weight.to(device, self._dtype).contiguous()

        self._U = [operand(w[f"layers.{l}.weight_hh"]) for l in range(L)]
        # Layer 0 has no product with its input; the arguments of its kernel are not read.
        self._W = [operand(w[f"layers.{l}.weight_ih"]) if l else self._U[0] for l in range(L)]
        self._b = [w[f"layers.{l}.bias"].to(device) for l in range(L)]
        nothing = torch.zeros(H)
        self._b_hn = [w.get(f"layers.{l}.bias_hn", nothing).to(device) for l in range(L)]
        small = table_entries(config) <= MAX_TABLE_ENTRIES
        table, added = input_tables(model.weights, config) if small else (None, {})
        torch_tiles = None if small and fused else Tiles(model, device)
        self._inputs = None if small else torch_tiles
        self._pack_input(table, added, model.weights, device)
        outputs, bias = head(w), w["head.bias"]
        if config.pointers is not None:  # each pointer's gate is one more output
            outputs = torch.cat((outputs, w["pointers.gate"]))
            bias = torch.cat((bias, torch.zeros(config.pointers.size)))
        self._head = torch.zeros(self._tokens, H, dtype=self._dtype, device=device)
        self._head[: len(outputs)] = operand(outputs)
        self._head_bias = torch.zeros(self._tokens, device=device)
        self._head_bias[: len(outputs)] = bias.to(device)
        self._head_steps = self._head_bias  # for an argument that the kernel reads in int8 alone
        return None if fused else torch_tiles

    def _pack_input(
        self, table: Tensor | None, added: dict[str, Tensor], weights: dict[str, Tensor], device: torch.device
    ) -> None:
        """Layer 0's input (V, G, H), one table of what pointers add to it (N, G, H), and their gates' biases.

        Without a table, torch operations compute the input.
        """
        pointers = self._config.pointers
        self._input = layers.ROW if table is None else layers.TOKEN
        # Small tensors stand for the arguments of a kernel that does not read them.
        self._x = torch.zeros(1, device=device) if table is None else self._by_gate(table.to(device), 1)
        self._sizes = Sizes(self._config.vocabulary_size, self.hidden_size)
        self._pointed = torch.zeros(1, dtype=torch.int32, device=device)
        self._pointer_rows = self._gate_bias = torch.zeros(1, device=device)
        if pointers is None:
            return
        self._sizes = Sizes(*self._sizes[:2], pointers.size, pointers.matches, pointers.places, pointers.counts)
        self._gate_bias = weights["pointers.gate_bias"].to(device, torch.float32).contiguous()
        tables = [added[name] for name in ("weight", "match", "place", "count") if name in added]
        if tables:
            width = tables[0].shape[-1]
            self._pointer_rows = self._by_gate(torch.cat([rows.reshape(-1, width) for rows in tables]).to(device), 1)

    def _by_gate(self, values: Tensor, dim: int) -> Tensor:
        """`values` with its dimension `dim` (G*H) split into (G, H), H padded with zeros."""
        gates = values.reshape(*values.shape[:dim], self._config.gates, -1, *values.shape[dim + 1 :])
        after = values.dim() - 1 - dim
        more = self.hidden_size - gates.shape[dim + 1]
        return torch.nn.functional.pad(gates, [0, 0] * after + [0, more]).contiguous()


def _more_rows(values: Tensor, more: int) -> Tensor:
    """`values` (B, N) with `more` rows of zeros."""
    return torch.nn.functional.pad(values, (0, 0, 0, more))
