"""Pointers in one Triton kernel: feeds each active row's pending token, and points from it.

`model/pointers.py` defines the values, over the window of the transcript's last 1,024 tokens. One program holds the
window of one row. What a slot keeps between steps is in `pointing.py`; a step of a row changes only its own slot's.
"""

import triton
import triton.language as tl

from gruve.decode.cuda import memory, pointing, records
from gruve.decode.cuda.records import Field
from gruve.model import pointers

FIELDS = tl.constexpr(records.FIELDS)
PENDING, POSITION, ACTIVE = (tl.constexpr(int(f)) for f in (Field.PENDING, Field.POSITION, Field.ACTIVE))
SLOT = tl.constexpr(memory.SLOT)
WINDOW, BAR_TOKENS = tl.constexpr(pointers.WINDOW), tl.constexpr(pointers.BAR_TOKENS)
BARS_KEPT, BAR_FIELDS = tl.constexpr(pointing.BARS_KEPT), tl.constexpr(pointing.BAR_FIELDS)
MAX_TRANSPOSED = tl.constexpr(pointers.MAX_TRANSPOSED)
STATE, UNKNOWN = tl.constexpr(pointing.STATE), tl.constexpr(pointing.UNKNOWN)
LATER = tl.constexpr((1 << 31) - 1)


