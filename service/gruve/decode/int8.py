"""The int8 arithmetic, stated in torch operations that round as the statement says, on any device.

Every backend that decodes in int8 makes these bits, so all of them have one `numerics_id`. The native backend and the
GPU's kernels compute the same values faster, and are tested against this module.

**Products with a state.** An input h, between -1 and 1, becomes the integer round(127 h), ties to even; what is beyond
1 counts as 1, and NaN too. Each output row of a weight matrix has a scale of its own, 63 / max |w|, and its weights
become round(scale w): 7 bits, so that AVX2 can add two products in 16 bits. The sum of the products is an integer below
2**31, exact in any order; it becomes fp32 once, and a = fma(sum, 1 / (127 scale), a) adds it to what stood there.
This holds for the recurrent products, for the inputs of the layers above 0, and for the head with the pointers' gates.

**Everything else is fp32**, one IEEE operation after the other, rounded to nearest, denormals kept; where two are fused
it is said (`fma`). Layer 0's input is a table, summed in float64 in the order of E. States stay fp32: they are rounded
for the products, and not where a cell blends the old state with the new one. An LSTM's cell state may exceed 1, but no
product takes it: c' = fma(f, c, i * g) and o * tanh(c') are fp32.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from gruve.decode.weight_packing import head, input_tables, table_entries
from gruve.errors import ModelBroken
from gruve.model.config import ModelConfig
from gruve.model.repository import Model

VERSION = 1
"""The version of the arithmetic. Any change of a bit of a logit or of a sampled token needs a new one."""
INPUT_STEPS = 127
WEIGHT_STEPS = 63
MAX_TABLE_ENTRIES = 1 << 24
"""With more entries (64 MiB), pointers' included, layer 0's input projection is computed instead of looked up."""
POLYNOMIAL = ("0x1.44138ap-13", "0x1.5f0890p-10", "0x1.3b2a54p-7", "0x1.c6af6cp-5", "0x1.ebfbe0p-3", "0x1.62e430p-1")
"""(2**f - 1) / f for |f| <= 1/2, the coefficient of f**5 first."""
EXACT_DEPTH = (1 << 24) // (INPUT_STEPS * WEIGHT_STEPS)
"""fp32 holds the sum of this many products exactly, in any order."""


def numerics_id(config: ModelConfig) -> str:
    """The id of this arithmetic, for every backend: 16 hex digits."""
    text = f"int8 {VERSION}{' pointers' if config.pointers is not None else ''}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c of fp32, rounded once."""
    product, addend = a.double() * b.double(), c.double()  # the product is exact in float64
    total = product + addend
    # The rounding error of the sum (Knuth), and with it the sum rounded to odd: rounding that to fp32 rounds once.
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(torch.int64)
    inexact = (error != 0) & (bits & 1 == 0) & total.isfinite()
    away = (error > 0) == (total > 0)
    odd = torch.where(inexact, torch.where(away, bits + 1, bits - 1), bits)
    return odd.view(torch.float64).float()


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + 2**t) with t = -x log2(e)."""
    one = _like(1.0, x)
    power, fraction = _exponential(_clamped(x * _like(float.fromhex("-0x1.715476p0"), x), 126.0))
    return one / (one + fma(power, fraction, power))


def tanh(x: Tensor) -> Tensor:
    """m / (m + 2) with m = e**(2x) - 1."""
    power, fraction = _exponential(_clamped(x * _like(float.fromhex("0x1.715476p1"), x), 26.0))
    m = fma(power, fraction, power - _like(1.0, x))
    return m / (m + _like(2.0, x))


def _exponential(t: Tensor) -> tuple[Tensor, Tensor]:
    """2**n and 2**(t - n) - 1, n the integer nearest t: a polynomial of degree 6 in t - n."""
    magic = _like(float.fromhex("0x1.8p23"), t)
    shifted = t + magic
    f = t - (shifted - magic)
    q = _like(float.fromhex(POLYNOMIAL[0]), t)
    for coefficient in POLYNOMIAL[1:]:
        q = fma(q, f, _like(float.fromhex(coefficient), t))
    exponent = ((shifted.view(torch.int32) & 0xFF) + 127) & 0xFF
    return (exponent << 23).view(torch.float32), q * f


def _clamped(x: Tensor, most: float) -> Tensor:
    """x between -most and most; NaN becomes most."""
    high = _like(most, x)
    x = torch.where(x < high, x, high)
    return torch.where(x > -high, x, -high)


def _like(value: float, x: Tensor) -> Tensor:
    """A scalar of x's type and device; the value must be one of fp32."""
    # Filled on the device: a copy from the host could not be captured in a CUDA graph.
    return torch.full((), value, dtype=torch.float32, device=x.device)


