"""The layers as Triton kernels: one program computes a tile of rows by a tile of units, with all gates of a unit.

A gate's sum runs over the input and the previous state in one fixed order, in fp32, in the same program for every batch
size. So a row's bits do not depend on the other rows. The state is fp32 and only its own program accesses it. Other
programs read the operand: the state, rounded to the type of the products. There are two copies of it, which steps use
in turn. A program without an active row returns at once; the operand of an inactive row is never read.

Legend: `H` hidden units, padded; weights (G, H, H) and biases (G, H) in row order. `X` is the source of the input's
share of the gates: a product with the layer `BELOW`, or finished rows (G, H) for each `TOKEN` or for each `ROW`. Rows
that pointers name are added to those of tokens.
"""

import triton
import triton.language as tl

from gruve.decode.cuda.pointer_rows import add_pointer_rows
from gruve.decode.cuda.records import FIELDS as _FIELDS
from gruve.decode.cuda.records import Field

FIELDS = tl.constexpr(_FIELDS)
PENDING = tl.constexpr(int(Field.PENDING))
ACTIVE = tl.constexpr(int(Field.ACTIVE))
BELOW, TOKEN, ROW = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
GRU, LSTM, ELMAN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _sigmoid(a):
    return 1.0 / (1.0 + tl.exp(-a))


@triton.jit
def _tanh(a):
    return 2.0 / (1.0 + tl.exp(-2.0 * a)) - 1.0


@triton.jit
def _products(a, active, w, sums, H: tl.constexpr, tile: tl.constexpr):
    """Adds a @ w.T to the sum of each gate: `a` (rows, 1) and `w` (1, units) point at rows of H, gates H * H apart."""
    for k in range(0, H, tile.depth):
        ks = k + tl.arange(0, tile.depth)
        x = tl.load(a + ks[None, :], mask=active[:, None], other=0.0)
        new = ()
        for g in tl.static_range(len(sums)):
            gate = tl.load(w + g * (H * H) + ks[:, None])
            new += (tl.dot(x, gate, sums[g], input_precision="ieee"),)
        sums = new
    return sums


@triton.jit
def _add_input(
    sums,
    record,
    rows,
    units,
    active,
    source,
    X: tl.constexpr,
    FIRST: tl.constexpr,
    GATES: tl.constexpr,
    sizes: tl.constexpr,
    tile: tl.constexpr,
):
    """Adds the input's share to `sums`, which are those of the gates from FIRST on, of GATES."""
    x, W, bias, pointed, pointer_rows = source
    H: tl.constexpr = sizes.H
    at = FIRST * H + units
    new = ()
    if X == BELOW:
        below, w = (x + rows * H)[:, None], W + FIRST * H * H + units[None, :] * H
        sums = _products(below, active, w, sums, H, tile)
        for g in tl.static_range(len(sums)):
            new += (sums[g] + tl.load(bias + at + g * H)[None, :],)
    else:
        index = rows.to(tl.int64)
        if X == TOKEN:
            index = tl.load(record + PENDING, mask=active, other=0)
        entry = x + index[:, None] * (GATES * H) + at[None, :]
        for g in tl.static_range(len(sums)):
            new += (sums[g] + tl.load(entry + g * H, mask=active[:, None], other=0.0),)
    if X == TOKEN and sizes.K > 0:
        new = add_pointer_rows(new, rows, active, pointed, pointer_rows + at, GATES, sizes)
    return new


