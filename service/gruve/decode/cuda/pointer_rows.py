"""What a row's pointers add to layer 0's input, inside the Triton kernels of the layers."""

import triton
import triton.language as tl


@triton.jit
def add_pointer_rows(inputs, rows, active, pointed, entries, GATES: tl.constexpr, sizes: tl.constexpr):
    """Adds the rows that `pointed` (B, 2 K + 2) names to `inputs`, a tile of rows and units for each of some gates.

    `entries` (units,) points at the first of these gates in the first row of the table (N, GATES, H), which holds one
    after the other the K tables of tokens, the K tables of matches, that of places and that of counts.
    """
    K: tl.constexpr = sizes.K
    MATCHES: tl.constexpr = sizes.MATCHES
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
            K * (sizes.V + 1) + K * MATCHES + tl.where(n > 2 * K, sizes.PLACES, 0),
            tl.where(matches, K * (sizes.V + 1) + k * MATCHES, k * (sizes.V + 1)),
        )
        present = tl.where(n > 2 * K, sizes.COUNTS > 0, sizes.PLACES > 0)
        # Differences to the row of a pointer that names or matches nothing are not added where it does not.
        named = tl.where(last, present, tl.where(matches, (MATCHES > 0) & (value != 0), value != sizes.V))
        named = (active & named)[:, None]
        entry = entries[None, :] + (first + value).to(tl.int64)[:, None] * (GATES * sizes.H)
        new = ()
        for g in tl.static_range(len(inputs)):
            row = tl.load(entry + g * sizes.H, mask=named, other=0.0)
            new += (tl.where(named, inputs[g] + row, inputs[g]),)
        inputs = new
    return inputs
