"""Stop tables side by side in one array on the device; equal tables are there once.

Knows numbers and places; nothing of stops.
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
    """Gives tables their places. `entries` is replaced by a larger array when they are all taken."""

    def __init__(self, device: Device, entries: int) -> None:
        """`entries` is what there is place for at first."""
        self.entries: Tensor = torch.zeros(entries, dtype=torch.int32, device=device.kind)
        self._device = device
        self._free: list[tuple[int, int]] = [(0, entries)]
        """(base, entries) of what is free, in order, no two of them neighbours."""
        self._by_key: dict[bytes, _Table] = {}
        self._by_base: dict[int, _Table] = {}

    def add(self, table: NDArray[np.int32]) -> int:
        """The place where `table` begins; one `drop` is owed for every `add`."""
        flat = np.ascontiguousarray(table, dtype=np.int32).reshape(-1)
        key = hashlib.sha256(flat.data).digest()
        found = self._by_key.get(key)
        if found is None:
            found = _Table(key, self._place(len(flat)), len(flat), 0)
            self._by_key[key] = self._by_base[found.base] = found
            self._device.put(flat, self.entries[found.base : found.base + len(flat)])
        found.users += 1
        return found.base

    def drop(self, base: int) -> None:
        """Gives a table up; its place is free when nobody uses it any more."""
        table = self._by_base[base]
        table.users -= 1
        if not table.users:
            del self._by_key[table.key], self._by_base[base]
            self._give_back(base, table.entries)

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
        self._device.settle()  # `old` is read until then
        self.entries = new
        self._give_back(size, more)

    def _give_back(self, base: int, entries: int) -> None:
        at = bisect.bisect(self._free, (base, entries))
        if at < len(self._free) and base + entries == self._free[at][0]:
            entries += self._free.pop(at)[1]
        if at and sum(self._free[at - 1]) == base:
            at, before = at - 1, self._free.pop(at - 1)
            base, entries = before[0], before[1] + entries
        self._free.insert(at, (base, entries))
