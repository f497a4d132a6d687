"""The head, sampling, stops and freezing in one Triton kernel.

Sampling is that of `model/sampling.py`, in integers. One program computes a few rows and holds their whole distribution
in registers, so the vocabulary is limited to `MAX_VOCABULARY`. Top-k and top-p need no sort: they need only the key of
the last token that is kept, which is found bit by bit. Each bit takes a count or a sum of integers, whose result does
not depend on the order. Launch the kernel with `enable_fp_fusion=False`, because products and sums must be rounded
separately.
"""

import triton
import triton.language as tl

from gruve.decode import RowStatus
from gruve.decode.cuda import memory, records
from gruve.decode.cuda.records import Field, Real
from gruve.decode.stops import MATCHED as _MATCHED
from gruve.model import sampling

MAX_VOCABULARY = 512

FIELDS, REALS = tl.constexpr(records.FIELDS), tl.constexpr(records.REALS)
PENDING, POSITION, GENERATED = (tl.constexpr(int(f)) for f in (Field.PENDING, Field.POSITION, Field.GENERATED))
STOP_STATE, STATUS = tl.constexpr(int(Field.STOP_STATE)), tl.constexpr(int(Field.STATUS))
KEY_LOW, KEY_HIGH, GREEDY = (tl.constexpr(int(f)) for f in (Field.KEY_LOW, Field.KEY_HIGH, Field.GREEDY))
TOP_K, TOP_P, MIN_P, WINDOW = (tl.constexpr(int(f)) for f in (Field.TOP_K, Field.TOP_P, Field.MIN_P, Field.WINDOW))
MAX_TOKENS, MIN_TOKENS = tl.constexpr(int(Field.MAX_TOKENS)), tl.constexpr(int(Field.MIN_TOKENS))
END_ID, STOP_BASE, DENSE = (tl.constexpr(int(f)) for f in (Field.END_ID, Field.STOP_BASE, Field.DENSE))
LOGPROBS, TAKEN, LIMIT = (tl.constexpr(int(f)) for f in (Field.LOGPROBS, Field.TAKEN, Field.LIMIT))
FORCED, ACTIVE = tl.constexpr(int(Field.FORCED)), tl.constexpr(int(Field.ACTIVE))
SCALE, PENALTY, INVERSE = (tl.constexpr(int(r)) for r in (Real.SCALE, Real.PENALTY, Real.INVERSE))
BIASED, MASKED = tl.constexpr(records.BIASED), tl.constexpr(records.MASKED)
ALWAYS, EARLY = tl.constexpr(records.ALWAYS), tl.constexpr(records.EARLY)
NEVER, MATCHED = tl.constexpr(records.NEVER), tl.constexpr(_MATCHED)
SLOT, INBOX, OUTBOX = tl.constexpr(memory.SLOT), tl.constexpr(memory.INBOX), tl.constexpr(memory.OUTBOX)
STOP, LENGTH = tl.constexpr(int(RowStatus.STOP)), tl.constexpr(int(RowStatus.LENGTH))
END_OF_SEQUENCE = tl.constexpr(int(RowStatus.END_OF_SEQUENCE))
WEIGHT_BITS, SHARE_BITS = tl.constexpr(sampling.WEIGHT_BITS), tl.constexpr(sampling.SHARE_BITS)
EXPONENT_BITS, PART_SHIFT = tl.constexpr(sampling.EXPONENT_BITS), tl.constexpr(32 - sampling.EXPONENT_BITS)
PART_MASK = tl.constexpr((1 << sampling.EXPONENT_BITS) - 1)
POWER_SHIFT = tl.constexpr(30 - sampling.WEIGHT_BITS)
LOWEST = tl.constexpr(float(sampling.LOWEST_EXPONENT << sampling.EXPONENT_BITS))
C0, C1, C2, C3, C4, C5 = (tl.constexpr(c) for c in sampling.EXP2)
LOW16 = tl.constexpr((1 << 16) - 1)
KEY_BITS = tl.constexpr(48)


@triton.jit
def _uniform(key_low, key_high, position):
    """The first word of philox4x32-10, as uint32 (Salmon et al. 2011)."""
    k0, k1 = key_low.to(tl.uint32), key_high.to(tl.uint32)
    c0, c1 = position.to(tl.uint32), (position >> 32).to(tl.uint32)
    c2, c3 = c0 ^ c0, c0 ^ c0
    m0, m1 = c2 + 0xD2511F53, c2 + 0xCD9E8D57
    w0, w1 = c2 + 0x9E3779B9, c2 + 0xBB67AE85
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(m0, c0), tl.umulhi(m1, c2)
        low0, low1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + w0, k1 + w1
    return c0


