"""The layers in the int8 arithmetic as Triton kernels; one program computes a tile of rows by a tile of units.

Sums of integer products are exact in any order; what follows them is stated in `decode/int8.py`. So a row's bits depend
on nothing but the row, and they are those of every other backend in int8. The state is fp32 and only its own program
accesses it. Other programs read the operand: the state in whole steps of 1/127. There are two copies of it, which steps
use in turn. A program without an active row returns at once; the operand of an inactive row is never read.

Legend: `H` hidden units, padded; int8 weights (G, H, H) in row order, fp32 steps and biases (G, H). `X` is the source
of the input's share of the gates: a product with the layer `BELOW`, or finished rows (G, H) for each `TOKEN` or for
each `ROW`. Launch with `enable_fp_fusion=False`.
"""

import triton
import triton.language as tl

from gruve.decode.cuda.int8_math import integers, sigmoid, tanh
from gruve.decode.cuda.layers import ACTIVE, BELOW, FIELDS, GRU, LSTM, PENDING, TOKEN
from gruve.decode.cuda.pointer_rows import add_pointer_rows


@triton.jit
def _sums(a, active, w, G: tl.constexpr, H: tl.constexpr, tile: tl.constexpr):
    """a @ w.T of G gates in s32: `a` (rows, 1) and `w` (1, units) point at rows of H, gates H * H apart."""
    sums = (tl.full((tile.rows, tile.units), 0, tl.int32),) * G
    for k in range(0, H, tile.depth):
        ks = k + tl.arange(0, tile.depth)
        x = tl.load(a + ks[None, :], mask=active[:, None], other=0)
        new = ()
        for g in tl.static_range(G):
            new += (tl.dot(x, tl.load(w + g * (H * H) + ks[:, None]), sums[g], out_dtype=tl.int32),)
        sums = new
    return sums


@triton.jit
def _added(sums, steps, start):
    """A finished product added to `start`; `steps` points at those of the units."""
    return tl.fma(sums.to(tl.float32), tl.load(steps)[None, :], start)


@triton.jit
def _input(
    record,
    rows,
    units,
    active,
    source,
    X: tl.constexpr,
    FIRST: tl.constexpr,
    G: tl.constexpr,
    GATES: tl.constexpr,
    sizes: tl.constexpr,
    tile: tl.constexpr,
):
    """The input's share of the gates FIRST to FIRST + G - 1 of GATES."""
    x, W, W_steps, bias, pointed, pointer_rows = source
    H: tl.constexpr = sizes.H
    at = FIRST * H + units
    inputs = ()
    if X == BELOW:
        sums = _sums(x + rows[:, None] * H, active, W + FIRST * H * H + units[None, :] * H, G, H, tile)
        for g in tl.static_range(G):
            inputs += (_added(sums[g], W_steps + at + g * H, tl.load(bias + at + g * H)[None, :]),)
    else:
        index = rows.to(tl.int64)
        if X == TOKEN:
            index = tl.load(record + PENDING, mask=active, other=0)
        entry = x + index[:, None] * (GATES * H) + at[None, :]
        for g in tl.static_range(G):
            inputs += (tl.load(entry + g * H, mask=active[:, None], other=0.0),)
    if X == TOKEN and sizes.K > 0:
        inputs = add_pointer_rows(inputs, rows, active, pointed, pointer_rows + at, GATES, sizes)
    return inputs


@triton.jit(do_not_specialize=["size"])
def layer(
    integer_fields,
    x,
    W,
    W_steps,
    U,
    U_steps,
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
    record = integer_fields + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    G: tl.constexpr = 3 if CELL == GRU else (4 if CELL == LSTM else 1)
    source = (x, W, W_steps, bias, pointed, pointer_rows)
    a = _input(record, rows, units, active, source, X, 0, G, G, sizes, tile)
    s = _sums(operand + rows[:, None] * H, active, U + units[None, :] * H, G, H, tile)
    a0 = _added(s[0], U_steps + units, a[0])
    mine = rows[:, None] * H + units[None, :]
    if CELL == GRU:
        old = tl.load(h + mine, mask=active[:, None], other=0.0)
        # The reset gate multiplies only the state's contribution to n.
        u = _added(s[2], U_steps + 2 * H + units, tl.load(bias_hn + units)[None, :])
        n = tanh(tl.fma(sigmoid(a0), u, a[2]))
        new = tl.fma(sigmoid(_added(s[1], U_steps + H + units, a[1])), n - old, old)
    elif CELL == LSTM:
        cell = tl.load(c + mine, mask=active[:, None], other=0.0)
        forget = sigmoid(_added(s[1], U_steps + H + units, a[1]))
        cell = tl.fma(forget, cell, sigmoid(a0) * tanh(_added(s[2], U_steps + 2 * H + units, a[2])))
        tl.store(c + mine, cell, mask=active[:, None])
        new = sigmoid(_added(s[3], U_steps + 3 * H + units, a[3])) * tanh(cell)
    else:
        new = tanh(a0)
    tl.store(h + mine, new, mask=active[:, None])
    tl.store(operand_after + mine, integers(new), mask=active[:, None])


@triton.jit(do_not_specialize=["size"])
def reset_and_update(
    integer_fields,
    x,
    W,
    W_steps,
    U,
    U_steps,
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
    record = integer_fields + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    source = (x, W, W_steps, bias, pointed, pointer_rows)
    a = _input(record, rows, units, active, source, X, 0, 2, 3, sizes, tile)
    s = _sums(operand + rows[:, None] * H, active, U + units[None, :] * H, 2, H, tile)
    r, z = sigmoid(_added(s[0], U_steps + units, a[0])), sigmoid(_added(s[1], U_steps + H + units, a[1]))
    mine = rows[:, None] * H + units[None, :]
    old = tl.load(h + mine, mask=active[:, None], other=0.0)
    tl.store(reset + mine, integers(r * old), mask=active[:, None])
    tl.store(update + mine, z, mask=active[:, None])


@triton.jit(do_not_specialize=["size"])
def candidate(
    integer_fields,
    x,
    W,
    W_steps,
    U,
    U_steps,
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
    record = integer_fields + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    source = (x, W, W_steps, bias, pointed, pointer_rows)
    a = _input(record, rows, units, active, source, X, 2, 1, 3, sizes, tile)
    n_row = U + 2 * H * H + units[None, :] * H
    s = _sums(reset + rows[:, None] * H, active, n_row, 1, H, tile)
    n = tanh(_added(s[0], U_steps + 2 * H + units, a[0]))
    mine = rows[:, None] * H + units[None, :]
    old = tl.load(h + mine, mask=active[:, None], other=0.0)
    new = tl.fma(tl.load(update + mine, mask=active[:, None], other=0.0), n - old, old)
    tl.store(h + mine, new, mask=active[:, None])
    tl.store(operand_after + mine, integers(new), mask=active[:, None])