@triton.jit(do_not_specialize=["size"])
def layer(
    integers,
    x,
    W,
    U,
    bias,
    pointed,
    pointer_rows,
    bias_hn,
    h,
    c,
    operand,
    operand_after,
    size,
    CELL: tl.constexpr,
    X: tl.constexpr,
    sizes: tl.constexpr,
    tile: tl.constexpr,
):
    """One layer of a GRU with reset=after, an LSTM or an Elman network; one program for a tile of units and rows."""
    H: tl.constexpr = sizes.H
    units = tl.program_id(0) * tile.units + tl.arange(0, tile.units)
    rows = tl.program_id(1) * tile.rows + tl.arange(0, tile.rows)
    record = integers + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    G: tl.constexpr = 3 if CELL == GRU else (4 if CELL == LSTM else 1)
    zero = tl.full((tile.rows, tile.units), 0, tl.float32)
    source = (x, W, bias, pointed, pointer_rows)
    before = _products(operand + rows[:, None] * H, active, U + units[None, :] * H, (zero,) * G, H, tile)
    # The GRU's reset gate multiplies only the state's contribution to n.
    sums = (before[0], before[1], zero) if CELL == GRU else before
    a = _add_input(sums, record, rows, units, active, source, X, 0, G, sizes, tile)
    mine = rows[:, None] * H + units[None, :]
    if CELL == GRU:
        old = tl.load(h + mine, mask=active[:, None], other=0.0)
        n = _tanh(a[2] + _sigmoid(a[0]) * (before[2] + tl.load(bias_hn + units)[None, :]))
        new = old + _sigmoid(a[1]) * (n - old)
    elif CELL == LSTM:
        cell = tl.load(c + mine, mask=active[:, None], other=0.0)
        cell = _sigmoid(a[1]) * cell + _sigmoid(a[0]) * _tanh(a[2])
        tl.store(c + mine, cell, mask=active[:, None])
        new = _sigmoid(a[3]) * _tanh(cell)
    else:
        new = _tanh(a[0])
    tl.store(h + mine, new, mask=active[:, None])
    tl.store(operand_after + mine, new.to(operand_after.dtype.element_ty), mask=active[:, None])


@triton.jit(do_not_specialize=["size"])
def reset_and_update(
    integers,
    x,
    W,
    U,
    bias,
    pointed,
    pointer_rows,
    h,
    operand,
    reset,
    update,
    size,
    X: tl.constexpr,
    sizes: tl.constexpr,
    tile: tl.constexpr,
):
    """The first half of a GRU with reset=before: r*h, as an operand, and z."""
    H: tl.constexpr = sizes.H
    units = tl.program_id(0) * tile.units + tl.arange(0, tile.units)
    rows = tl.program_id(1) * tile.rows + tl.arange(0, tile.rows)
    record = integers + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    zero = tl.full((tile.rows, tile.units), 0, tl.float32)
    source = (x, W, bias, pointed, pointer_rows)
    sums = _products(operand + rows[:, None] * H, active, U + units[None, :] * H, (zero, zero), H, tile)
    r, z = _add_input(sums, record, rows, units, active, source, X, 0, 3, sizes, tile)
    mine = rows[:, None] * H + units[None, :]
    old = tl.load(h + mine, mask=active[:, None], other=0.0)
    tl.store(reset + mine, (_sigmoid(r) * old).to(reset.dtype.element_ty), mask=active[:, None])
    tl.store(update + mine, _sigmoid(z), mask=active[:, None])


@triton.jit(do_not_specialize=["size"])
def candidate(
    integers,
    x,
    W,
    U,
    bias,
    pointed,
    pointer_rows,
    h,
    reset,
    update,
    operand_after,
    size,
    X: tl.constexpr,
    sizes: tl.constexpr,
    tile: tl.constexpr,
):
    """The second half of a GRU with reset=before: n from r*h, and the new state."""
    H: tl.constexpr = sizes.H
    units = tl.program_id(0) * tile.units + tl.arange(0, tile.units)
    rows = tl.program_id(1) * tile.rows + tl.arange(0, tile.rows)
    record = integers + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    zero = tl.full((tile.rows, tile.units), 0, tl.float32)
    source = (x, W, bias, pointed, pointer_rows)
    sums = _products(reset + rows[:, None] * H, active, U + 2 * H * H + units[None, :] * H, (zero,), H, tile)
    sums = _add_input(sums, record, rows, units, active, source, X, 2, 3, sizes, tile)
    mine = rows[:, None] * H + units[None, :]
    old = tl.load(h + mine, mask=active[:, None], other=0.0)
    new = old + tl.load(update + mine, mask=active[:, None], other=0.0) * (_tanh(sums[0]) - old)
    tl.store(h + mine, new, mask=active[:, None])
    tl.store(operand_after + mine, new.to(operand_after.dtype.element_ty), mask=active[:, None])
