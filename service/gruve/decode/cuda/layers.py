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
def _products(
    a, active, w, gate, s0, s1, s2, s3, K: tl.constexpr, G: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr
):
    """Adds a @ w.T of G gates to s0, s1, s2, s3: `a` (BM, 1) and `w` (1, BU) point at rows of K, gates `gate` apart."""
    for k in range(0, K, BK):
        ks = k + tl.arange(0, BK)
        x = tl.load(a + ks[None, :], mask=active[:, None], other=0.0)
        s0 = tl.dot(x, tl.load(w + ks[:, None]), s0, input_precision=PRECISION)
        if G > 1:
            s1 = tl.dot(x, tl.load(w + gate + ks[:, None]), s1, input_precision=PRECISION)
        if G > 2:
            s2 = tl.dot(x, tl.load(w + 2 * gate + ks[:, None]), s2, input_precision=PRECISION)
        if G > 3:
            s3 = tl.dot(x, tl.load(w + 3 * gate + ks[:, None]), s3, input_precision=PRECISION)
    return s0, s1, s2, s3


@triton.jit
def _add_input(
    x0,
    x1,
    x2,
    x3,
    record,
    rows,
    units,
    active,
    x,
    W,
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
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the input's share of the gates FIRST to FIRST + G - 1 of ALL."""
    at = FIRST * H + units
    if X == BELOW:
        below, w = (x + rows * H)[:, None], W + FIRST * H * H + units[None, :] * H
        x0, x1, x2, x3 = _products(below, active, w, H * H, x0, x1, x2, x3, H, G, BK, PRECISION)
        x0 += tl.load(bias + at)[None, :]
        if G > 1:
            x1 += tl.load(bias + at + H)[None, :]
        if G > 2:
            x2 += tl.load(bias + at + 2 * H)[None, :]
        if G > 3:
            x3 += tl.load(bias + at + 3 * H)[None, :]
    else:
        index = rows.to(tl.int64)
        if X == TOKEN:
            index = tl.load(record + PENDING, mask=active, other=0)
        entry = x + index[:, None] * (ALL * H) + at[None, :]
        x0 += tl.load(entry, mask=active[:, None], other=0.0)
        if G > 1:
            x1 += tl.load(entry + H, mask=active[:, None], other=0.0)
        if G > 2:
            x2 += tl.load(entry + 2 * H, mask=active[:, None], other=0.0)
        if G > 3:
            x3 += tl.load(entry + 3 * H, mask=active[:, None], other=0.0)
    if X == TOKEN and K > 0:
        entries = pointer_rows + at
        x0, x1, x2, x3 = add_pointer_rows(
            x0, x1, x2, x3, rows, active, pointed, entries, G, ALL, V, K, MATCHES, PLACES, COUNTS, H
        )
    return x0, x1, x2, x3


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
    V: tl.constexpr,
    K: tl.constexpr,
    MATCHES: tl.constexpr,
    PLACES: tl.constexpr,
    COUNTS: tl.constexpr,
    H: tl.constexpr,
    BM: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One layer of a GRU with reset=after, an LSTM or an Elman network; one program for (BU units, BM rows)."""
    units = tl.program_id(0) * BU + tl.arange(0, BU)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    record = integers + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    G: tl.constexpr = 3 if CELL == GRU else (4 if CELL == LSTM else 1)
    zero = tl.zeros((BM, BU), tl.float32)
    before = operand + rows[:, None] * H
    s0, s1, s2, s3 = _products(
        before, active, U + units[None, :] * H, H * H, zero, zero, zero, zero, H, G, BK, PRECISION
    )
    # The GRU's reset gate multiplies only the state's contribution to n.
    x2 = zero if CELL == GRU else s2
    s0, s1, x2, s3 = _add_input(
        s0,
        s1,
        x2,
        s3,
        record,
        rows,
        units,
        active,
        x,
        W,
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
        BK,
        PRECISION,
    )
    mine = rows[:, None] * H + units[None, :]
    if CELL == GRU:
        old = tl.load(h + mine, mask=active[:, None], other=0.0)
        n = _tanh(x2 + _sigmoid(s0) * (s2 + tl.load(bias_hn + units)[None, :]))
        new = old + _sigmoid(s1) * (n - old)
    elif CELL == LSTM:
        cell = tl.load(c + mine, mask=active[:, None], other=0.0)
        cell = _sigmoid(s1) * cell + _sigmoid(s0) * _tanh(x2)
        tl.store(c + mine, cell, mask=active[:, None])
        new = _sigmoid(s3) * _tanh(cell)
    else:
        new = _tanh(s0)
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
    V: tl.constexpr,
    K: tl.constexpr,
    MATCHES: tl.constexpr,
    PLACES: tl.constexpr,
    COUNTS: tl.constexpr,
    H: tl.constexpr,
    BM: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The first half of a GRU with reset=before: r*h, as an operand, and z."""
    units = tl.program_id(0) * BU + tl.arange(0, BU)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    record = integers + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    zero = tl.zeros((BM, BU), tl.float32)
    before = operand + rows[:, None] * H
    r, z, _, _ = _products(before, active, U + units[None, :] * H, H * H, zero, zero, zero, zero, H, 2, BK, PRECISION)
    r, z, _, _ = _add_input(
        r,
        z,
        zero,
        zero,
        record,
        rows,
        units,
        active,
        x,
        W,
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
        BK,
        PRECISION,
    )
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
    V: tl.constexpr,
    K: tl.constexpr,
    MATCHES: tl.constexpr,
    PLACES: tl.constexpr,
    COUNTS: tl.constexpr,
    H: tl.constexpr,
    BM: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The second half of a GRU with reset=before: n from r*h, and the new state."""
    units = tl.program_id(0) * BU + tl.arange(0, BU)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    record = integers + rows * FIELDS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    zero = tl.zeros((BM, BU), tl.float32)
    before = reset + rows[:, None] * H
    n_row = U + 2 * H * H + units[None, :] * H
    n, _, _, _ = _products(before, active, n_row, H * H, zero, zero, zero, zero, H, 1, BK, PRECISION)
    n, _, _, _ = _add_input(
        n,
        zero,
        zero,
        zero,
        record,
        rows,
        units,
        active,
        x,
        W,
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
        BK,
        PRECISION,
    )
    mine = rows[:, None] * H + units[None, :]
    old = tl.load(h + mine, mask=active[:, None], other=0.0)
    new = old + tl.load(update + mine, mask=active[:, None], other=0.0) * (_tanh(n) - old)
    tl.store(h + mine, new, mask=active[:, None])
    tl.store(operand_after + mine, new.to(operand_after.dtype.element_ty), mask=active[:, None])