@triton.jit(do_not_specialize=["size"])
def point(
    integer_fields,
    inbox,
    tokens,
    places,
    bars,
    states,
    kinds,
    advances,
    reaches,
    steps,
    scale,
    pointed,
    size,
    DISTANCES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    SCALE: tl.constexpr,
    LONGEST: tl.constexpr,
    START: tl.constexpr,
    PLACE_STEP: tl.constexpr,
    sizes: tl.constexpr,
):
    """Writes `pointed` (B, 2 K + 2), rows as of `pointers.Pointed`; one program for each row.

    `reaches` (K,) has the distances of the DISTANCES first pointers, the lengths of the followers, and the distances of
    the TRANSPOSED last ones. `steps` (V,) has each token's place in `scale` (SCALE,), -1 for none.
    """
    K: tl.constexpr = sizes.K
    row = tl.program_id(0)
    record = integer_fields + row * FIELDS
    if tl.load(record + ACTIVE) == 0:
        return
    slot = tl.load(inbox + SLOT * size + row).to(tl.int64)
    t, token = tl.load(record + POSITION).to(tl.int32), tl.load(record + PENDING).to(tl.int32)
    state, ring = states + slot * STATE, slot * WINDOW
    restarts = token == START
    start = tl.where(restarts, t, tl.load(state))
    opening = tl.where(restarts, -1, tl.load(state + 1))
    place = tl.where(restarts, UNKNOWN, tl.load(state + 2))
    part = tl.where(restarts, 0, tl.load(state + 3))
    count = tl.where(restarts, 0, tl.load(state + 4))
    begin = tl.maximum(start, t - WINDOW + 1)
    s = tl.arange(0, WINDOW) + (t - WINDOW + 1)
    earlier = (s >= begin) & (s < t)
    ids = tl.load(tokens + ring + (s & (WINDOW - 1)), mask=earlier, other=-1)

    # The bars, the current token among them.
    kind = tl.load(kinds + token)
    completes = (kind > 0) & (opening >= begin) & ((place == UNKNOWN) | (place > 0))
    closed_opening, closed_part = opening, part
    count = count + completes.to(tl.int32)
    opens = (kind > 0) | restarts
    known = (place != UNKNOWN) & (opening >= 0) & (t - opening < BAR_TOKENS)
    place = tl.where(opens, 0, tl.where(known, place + tl.load(advances + token), UNKNOWN))
    part = part + (kind == 2).to(tl.int32)
    opening = tl.where(opens, t, opening)
    kept = tl.arange(0, BARS_KEPT)
    at = -kept + (count - 1)
    bar = bars + (slot * BARS_KEPT + (at & (BARS_KEPT - 1))) * BAR_FIELDS
    newest = completes & (kept == 0)
    present = (at >= 0) & (newest == 0)
    openings = tl.where(newest, closed_opening, tl.load(bar, mask=present, other=-1))
    ends = tl.where(newest, t, tl.load(bar + 1, mask=present, other=-1))
    parts = tl.where(newest, closed_part, tl.load(bar + 2, mask=present, other=-1))
    complete = tl.sum(((openings >= begin) & (parts == part)).to(tl.int32), axis=0)

    # How many tokens up to each position are equal to those up to the current one.
    run = tl.zeros((WINDOW,), tl.int32)
    equal = earlier
    for i in range(LONGEST):
        there = tl.load(tokens + ring + ((s - i) & (WINDOW - 1)), mask=equal & (s - i >= begin), other=-1)
        here = tl.load(tokens + ring + ((t - i) & (WINDOW - 1)), mask=(t - i >= begin) & (i > 0), other=-2)
        equal = equal & (there == tl.where(i == 0, token, here))
        run += equal.to(tl.int32)
    places_there = tl.load(places + ring + (s & (WINDOW - 1)), mask=earlier, other=UNKNOWN)
    row_pointed = pointed + row * (2 * K + 2)
    for k in range(K - TRANSPOSED):
        reach = tl.load(reaches + k)
        # A bar: the first position at the current place with the current token, else the first at that place.
        from_ = tl.sum(tl.where(kept == reach - 1, openings, 0), axis=0)
        to = tl.sum(tl.where(kept == reach - 1, ends, 0), axis=0)
        same = earlier & (from_ >= begin) & (s >= from_) & (s < to) & (places_there == place) & (place != UNKNOWN)
        first, with_token = tl.where(same, s, LATER), tl.where(same & (ids == token), s, LATER)
        in_bar = tl.min(first, axis=0)
        in_bar = tl.where(tl.min(with_token, axis=0) < LATER, tl.min(with_token, axis=0), in_bar)
        in_bar = tl.where(in_bar < LATER, in_bar, -1)
        follower = tl.max(tl.where(earlier & (run >= reach), s, -1), axis=0)
        found = tl.where(k < DISTANCES, in_bar, follower)
        match = tl.minimum(tl.sum(tl.where(s == found, run, 0), axis=0), sizes.MATCHES - 1)
        after = tl.sum(tl.where(s == found + 1, ids, 0), axis=0)
        named = tl.where(found < 0, sizes.V, tl.where(found + 1 == t, token, after))
        tl.store(row_pointed + k, named)
        tl.store(row_pointed + K + k, tl.where(found < 0, 0, tl.maximum(match, 0)))
    token_step = tl.load(steps + token)
    steps_there = tl.load(steps + ids, mask=earlier, other=-1)
    for k in range(K - TRANSPOSED, K):
        # The first position at the current place, in the bar, with the current token or with one of the scale as it is.
        nearest = kept == tl.load(reaches + k) - 1
        from_, to = tl.sum(tl.where(nearest, openings, 0), axis=0), tl.sum(tl.where(nearest, ends, 0), axis=0)
        same = earlier & (from_ >= begin) & (s >= from_) & (s < to) & (places_there == place) & (place != UNKNOWN)
        agrees = (ids == token) | ((token_step >= 0) & (steps_there >= 0))
        found = tl.min(tl.where(same & agrees, s, LATER), axis=0)
        going = found < LATER
        known, moved, length = found < 0, 0, 0
        for i in range(MAX_TRANSPOSED):
            going = going & (found - i >= begin)
            there = tl.load(tokens + ring + ((found - i) & (WINDOW - 1)), mask=going, other=0)
            here = tl.load(tokens + ring + ((t - i) & (WINDOW - 1)), mask=going & (i > 0), other=0)
            here = tl.where(i == 0, token, here)
            low, high = tl.load(steps + there), tl.load(steps + here)
            both = (low >= 0) & (high >= 0)
            going = going & tl.where(both, (high - low == moved) | ~known, there == here)
            moved = tl.where(going & both, high - low, moved)
            known = known | (going & both)
            length += going.to(tl.int32)
        after = tl.where(found + 1 == t, token, tl.sum(tl.where(s == found + 1, ids, 0), axis=0))
        after_step = tl.load(steps + after)
        step = after_step + moved
        inside = (step >= 0) & (step < SCALE)
        after = tl.where(after_step < 0, after, tl.load(scale + step, mask=inside, other=0))
        names = (moved != 0) & ((after_step < 0) | inside)
        tl.store(row_pointed + k, tl.where(names, after, sizes.V))
        tl.store(row_pointed + K + k, tl.where(names, tl.maximum(tl.minimum(length, sizes.MATCHES - 1), 0), 0))
    place_row = tl.where(
        place == UNKNOWN, sizes.PLACES - 1, tl.minimum(tl.maximum(place, 0) // PLACE_STEP, sizes.PLACES - 1)
    )
    tl.store(row_pointed + 2 * K, tl.maximum(place_row, 0))
    tl.store(row_pointed + 2 * K + 1, tl.maximum(tl.minimum(complete, sizes.COUNTS - 1), 0))

    tl.store(tokens + ring + (t & (WINDOW - 1)), token)
    tl.store(places + ring + (t & (WINDOW - 1)), place)
    pushed = bars + (slot * BARS_KEPT + ((count - 1) & (BARS_KEPT - 1))) * BAR_FIELDS
    tl.store(pushed, closed_opening, mask=completes)
    tl.store(pushed + 1, t, mask=completes)
    tl.store(pushed + 2, closed_part, mask=completes)
    tl.store(state, start)
    tl.store(state + 1, opening)
    tl.store(state + 2, place)
    tl.store(state + 3, part)
    tl.store(state + 4, count)
