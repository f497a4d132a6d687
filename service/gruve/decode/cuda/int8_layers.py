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
from gruve.decode.cuda.pointer_rows import add_pointer_rows
from gruve.decode.cuda.records import FIELDS as _FIELDS
from gruve.decode.cuda.records import Field

FIELDS = tl.constexpr(_FIELDS)
PENDING = tl.constexpr(int(Field.PENDING))
ACTIVE = tl.constexpr(int(Field.ACTIVE))
BELOW, TOKEN, ROW = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
GRU, LSTM, ELMAN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _sums(a, active, w, H: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, BU: tl.constexpr, BK: tl.constexpr):
    """a @ w.T of G gates in s32: `a` (BM, 1) and `w` (1, BU) point at rows of H, gates H * H apart."""
    s0 = tl.zeros((BM, BU), tl.int32)
    s1, s2, s3 = s0, s0, s0
    for k in range(0, H, BK):
        ks = k + tl.arange(0, BK)
        x = tl.load(a + ks[None, :], mask=active[:, None], other=0)
        s0 = tl.dot(x, tl.load(w + ks[:, None]), s0, out_dtype=tl.int32)
        if G > 1:
            s1 = tl.dot(x, tl.load(w + H * H + ks[:, None]), s1, out_dtype=tl.int32)
        if G > 2:
            s2 = tl.dot(x, tl.load(w + 2 * H * H + ks[:, None]), s2, out_dtype=tl.int32)
        if G > 3:
            s3 = tl.dot(x, tl.load(w + 3 * H * H + ks[:, None]), s3, out_dtype=tl.int32)
    return s0, s1, s2, s3


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
    x,
    W,
    W_steps,
    bias,
    pointed,
    pointer_rows,
    X: tl.constexpr,
    FIRST: tl.constexpr,
    G: tl.constexpr,
    ALL: tl.constexpr,
    V: tl.constexpr,
    K: tl.constexpr,
    MATCHES: tl.constexpr,
    PLACES: tl.constexpr,
    COUNTS: tl.constexpr,
    H: tl.constexpr,
    BM: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
):
    """The input's share of the gates FIRST to FIRST + G - 1 of ALL."""
    at = FIRST * H + units
    if X == BELOW:
        s0, s1, s2, s3 = _sums(x + rows[:, None] * H, active, W + FIRST * H * H + units[None, :] * H, H, G, BM, BU, BK)
        x0 = _added(s0, W_steps + at, tl.load(bias + at)[None, :])
        x1, x2, x3 = x0, x0, x0
        if G > 1:
            x1 = _added(s1, W_steps + at + H, tl.load(bias + at + H)[None, :])
        if G > 2:
            x2 = _added(s2, W_steps + at + 2 * H, tl.load(bias + at + 2 * H)[None, :])
        if G > 3:
            x3 = _added(s3, W_steps + at + 3 * H, tl.load(bias + at + 3 * H)[None, :])
    else:
        index = rows.to(tl.int64)
        if X == TOKEN:
            index = tl.load(record + PENDING, mask=active, other=0)
        entry = x + index[:, None] * (ALL * H) + at[None, :]
        x0 = tl.load(entry, mask=active[:, None], other=0.0)
        x1, x2, x3 = x0, x0, x0
        if G > 1:
            x1 = tl.load(entry + H, mask=active[:, None], other=0.0)
        if G > 2:
            x2 = tl.load(entry + 2 * H, mask=active[:, None], other=0.0)
        if G > 3:
            x3 = tl.load(entry + 3 * H, mask=active[:, None], other=0.0)
    if X == TOKEN and K > 0:
        entries = pointer_rows + at
        x0, x1, x2, x3 = add_pointer_rows(
            x0, x1, x2, x3, rows, active, pointed, entries, G, ALL, V, K, MATCHES, PLACES, COUNTS, H
        )
    return x0, x1, x2, x3


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
    V: tl.constexpr,
    K: tl.constexpr,
    MATCHES: tl.constexpr,
    PLACES: tl.constexpr,
    COUNTS: tl.constexpr,
    H: tl.constexpr,
    BM: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
):
    """One layer of a GRU with reset=after, an LSTM or an Elman network; one program for (BU units, BM rows)."""
    units = tl.program_id(0) * BU + tl.arange(0, BU)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    record = integer_fields + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    G: tl.constexpr = 3 if CELL == GRU else (4 if CELL == LSTM else 1)
    x0, x1, x2, x3 = _input(
        record,
        rows,
        units,
        active,
        x,
        W,
        W_steps,
        bias,
        pointed,
        pointer_rows,
        X,
        0,
        G,
        G,
        V,
        K,
        MATCHES,
        PLACES,
        COUNTS,
        H,
        BM,
        BU,
        BK,
    )
    s0, s1, s2, s3 = _sums(operand + rows[:, None] * H, active, U + units[None, :] * H, H, G, BM, BU, BK)
    a0 = _added(s0, U_steps + units, x0)
    mine = rows[:, None] * H + units[None, :]
    if CELL == GRU:
        old = tl.load(h + mine, mask=active[:, None], other=0.0)
        # The reset gate multiplies only the state's contribution to n.
        u = _added(s2, U_steps + 2 * H + units, tl.load(bias_hn + units)[None, :])
        n = tanh(tl.fma(sigmoid(a0), u, x2))
        new = tl.fma(sigmoid(_added(s1, U_steps + H + units, x1)), n - old, old)
    elif CELL == LSTM:
        cell = tl.load(c + mine, mask=active[:, None], other=0.0)
        forget = sigmoid(_added(s1, U_steps + H + units, x1))
        cell = tl.fma(forget, cell, sigmoid(a0) * tanh(_added(s2, U_steps + 2 * H + units, x2)))
        tl.store(c + mine, cell, mask=active[:, None])
        new = sigmoid(_added(s3, U_steps + 3 * H + units, x3)) * tanh(cell)
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
    V: tl.constexpr,
    K: tl.constexpr,
    MATCHES: tl.constexpr,
    PLACES: tl.constexpr,
    COUNTS: tl.constexpr,
    H: tl.constexpr,
    BM: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
):
    """The first half of a GRU with reset=before: r*h, as an operand, and z."""
    units = tl.program_id(0) * BU + tl.arange(0, BU)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    record = integer_fields + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    x0, x1, _, _ = _input(
        record,
        rows,
        units,
        active,
        x,
        W,
        W_steps,
        bias,
        pointed,
        pointer_rows,
        X,
        0,
        2,
        3,
        V,
        K,
        MATCHES,
        PLACES,
        COUNTS,
        H,
        BM,
        BU,
        BK,
    )
    s0, s1, _, _ = _sums(operand + rows[:, None] * H, active, U + units[None, :] * H, H, 2, BM, BU, BK)
    r, z = sigmoid(_added(s0, U_steps + units, x0)), sigmoid(_added(s1, U_steps + H + units, x1))
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
    V: tl.constexpr,
    K: tl.constexpr,
    MATCHES: tl.constexpr,
    PLACES: tl.constexpr,
    COUNTS: tl.constexpr,
    H: tl.constexpr,
    BM: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
):
    """The second half of a GRU with reset=before: n from r*h, and the new state."""
    units = tl.program_id(0) * BU + tl.arange(0, BU)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    record = integer_fields + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    x2, _, _, _ = _input(
        record,
        rows,
        units,
        active,
        x,
        W,
        W_steps,
        bias,
        pointed,
        pointer_rows,
        X,
        2,
        1,
        3,
        V,
        K,
        MATCHES,
        PLACES,
        COUNTS,
        H,
        BM,
        BU,
        BK,
    )
    n_row = U + 2 * H * H + units[None, :] * H
    s2, _, _, _ = _sums(reset + rows[:, None] * H, active, n_row, H, 1, BM, BU, BK)
    n = tanh(_added(s2, U_steps + 2 * H + units, x2))
    mine = rows[:, None] * H + units[None, :]
    old = tl.load(h + mine, mask=active[:, None], other=0.0)
    new = tl.fma(tl.load(update + mine, mask=active[:, None], other=0.0), n - old, old)
    tl.store(h + mine, new, mask=active[:, None])
    tl.store(operand_after + mine, integers(new), mask=active[:, None])