class IntegerMatrix:
    """A weight matrix (rows, K) in whole steps of each row's own size."""

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        exact = weight.double()
        infinite = exact[~exact.isfinite()]
        if len(infinite):
            raise ValueError(f"a weight is {infinite[0].item()}; int8 takes finite ones only")
        most = exact.abs().amax(dim=1, keepdim=True)
        # Not `63 / most`, which torch computes as a reciprocal and a product: two roundings.
        scale = torch.where(most == 0, torch.ones_like(most), torch.full_like(most, WEIGHT_STEPS) / most)
        self.integers = torch.round(exact * scale).to(device, torch.int8)
        self.steps = (1.0 / (scale * INPUT_STEPS)).float()[:, 0].to(device)
        # Torch's integer products are slow on CPUs and absent on GPUs; these floating-point ones are as exact.
        kind = torch.float32 if weight.shape[1] <= EXACT_DEPTH else torch.float64
        self._transposed = self.integers.T.to(kind)

    def add_to(self, start: Tensor, h: Tensor) -> Tensor:
        """start (B, rows), or one row of it, plus the product with h (B, K)."""
        sums = integer_inputs(h).to(self._transposed.dtype) @ self._transposed
        return fma(sums.float(), self.steps, start)


def integer_inputs(h: Tensor) -> Tensor:
    """h in whole steps of 1/127, as fp32."""
    return torch.round(_clamped(h * _like(float(INPUT_STEPS), h), float(INPUT_STEPS)))


def int8_bytes(config: ModelConfig) -> int:
    """The size of the weights that `Int8Step` holds beside the model's own."""
    V, H, L, GH = config.vocabulary_size, config.hidden_size, config.num_layers, config.gates * config.hidden_size
    rows = (2 * L - 1) * GH + V + (0 if config.pointers is None else config.pointers.size)
    exact_bytes = 4 if H <= EXACT_DEPTH else 8
    return rows * (H * (1 + exact_bytes) + 4) + 4 * _table_entries(config)


def _table_entries(config: ModelConfig) -> int:
    """The entries of the tables of layer 0's input; 0 if it is computed."""
    entries = table_entries(config)
    return entries if entries <= MAX_TABLE_ENTRIES else 0


