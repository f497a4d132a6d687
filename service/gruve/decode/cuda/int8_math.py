"""The fp32 operations of `decode/int8.py` in Triton: the same bits on a GPU, interpreted, and on a CPU.

Launch kernels that use these with `enable_fp_fusion=False`, because every operation must be rounded by itself. The
fused ones are `tl.fma`. Triton's `/` is not rounded to nearest on a GPU; `tl.div_rn` is.
"""

import triton
import triton.language as tl

from gruve.decode import int8

STEPS = tl.constexpr(float(int8.INPUT_STEPS))
MAGIC = tl.constexpr(float.fromhex("0x1.8p23"))
"""Added to a number below 2**22, it rounds it to a whole one, ties to even, and leaves that in the low bits."""
SIGMOID_SCALE, SIGMOID_MOST = tl.constexpr(float.fromhex("-0x1.715476p0")), tl.constexpr(126.0)
TANH_SCALE, TANH_MOST = tl.constexpr(float.fromhex("0x1.715476p1")), tl.constexpr(26.0)
C6, C5, C4, C3, C2, C1 = (tl.constexpr(float.fromhex(c)) for c in int8.POLYNOMIAL)


@triton.jit
def sigmoid(x):
    """See `int8.sigmoid`."""
    power, fraction = _exponential(_clamped(x * SIGMOID_SCALE, SIGMOID_MOST))
    return tl.div_rn(1.0, 1.0 + tl.fma(power, fraction, power))


@triton.jit
def tanh(x):
    """See `int8.tanh`."""
    power, fraction = _exponential(_clamped(x * TANH_SCALE, TANH_MOST))
    m = tl.fma(power, fraction, power - 1.0)
    return tl.div_rn(m, m + 2.0)


@triton.jit
def integers(h):
    """A state in whole steps of 1/127, as int8; see `int8.integer_inputs`."""
    return (_clamped(h * STEPS, STEPS) + MAGIC).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _exponential(t):
    shifted = t + MAGIC
    f = t - (shifted - MAGIC)
    q = tl.fma(C6, f, C5)
    q = tl.fma(q, f, C4)
    q = tl.fma(q, f, C3)
    q = tl.fma(q, f, C2)
    q = tl.fma(q, f, C1)
    exponent = ((shifted.to(tl.int32, bitcast=True) & 0xFF) + 127) & 0xFF
    return (exponent << 23).to(tl.float32, bitcast=True), q * f


@triton.jit
def _clamped(x, most):
    """x between -most and most; NaN becomes most."""
    x = tl.where(x < most, x, most)
    return tl.where(x > -most, x, -most)
