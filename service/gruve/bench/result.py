"""A benchmark's result: rows of figures, printed as one line of JSON at the end."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Report = Callable[[str], None]
"""Receives one line of progress."""
Value = str | int | float | bool | None
Row = dict[str, Value]


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """The rows of a benchmark with the machine and the versions."""

    benchmark: str
    machine: Mapping[str, Value]
    versions: Mapping[str, Value]
    rows: Sequence[Row]
    skipped: Sequence[Row] = ()
    """The measurements that were skipped, each with its reason in `why`."""

    def to_json(self) -> str:
        """Returns one line. A figure that does not exist is null."""
        fields: dict[str, object] = {
            "benchmark": self.benchmark,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "rows": [{key: _plain(value) for key, value in row.items()} for row in self.rows],
        }
        if self.skipped:
            fields["skipped"] = [dict(row) for row in self.skipped]
        return json.dumps(fields, allow_nan=False)

    def save(self, path: Path) -> None:
        """Writes the line as a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json() + "\n")


def table(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """The rows as aligned lines under their columns' names."""
    cells = [list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _plain(value: Value) -> Value:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _cell(value: Value) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