class Int8Step:
    """A model's step in this arithmetic; the interface of `tiles.Tiles`, for any number of rows."""

    rows = 1

    def __init__(self, model: Model, device: torch.device) -> None:
        config = model.config
        self.hidden_size = config.hidden_size
        self._config = config
        self._device = device
        self.weights = {name: weight.float() for name, weight in model.weights.items()}
        for name, shape in config.shapes().items():
            if tuple(self.weights[name].shape) != shape:
                raise ModelBroken(f"{name} has shape {tuple(self.weights[name].shape)}; expected {shape}")
        self._pack_head()
        H, L = config.hidden_size, config.num_layers
        self.U, self.n, self.W = [], [], []
        for l in range(L):
            U = self.weights[f"layers.{l}.weight_hh"]
            first = 2 * H if config.reset == "before" else len(U)
            self.U.append(IntegerMatrix(U[:first], device))
            self.n.append(IntegerMatrix(U[first:], device) if config.reset == "before" else None)
            self.W.append(IntegerMatrix(self.weights[f"layers.{l}.weight_ih"], device) if l else None)
        self._pack_input()
        self.weights = {name: weight.to(device) for name, weight in self.weights.items()}

    def padded(self, rows: int) -> int:
        """`rows`: no row needs others beside it."""
        return rows

    @torch.inference_mode()
    def step(
        self, tokens: Tensor, state: tuple[Tensor, ...], pointed: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step: logits (B, V) and the new state, each tensor (L, B, H); see `tiles.Tiles.step`."""
        layers: list[tuple[Tensor, ...]] = []
        for l in range(self._config.num_layers):
            W = self.W[l]
            x = self.input(tokens, pointed) if W is None else W.add_to(self.weights[f"layers.{l}.bias"], layers[-1][0])
            layers.append(self._cell(l, x, tuple(tensor[l] for tensor in state)))
        logits = self.logits(layers[-1][0], pointed)
        return logits, tuple(torch.stack(tensors) for tensors in zip(*layers, strict=True))

    def logits(self, h: Tensor, pointed: Tensor | None = None) -> Tensor:
        """The head by itself: the last layer's state (B, H) -> logits (B, V)."""
        return self._gated(self.head.add_to(self.head_bias, h), pointed)

    def _cell(self, l: int, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The new state of layer l, from the input's share of its gates (B, G*H)."""
        h, U, n_matrix = state[0], self.U[l], self.n[l]
        if self._config.cell == "elman":
            return (tanh(U.add_to(x, h)),)
        if self._config.cell == "lstm":
            i, f, g, o = U.add_to(x, h).chunk(4, dim=1)
            c = fma(sigmoid(f), state[1], sigmoid(i) * tanh(g))
            return sigmoid(o) * tanh(c), c
        H = self.hidden_size
        if n_matrix is not None:
            r, z = U.add_to(x[:, : 2 * H], h).chunk(2, dim=1)
            n = tanh(n_matrix.add_to(x[:, 2 * H :], sigmoid(r) * h))
        else:
            b_hn = self.weights[f"layers.{l}.bias_hn"].expand(len(x), H)
            r, z, u = U.add_to(torch.cat((x[:, : 2 * H], b_hn), dim=1), h).chunk(3, dim=1)
            n = tanh(fma(sigmoid(r), u, x[:, 2 * H :]))
        return (fma(sigmoid(z), n - h, h),)

    def _pack_input(self) -> None:
        """The table of layer 0's input (V, G*H), or None, and what pointers add to it."""
        self.table: Tensor | None = None
        self.added: dict[str, Tensor] = {}
        if _table_entries(self._config):
            table, added = input_tables(self.weights, self._config)
            self.table = table.to(self._device)
            self.added = {name: rows.to(self._device) for name, rows in added.items()}

    def input(self, tokens: Tensor, pointed: Tensor | None = None) -> Tensor:
        """The input's share of layer 0's gates (B, G*H)."""
        if self.table is not None:
            return self._summed(self.table[tokens], self.added, pointed, folded=True)
        rows = {
            name: self.weights[f"pointers.{name}"]
            for name in ("weight", "match", "place", "count")
            if f"pointers.{name}" in self.weights
        }
        x = self._summed(self.weights["embedding.weight"][tokens], rows, pointed, folded=False)
        W, share = self.weights["layers.0.weight_ih"], self.weights["layers.0.bias"].expand(len(x), -1)
        for e in range(x.shape[1]):
            share = fma(W[:, e], x[:, e : e + 1], share)
        return share

    def _summed(self, x: Tensor, tables: dict[str, Tensor], pointed: Tensor | None, *, folded: bool) -> Tensor:
        """x and the rows that the pointers name, one after the other.

        Folded tables hold differences to the rows of a pointer that names nothing, or matches nothing: skipped here.
        """
        pointers = self._config.pointers
        if pointers is None or pointed is None:
            return x
        K = pointers.size
        for k in range(K):
            named, matched = pointed[:, k], pointed[:, K + k]
            more = x + tables["weight"][k][named]
            x = torch.where((named == self._config.vocabulary_size)[:, None], x, more) if folded else more
            if pointers.matches:
                more = x + tables["match"][k][matched]
                x = torch.where((matched == 0)[:, None], x, more) if folded else more
        if pointers.places:
            x = x + tables["place"][pointed[:, 2 * K]]
        if pointers.counts:
            x = x + tables["count"][pointed[:, 2 * K + 1]]
        return x

    def _pack_head(self) -> None:
        w, config = self.weights, self._config
        if "head.weight" not in w and "head.projection" in w:
            projection, rows = w["head.projection"].double(), w["embedding.weight"].double()
            sums = torch.zeros(config.vocabulary_size, config.hidden_size, dtype=torch.float64)
            for e in range(config.embedding_size):
                sums += rows[:, e : e + 1] * projection[e]
            weight = sums.float()
        else:
            weight = head(w)
        bias = w["head.bias"]
        if config.pointers is not None:  # each pointer's gate is one more output
            weight = torch.cat((weight, w["pointers.gate"]))
            bias = torch.cat((bias, torch.zeros(config.pointers.size)))
        self.head, self.head_bias = IntegerMatrix(weight, self._device), bias.to(self._device)

    def _gated(self, logits: Tensor, pointed: Tensor | None) -> Tensor:
        """The logits (B, V) from the head's outputs (B, V + K).

        Each pointer's gate is added to the logit of the token that it names, one pointer after the other.
        """
        pointers, V = self._config.pointers, self._config.vocabulary_size
        if pointers is None or pointed is None:
            return logits
        logits, gates = logits[:, :V].clone(), logits[:, V:]
        row, K = torch.arange(len(logits), device=logits.device), pointers.size
        for k in range(K):
            named = pointed[:, k].clamp_max(V - 1)
            gate = gates[:, k] + self.weights["pointers.gate_bias"][k][pointed[:, K + k]]
            before = logits[row, named]
            logits[row, named] = torch.where(pointed[:, k] == V, before, before + gate)
        return logits
