"""Stores stop tables one after the other in one array on the device; equal tables share one place.

Knows arrays and places, not what the entries mean.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gruve.decode.cuda.device import Device


@dataclasses.dataclass(slots=True)
class _Table:
    key: bytes
    base: int
    entries: int
    users: int


class StopPool:
    """Allocates places for tables. `entries` is replaced by a larger array when it is full."""

    def __init__(self, device: Device, entries: int) -> None:
        """`entries` is the number of entries allocated at first."""
        self.entries: Tensor = torch.zeros(entries, dtype=torch.int32, device=device.kind)
        self._device = device
        self._free: list[tuple[int, int]] = [(0, entries)]
        """(base, entries) of the free places, ordered, adjacent ones merged."""
        self._by_key: dict[bytes, _Table] = {}
        self._by_base: dict[int, _Table] = {}

    def add(self, table: NDArray[np.int32]) -> int:
        """Stores `table` and returns where it begins. Every `add` needs one `release`."""
        flat = np.ascontiguousarray(table, dtype=np.int32).reshape(-1)
        key = hashlib.sha256(flat.data).digest()
        found = self._by_key.get(key)
        if found is None:
            found = _Table(key, self._place(len(flat)), len(flat), 0)
            self._by_key[key] = self._by_base[found.base] = found
            self._device.upload(flat, self.entries[found.base : found.base + len(flat)])
        found.users += 1
        return found.base

    def release(self, base: int) -> None:
        """Gives up one use of the table at `base`. Its place is free after the last use."""
        table = self._by_base[base]
        table.users -= 1
        if not table.users:
            del self._by_key[table.key], self._by_base[base]
            self._free_place(base, table.entries)

    def _place(self, entries: int) -> int:
        for i, (base, free) in enumerate(self._free):
            if free >= entries:
                self._free[i : i + 1] = [(base + entries, free - entries)] if free > entries else []
                return base
        self._grow(max(entries, len(self.entries)))
        return self._place(entries)

    def _grow(self, more: int) -> None:
        old, size = self.entries, len(self.entries)
        new = torch.empty(size + more, dtype=torch.int32, device=self._device.kind)

        def move() -> None:
            new[:size] = old
            new[size:] = 0

        self._device.run(move)
        self._device.synchronize()  # `old` is read until here
        self.entries = new
        self._free_place(size, more)

    def _free_place(self, base: int, entries: int) -> None:
        at = bisect.bisect(self._free, (base, entries))
        if at < len(self._free) and base + entries == self._free[at][0]:
            entries += self._free.pop(at)[1]
        if at and sum(self._free[at - 1]) == base:
            at, before = at - 1, self._free.pop(at - 1)
            base, entries = before[0], before[1] + entries
        self._free.insert(at, (base, entries))
