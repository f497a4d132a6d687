"""Standard streams that are closed, or cannot be written."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


class ClosedOutput(io.TextIOWrapper):
    """Stands for a standard output that was closed at the start; what is written fails when it is flushed."""


def reopen_closed() -> None:
    """Replaces each standard stream that is closed: input is empty, printing fails, and errors are discarded.

    Python has None for a closed stream. The next file or socket would take its number, and a library that prints an
    error would write into that.
    """
    if sys.stdin is None:
        sys.stdin = _nothing(os.O_RDONLY, "r")
    if sys.stdout is None:
        sys.stdout = ClosedOutput(_nothing(os.O_RDONLY, "w").detach(), encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = _nothing(os.O_WRONLY, "w")


def _nothing(flags: int, mode: str) -> Any:
    return open(os.open(os.devnull, flags), mode, encoding="utf-8", closefd=False)


def drop_unwritten(stream: TextIO) -> bool:
    """Flushes a stream, or drops what it cannot write, because Python would try again at its end.

    Returns whether something was dropped.
    """
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False


def announce(line: str) -> None:
    """Prints a server's line of readiness, unless standard output was closed: the server serves without it."""
    if not isinstance(sys.stdout, ClosedOutput):
        print(line, flush=True)
