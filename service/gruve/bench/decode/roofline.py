"""Probes the CPU's limits in the same run: the peak rate of multiply-adds, and the bandwidth of reading weights.

The probes are C functions in the library of the native backend. Without the library there is no roofline.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Callable

from gruve.decode.native import unavailable_reason
from gruve.decode.native.library import chosen_isa
from gruve.decode.native.probe import PATTERNS, clock_hz, fma_flop_per_s, read_bytes_per_s

BEST_OF = 5
PROBE_S = 0.02


@dataclasses.dataclass(frozen=True, slots=True)
class Roofline:
    """The limits of several threads together; NaN if they could not be probed."""

    isa: str
    fma_gflops: float
    read_gb_s: float
    """Of memory as large as the packed weights, divided among the threads; the best of three access patterns."""
    clock_ghz: float
    """Of one core."""

    @property
    def fma_flop_per_cycle(self) -> float:
        """Of all threads together."""
        return self.fma_gflops / self.clock_ghz


def probe_roofline(weight_bytes: int, threads: int) -> Roofline:
    """The best of five probes, on all threads at the same time."""
    if unavailable_reason() is not None:
        return Roofline("unknown", math.nan, math.nan, math.nan)
    isa, part = chosen_isa(), weight_bytes // threads
    return Roofline(
        isa,
        _best(lambda: fma_flop_per_s(isa, PROBE_S), threads) / 1e9,
        max(_best(functools.partial(read_bytes_per_s, isa, part, p, PROBE_S), threads) for p in range(PATTERNS)) / 1e9,
        _best(lambda: clock_hz(PROBE_S), 1) / 1e9,
    )


def _best(probe: Callable[[], float], threads: int) -> float:
    return max(_together(probe, threads) for _ in range(BEST_OF))


def _together(probe: Callable[[], float], threads: int) -> float:
    """The sum over threads that run at the same time."""
    found: list[float] = []
    barrier = threading.Barrier(threads)

    def one() -> None:
        barrier.wait()
        found.append(probe())

    workers = [threading.Thread(target=one) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(found)