@triton.jit
def _weights(scores, allowed, highest, scale):
    """The integer weights of `model/sampling.py`; 0 for tokens that are not allowed."""
    steps = tl.where(allowed, (scores - highest[:, None]) * scale[:, None], LOWEST)
    exponents = tl.maximum(steps, LOWEST).to(tl.int32)
    whole = exponents >> EXPONENT_BITS
    # (power * part) >> EXPONENT_BITS is the high word of power * (part << PART_SHIFT).
    part = ((exponents & PART_MASK) << PART_SHIFT).to(tl.uint32)
    power = tl.umulhi((part ^ part) + C5, part) + C4
    power = tl.umulhi(power, part) + C3
    power = tl.umulhi(power, part) + C2
    power = tl.umulhi(power, part) + C1
    power = tl.umulhi(power, part) + C0
    shift = tl.minimum(-whole + POWER_SHIFT, 31)  # a shift by more than 31 also gives 0
    return tl.where(allowed, power.to(tl.int32) >> shift, 0)


@triton.jit
def _keys(scores, allowed, ids):
    """Sort keys: greater for a higher logit, then for a lower id; -1 for tokens that are not allowed."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)  # -0 and 0 are equal
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + (1 << 31)
    return tl.where(allowed, (ordered << 16) + (-ids[None, :] + LOW16), -1)


@triton.jit
def _truncate(w, scores, allowed, ids, few, top_k, top_p, min_p):
    """Zeroes the weights that top-k (of the rows in `few`), top-p and min-p drop. Skips what no row uses."""
    keys = _keys(scores, allowed, ids)
    one = tl.full((), 1, tl.int64)
    if tl.max(few.to(tl.int32), axis=0) > 0:
        least = top_k ^ top_k
        for b in range(KEY_BITS):
            next_ = least | (one << (-b + KEY_BITS - 1))
            count = tl.sum((keys >= next_[:, None]).to(tl.int64), axis=1)
            least = tl.where(count >= top_k, next_, least)
        w = tl.where(keys >= least[:, None], w, 0)
    if tl.max((top_p >= 0).to(tl.int32), axis=0) > 0:
        bound = top_p * tl.sum(w.to(tl.int64), axis=1)
        least = top_k ^ top_k
        for b in range(KEY_BITS):
            next_ = least | (one << (-b + KEY_BITS - 1))
            before = tl.sum(tl.where(keys >= next_[:, None], w, 0).to(tl.int64), axis=1)
            least = tl.where((before << SHARE_BITS) >= bound, next_, least)
        least = tl.where(top_p >= 0, least, 0)
        w = tl.where(keys >= least[:, None], w, 0)
    return tl.where((w.to(tl.int64) << SHARE_BITS) >= (min_p << WEIGHT_BITS)[:, None], w, 0)


@triton.jit
def _draw(scores, allowed, ids, record, real, active):
    """Samples one token for each row."""
    candidates = tl.where(allowed, scores, float("-inf"))
    highest = tl.max(candidates, axis=1)
    greedy = tl.min(tl.where(candidates == highest[:, None], ids[None, :], LOW16), axis=1)
    w = _weights(scores, allowed, highest, tl.load(real + SCALE, mask=active, other=1.0))
    top_k = tl.load(record + TOP_K, mask=active, other=0)
    top_p = tl.load(record + TOP_P, mask=active, other=-1)
    min_p = tl.load(record + MIN_P, mask=active, other=0)
    few = active & (top_k < tl.sum(allowed.to(tl.int64), axis=1))
    asks = few | (active & ((top_p >= 0) | (min_p > 0)))
    if tl.max(asks.to(tl.int32), axis=0) > 0:
        w = _truncate(w, scores, allowed, ids, few, top_k, top_p, min_p)
    cumulative = tl.cumsum(w.to(tl.int64), axis=1)
    total = tl.sum(w.to(tl.int64), axis=1)
    low, high = tl.load(record + KEY_LOW, mask=active, other=0), tl.load(record + KEY_HIGH, mask=active, other=0)
    u = _uniform(low, high, tl.load(record + POSITION, mask=active, other=0) + 1).to(tl.int64)
    # floor(u * total / 2**32) for total < 2**39
    target = (u * (total >> 16) + ((u * (total & LOW16)) >> 16)) >> 16
    sampled = tl.sum((cumulative <= target[:, None]).to(tl.int32), axis=1)
    return tl.where(tl.load(record + GREEDY, mask=active, other=1) != 0, greedy, sampled)


@triton.jit
def _adjusted(logits, ids, slot, record, real, seen, bias, active, V: tl.constexpr):
    """Returns the logits after repetition penalty and bias."""
    scores = logits
    place = slot[:, None] * V + ids[None, :]
    window = tl.load(record + WINDOW, mask=active, other=0)
    if tl.max(window, axis=0) > 0:
        looks = (active & (window > 0))[:, None] & (ids < V)[None, :]
        last = tl.load(seen + place, mask=looks, other=NEVER).to(tl.int64)
        first = tl.load(record + POSITION, mask=active, other=0) - window
        inverse = tl.load(real + INVERSE, mask=active, other=1.0)[:, None]
        penalty = tl.load(real + PENALTY, mask=active, other=1.0)[:, None]
        penalised = tl.where(scores > 0.0, scores * inverse, scores * penalty)
        scores = tl.where((last > first[:, None]) & (last != NEVER), penalised, scores)
    biased = active & ((tl.load(record + DENSE, mask=active, other=0) & BIASED) != 0)
    if tl.max(biased.to(tl.int32), axis=0) > 0:
        scores += tl.load(bias + place, mask=biased[:, None] & (ids < V)[None, :], other=0.0)
    return scores


@triton.jit
def _allowed(ids, slot, record, masks, active, V: tl.constexpr, ROWS: tl.constexpr):
    """Returns which tokens may be sampled."""
    allowed = tl.broadcast_to((ids < V)[None, :], (ROWS, ids.shape[0]))
    masked = active & ((tl.load(record + DENSE, mask=active, other=0) & MASKED) != 0)
    if tl.max(masked.to(tl.int32), axis=0) > 0:
        place = slot[:, None] * V + ids[None, :]
        bits = tl.load(masks + place, mask=masked[:, None] & (ids < V)[None, :], other=0).to(tl.int32)
        early = tl.load(record + GENERATED, mask=active, other=0) < tl.load(record + MIN_TOKENS, mask=active, other=0)
        dropped = ((bits & ALWAYS) != 0) | (((bits & EARLY) != 0) & early[:, None])
        allowed = allowed & (dropped == 0)
    return allowed


@triton.jit
def _advance(token, rows, slot, record, outbox, seen, stops, active, prompted, size, V: tl.constexpr):
    """Updates position, counts and stops, and freezes rows that have ended."""
    taken = tl.load(record + TAKEN, mask=active, other=0)
    tl.store(outbox + (OUTBOX + taken) * size + rows, token.to(tl.int32), mask=active)
    position = tl.load(record + POSITION, mask=active, other=0) + 1
    window = tl.load(record + WINDOW, mask=active, other=0)
    tl.store(seen + slot * V + token, position.to(tl.int32), mask=active & (window > 0))
    sampled = active & (prompted == 0)
    generated = tl.load(record + GENERATED, mask=active, other=0) + sampled.to(tl.int64)
    base = tl.load(record + STOP_BASE, mask=active, other=-1)
    walking = sampled & (base >= 0)
    state = tl.load(record + STOP_STATE, mask=active, other=0)
    entry = tl.load(stops + base + state * V + token, mask=walking, other=0)
    ended = sampled & (token == tl.load(record + END_ID, mask=active, other=-1))
    early = generated < tl.load(record + MIN_TOKENS, mask=active, other=0)
    stopped = walking & (entry >= MATCHED) & (early == 0) & (ended == 0)
    prompt_left = taken + 1 < tl.load(record + FORCED, mask=active, other=0)
    full = active & (generated >= tl.load(record + MAX_TOKENS, mask=active, other=0)) & (prompt_left == 0)
    reason = tl.where(ended, END_OF_SEQUENCE, tl.where(stopped, STOP, tl.where(full, LENGTH, 0)))
    running = (reason == 0) & (taken + 1 < tl.load(record + LIMIT, mask=active, other=0))
    tl.store(record + PENDING, token.to(tl.int64), mask=active)
    tl.store(record + POSITION, position, mask=active)
    tl.store(record + GENERATED, generated, mask=active)
    tl.store(record + TAKEN, taken + 1, mask=active)
    tl.store(record + STOP_STATE, (entry & (MATCHED - 1)).to(tl.int64), mask=walking)
    tl.store(record + STATUS, reason.to(tl.int64), mask=active)
    tl.store(record + ACTIVE, running.to(tl.int64), mask=active)


@triton.jit
def _logits(
    operand,
    W,
    steps,
    b,
    rows,
    ids,
    active,
    H: tl.constexpr,
    tile: tl.constexpr,
):
    """Returns the head's outputs, a tile. In int8 the operand and W are integers; `steps` is used only there."""
    INT8: tl.constexpr = W.dtype.element_ty == tl.int8
    sums = tl.full((tile.rows, tile.units), 0, tl.int32 if INT8 else tl.float32)
    for k in range(0, H, tile.depth):
        ks = k + tl.arange(0, tile.depth)
        x = tl.load(operand + rows[:, None] * H + ks[None, :], mask=active[:, None], other=0)
        w = tl.load(W + ids[None, :] * H + ks[:, None])
        sums = tl.dot(x, w, sums, input_precision="ieee", out_dtype=sums.dtype)
    if INT8:
        return tl.fma(sums.to(tl.float32), tl.load(steps + ids)[None, :], tl.load(b + ids)[None, :])
    else:  # noqa: RET505 - Triton compiles one of the two, and nothing may follow a return
        return sums + tl.load(b + ids)[None, :]


