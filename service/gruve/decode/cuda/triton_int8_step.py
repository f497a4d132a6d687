"""One step of a call's rows in the int8 arithmetic: fused Triton kernels on tensor cores, and the bits of every CPU.

Packs the integers of `decode/int8.py` for the kernels and launches them. Not run on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from gruve.decode import Arithmetic, int8
from gruve.decode.cuda import int8_layers, point
from gruve.decode.cuda.memory import Memory, Rows
from gruve.decode.cuda.pointing import PointerMemory
from gruve.decode.cuda.pool import StopPool
from gruve.decode.cuda.records import Field
from gruve.decode.cuda.triton_step import Tile, Tiling, TritonStep
from gruve.decode.int8 import Int8Step, IntegerMatrix
from gruve.decode.tiles import Tiles
from gruve.model.config import ModelConfig
from gruve.model.repository import Model

INT8 = Tiling(Tile(128, 16, 64, 8, 3), Tile(16, 0, 64, 8, 3), "int8")
CELL = {"gru": int8_layers.GRU, "lstm": int8_layers.LSTM, "elman": int8_layers.ELMAN}


class TritonInt8Step(TritonStep):
    """Steps in fused kernels; see `gruve.decode.cuda.step.Step`.

    Torch operations compute layer 0's input where the vocabulary is too large for a table, and the head and the samples
    where it is too large for one tile.
    """

    arithmetic: Arithmetic = "int8"

    def attach(self, memory: Memory, stops: StopPool) -> None:
        """See `Step`."""
        super().attach(memory, stops)
        pointers, device = self._config.pointers, memory.states.device
        if pointers is not None:
            self.pointers = PointerMemory(pointers, self._config.vocabulary_size, memory.empty, device)
            width = 2 * pointers.size + 2
            self._pointed = torch.zeros(memory.max_rows * width, dtype=torch.int32, device=device)

    def poison(self) -> None:
        """See `Step`."""
        super().poison()
        self._pointed.fill_(-77)

    def begin(self, rows: Rows) -> None:
        """See `Step`."""
        self._operand(0, rows).copy_(int8.integer_inputs(rows.states[0]))

    def step(self, rows: Rows, parity: int, *, plain: bool) -> None:
        """See `Step`."""
        self._point(rows)
        if self._inputs is not None:
            shares = self._inputs.input(rows.integers[:, Field.PENDING], self._pointed_rows(rows))
            self._x = self._by_gate(shares, 1)
        super().step(rows, parity, plain=plain)

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
            self._pointed,
            rows.size,
            V=self._config.vocabulary_size,
            K=config.size,
            DISTANCES=len(config.bars),
            LONGEST=transcripts.longest,
            START=config.start_token,
            MATCHES=config.matches,
            PLACES=config.places,
            PLACE_STEP=config.place_step,
            COUNTS=config.counts,
        )

    def _pointed_rows(self, rows: Rows) -> Tensor | None:
        """The pointers (B, 2 K + 2) for torch, within bounds also for inactive rows; None for a model without."""
        if self._config.pointers is None:
            return None
        width = 2 * self._config.pointers.size + 2
        return self._pointed[: rows.size * width].view(rows.size, width).clamp_min(0).to(torch.int64)

    def _tail_logits(self, rows: Rows, tiles: Tiles | Int8Step) -> Tensor:
        logits = super()._tail_logits(rows, tiles)
        return tiles.gated(logits, self._pointed_rows(rows)) if isinstance(tiles, Int8Step) else logits

    def _layer(self, l: int, rows: Rows, before: Tensor, after: Tensor) -> None:
        tile, H = self._tiling.layer, self.hidden_size
        grid = (H // tile.units, triton.cdiv(rows.size, tile.rows))
        x, X = (after[l - 1], int8_layers.BELOW) if l else (self._x, self._input)
        W, W_steps = self._W[l], self._W_steps[l]
        U, U_steps, b, h = self._U[l], self._U_steps[l], self._b[l], rows.states[0, l]
        shape = {
            "X": X,
            "V": self._config.vocabulary_size,
            **self._sizes,
            "H": H,
            "BM": tile.rows,
            "BU": tile.units,
            "BK": tile.depth,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            "enable_fp_fusion": False,
        }
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
        products = [self._matrix(made.W[l] or made.U[l]) for l in range(L)]
        self._U, self._U_steps = [integers for integers, _ in recurrent], [steps for _, steps in recurrent]
        self._W, self._W_steps = [integers for integers, _ in products], [steps for _, steps in products]
        self._b = [self._by_gate(made.weights[f"layers.{l}.bias"], 0) for l in range(L)]
        nothing = torch.zeros(config.hidden_size, device=device)
        self._b_hn = [self._by_gate(made.weights.get(f"layers.{l}.bias_hn", nothing), 0) for l in range(L)]
        self._inputs = made if made.table is None else None
        if made.table is not None:
            self._x = self._by_gate(made.table, 1)
        self._input = int8_layers.ROW if made.table is None else int8_layers.TOKEN
        self._pack_pointers(made)
        outputs = len(made.head_bias)  # the tokens, and each pointer's gate
        tokens = max(16, triton.next_power_of_2(outputs))
        self._head = torch.zeros(tokens, self.hidden_size, dtype=torch.int8, device=device)
        self._head[:outputs, : config.hidden_size] = made.head.integers
        self._head_steps, self._head_bias = torch.zeros(2, tokens, device=device)
        self._head_steps[:outputs], self._head_bias[:outputs] = made.head.steps, made.head_bias
        return None if fused else made

    def _pack_pointers(self, made: Int8Step) -> None:
        """One table of what pointers add to layer 0's input (N, G, H), and the biases of their gates (K, matches)."""
        pointers, device = self._config.pointers, made.head_bias.device
        self._sizes = dict.fromkeys(("K", "MATCHES", "PLACES", "COUNTS"), 0)
        self._pointed = torch.zeros(1, dtype=torch.int32, device=device)
        self._pointer_rows = self._gate_bias = torch.zeros(1, device=device)
        if pointers is None:
            return
        self._sizes = {
            "K": pointers.size,
            "MATCHES": pointers.matches,
            "PLACES": pointers.places,
            "COUNTS": pointers.counts,
        }
        self._gate_bias = made.weights["pointers.gate_bias"].contiguous()
        tables = [made.added[name] for name in ("weight", "match", "place", "count") if name in made.added]
        if tables:
            width = tables[0].shape[-1]
            self._pointer_rows = self._by_gate(torch.cat([table.reshape(-1, width) for table in tables]), 1)

    def _matrix(self, *parts: IntegerMatrix | None) -> tuple[Tensor, Tensor]:
        """The integers (G, H, H) and their steps (G, H), H padded."""
        given = [part for part in parts if part is not None]
        integers, steps = torch.cat([part.integers for part in given]), torch.cat([part.steps for part in given])
        more = self.hidden_size - self._config.hidden_size
        return torch.nn.functional.pad(self._by_gate(integers, 0), (0, more)).contiguous(), self._by_gate(steps, 0)

    def _by_gate(self, values: Tensor, dim: int) -> Tensor:
        """`values` with its dimension `dim` (G*H) split into (G, H), H padded with zeros."""
        H = self._config.hidden_size
        gates = values.reshape(*values.shape[:dim], -1, H, *values.shape[dim + 1 :])
        after = values.dim() - 1 - dim
        return torch.nn.functional.pad(gates, [0, 0] * after + [0, self.hidden_size - H]).contiguous()
