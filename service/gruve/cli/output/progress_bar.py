"""The progress bar of `gruve train`: one line that fits the terminal, whatever its width."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gruve.training.trainer import Progress

REDRAW_S: Final = 0.1
MIN_BAR: Final = 8
MAX_BAR: Final = 40
"""Columns of the bar; with less room there is none."""


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A function that shows progress on the terminal of standard error; the last state stays there."""
    began = time.monotonic()
    last, drawn, drawn_s, best = "", "", -1.0, float("inf")
    first_step: int | None = None

    def show(progress: Progress) -> None:
        nonlocal last, drawn, drawn_s, best, first_step
        if first_step is None:
            first_step = progress.step - 1
        if progress.validation_loss is not None:
            best = min(best, progress.validation_loss)
        now = time.monotonic()
        last = progress_line(progress, best, now - began, _columns(), first_step)
        if now - drawn_s >= REDRAW_S:
            _draw(last, over=drawn)
            drawn, drawn_s = last, now

    try:
        yield show
    finally:
        if last:
            _draw(last, over=drawn)
            _draw("\n")


def progress_line(progress: Progress, best: float, elapsed_s: float, columns: int, first_step: int = 0) -> str:
    """Progress in less than `columns` characters: the step, then as many of the other figures as fit, and a bar.

    `best` is the lowest validation loss so far in nats, infinite before there is one. `elapsed_s` is the time since
    `first_step`, which a resumed run begins with.
    """
    steps, step = progress.steps, progress.step
    left_s = elapsed_s * (steps - step) / max(1, step - first_step)
    figures = [f"{step}/{steps}", f"loss {progress.train_loss:.4f}"]
    if best < float("inf"):
        figures.append(f"best {best:.4f}")
    figures += [f"{_clock(left_s)} left", f"{progress.tokens_per_second:,.0f} tokens/s"]
    room = columns - 1  # a character in the last column would wrap on some terminals
    line = figures[0][:room]
    for figure in figures[1:]:
        if len(line) + 2 + len(figure) > room:
            break
        line += f"  {figure}"
    width = min(MAX_BAR, room - len(line) - 2)
    if width < MIN_BAR:
        return line
    done = width * step // steps
    return f"{'━' * done}{'─' * (width - done)}  {line}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def _draw(line: str, *, over: str = "") -> None:
    """Writes a line over another. Spaces clear its rest, because NO_COLOR and some terminals want no escape codes."""
    sys.stderr.write("\r" * bool(over) + line.ljust(len(over)))
    sys.stderr.flush()