@triton.jit
def _gated(logits, pointed, gate_bias, rows, ids, active, sizes: tl.constexpr):
    """Adds each pointer's gate to the token that it names. The gates are the K outputs after those of the tokens."""
    V: tl.constexpr = sizes.V
    K: tl.constexpr = sizes.K
    MATCHES: tl.constexpr = sizes.MATCHES if sizes.MATCHES > 0 else 1
    outputs, mine = logits, pointed + rows * (2 * K + 2)
    for k in range(K):
        named = tl.load(mine + k, mask=active, other=V)
        match = tl.load(mine + K + k, mask=active, other=0)
        gate = tl.sum(tl.where(ids[None, :] == V + k, outputs, 0.0), axis=1)
        gate = gate + tl.load(gate_bias + k * MATCHES + match, mask=active, other=0.0)
        adds = (ids[None, :] == named[:, None]) & (named < V)[:, None]
        logits = tl.where(adds, logits + gate[:, None], logits)
    return logits


# One kernel for every batch size: by default, Triton compiles another one for numbers divisible by 16.
@triton.jit(do_not_specialize=["size", "kept"])
def head_and_draw(
    integers,
    reals,
    inbox,
    outbox,
    logits_kept,
    seen,
    bias,
    masks,
    stops,
    operand,
    W,
    steps,
    b,
    pointed,
    gate_bias,
    size,
    kept,
    sizes: tl.constexpr,
    tile: tl.constexpr,
):
    """Samples the next token of every active row; one program for a tile of rows and all tokens.

    `operand` (B, H) is the last layer's output, W (units, H) and b (units,) are the head, and in int8 `steps` (units,)
    is the size of its rows' steps. For rows that requested log-probabilities, the logits of step k are stored in
    `logits_kept` (kept, B, V) at k modulo kept.
    """
    V: tl.constexpr = sizes.V
    rows = tl.program_id(0) * tile.rows + tl.arange(0, tile.rows)
    ids = tl.arange(0, tile.units)
    record, real = integers + rows * FIELDS, reals + rows * REALS
    active = tl.load(record + ACTIVE, mask=rows < size, other=0) != 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    logits = _logits(operand, W, steps, b, rows, ids, active, sizes.H, tile)
    if sizes.K > 0:
        logits = _gated(logits, pointed, gate_bias, rows, ids, active, sizes)
    slot = tl.load(inbox + SLOT * size + rows, mask=active, other=0)
    taken = tl.load(record + TAKEN, mask=active, other=0)
    requested = active & (tl.load(record + LOGPROBS, mask=active, other=0) != 0)
    if tl.max(requested.to(tl.int32), axis=0) > 0:
        at = ((taken % kept) * size + rows)[:, None] * V + ids[None, :]
        tl.store(logits_kept + at, logits, mask=requested[:, None] & (ids < V)[None, :])
    scores = _adjusted(logits, ids, slot, record, real, seen, bias, active, V)
    allowed = _allowed(ids, slot, record, masks, active, V, tile.rows)
    sampled = tl.minimum(_draw(scores, allowed, ids, record, real, active), V - 1)
    prompted = active & (taken < tl.load(record + FORCED, mask=active, other=0))
    forced = tl.load(inbox + (INBOX + taken) * size + rows, mask=prompted, other=0)
    token = tl.where(prompted, forced, sampled)
    _advance(token, rows, slot, record, outbox, seen, stops, active, prompted, size, V)
