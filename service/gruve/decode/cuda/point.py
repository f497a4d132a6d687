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
    pointed,
    size,
    DISTANCES: tl.constexpr,
    LONGEST: tl.constexpr,
    START: tl.constexpr,
    PLACE_STEP: tl.constexpr,
    sizes: tl.constexpr,
):
    """Writes `pointed` (B, 2 K + 2), rows as of `pointers.Pointed`; one program for each row.

    `reaches` (K,) has the distances of the DISTANCES first pointers and the lengths of the followers.
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
    for k in range(K):
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
