"""Measures the limits of this CPU, which benchmarks compare a step with. Decoding does not use it.

Each probe runs on the calling thread for about the given time, without the GIL.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_char_p, c_double, c_int32, c_size_t

from gruve.decode.native.library import LIBRARY

PATTERNS = 3


def fma_flop_per_s(isa: str, seconds: float) -> float:
    """FLOP/s of independent chains of fused multiply-adds; 0 if the CPU does not have `isa`."""
    return float(_probes().gruve_probe_fma(isa.encode(), seconds))


def read_bytes_per_s(isa: str, size_bytes: int, pattern: int, seconds: float) -> float:
    """Bytes read per second from `size_bytes` bytes of memory, in order `pattern`, 0 to 2 (see `probe.h`).

    0 if the CPU does not have `isa`, or the machine not as much memory.
    """
    return float(_probes().gruve_probe_read(isa.encode(), size_bytes, pattern, seconds))


def clock_hz(seconds: float) -> float:
    """Clock cycles per second of the calling thread's core, now."""
    return float(_probes().gruve_probe_clock(seconds))


@functools.cache
def _probes() -> ctypes.CDLL:
    """The shared library, loaded with the types of its probe functions."""
    library = ctypes.CDLL(str(LIBRARY))
    for name, arguments in (
        ("gruve_probe_fma", (c_char_p, c_double)),
        ("gruve_probe_read", (c_char_p, c_size_t, c_int32, c_double)),
        ("gruve_probe_clock", (c_double,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = c_double, arguments
    return library
