"""What a row's pointers add to layer 0's input, inside the Triton kernels of the layers."""

import triton
import triton.language as tl


@triton.jit
def _plus(x, entry, named):
    """x and the row at `entry`, where one is named."""
    return tl.where(named, x + tl.load(entry, mask=named, other=0.0), x)


@triton.jit
def add_pointer_rows(
    x0,
    x1,
    x2,
    x3,
    rows,
    active,
    pointed,
    entries,
    G: tl.constexpr,
    ALL: tl.constexpr,
    V: tl.constexpr,
    K: tl.constexpr,
    MATCHES: tl.constexpr,
    PLACES: tl.constexpr,
    COUNTS: tl.constexpr,
    H: tl.constexpr,
):
    """Adds the rows that `pointed` (B, 2 K + 2) names to the first G of x0, x1, x2, x3 (BM, BU).

    `entries` (BU,) points at the gate of x0 in the first row of the table (N, ALL, H), which holds one after the other
    the K tables of tokens, the K tables of matches, that of places and that of counts.
    """
    mine = pointed + rows * (2 * K + 2)
    for n in range(2 * K + 2):
        # In the order of int8's statement: each pointer's row and its match's, then the place and the count.
        k = n // 2
        matches = n % 2 == 1
        last = n >= 2 * K
        field = tl.where(last, n, tl.where(matches, K + k, k))
        value = tl.load(mine + field, mask=active, other=0)
        first = tl.where(
            last,
            K * (V + 1) + K * MATCHES + tl.where(n > 2 * K, PLACES, 0),
            tl.where(matches, K * (V + 1) + k * MATCHES, k * (V + 1)),
        )
        present = tl.where(n > 2 * K, COUNTS > 0, PLACES > 0)
        # Differences to the row of a pointer that names or matches nothing are not added where it does not.
        named = tl.where(last, present, tl.where(matches, (MATCHES > 0) & (value != 0), value != V))
        named = (active & named)[:, None]
        entry = entries[None, :] + (first + value).to(tl.int64)[:, None] * (ALL * H)
        x0 = _plus(x0, entry, named)
        if G > 1:
            x1 = _plus(x1, entry + H, named)
        if G > 2:
            x2 = _plus(x2, entry + 2 * H, named)
        if G > 3:
            x3 = _plus(x3, entry + 3 * H, named)
    return x0, x1, x2, x3
