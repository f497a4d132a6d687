"""The loss curve of a run: a CSV file that grows, and its plot."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from matplotlib.figure import Figure

CSV_FILE, PNG_FILE = "losses.csv", "curves.png"
COLUMNS = ("step", "tokens", "learning_rate", "train_nats", "validation_nats")


class Curve:
    """The rows of `losses.csv` in a folder, written to disk as they are added."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CSV_FILE
        self.rows: list[tuple[float, ...]] = []

    def add(self, *row: float) -> None:
        """Adds one row, with the columns of `COLUMNS`."""
        self.rows.append(row)
        self.write()

    def cut(self, step: int) -> None:
        """Continues with the rows on disk up to `step` and removes later ones."""
        self.rows = [row for row in read_curve(self.path) if row[0] <= step]
        self.write()

    def write(self) -> None:
        """Writes the file, and its folder if there is none. Raises `OSError`, and then the old file stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{CSV_FILE}.partial")  # a run that is killed leaves a file that can be read
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([int(a), int(b), f"{c:.3e}", f"{d:.5f}", f"{e:.5f}"] for a, b, c, d, e in self.rows)
        os.replace(partial, self.path)

    def draw(self) -> None:
        """Draws `curves.png` next to the CSV file."""
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        tokens = [row[1] / 1e6 for row in self.rows]
        axes.plot(tokens, [row[3] for row in self.rows], label="training, with dropout", color="0.6")
        axes.plot(tokens, [row[4] for row in self.rows], label="validation, averaged weights", color="tab:blue")
        axes.set_xlabel("million tokens")
        axes.set_ylabel("nats per token")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self.path.with_name(PNG_FILE), dpi=120, metadata={"Software": None})


def read_curve(path: Path) -> list[tuple[float, ...]]:
    """The rows of a `losses.csv`; none if the file does not exist."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [tuple(float(row[column]) for column in COLUMNS) for row in csv.DictReader(file)]
