"""Standard streams that are closed, or cannot be written."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


class ClosedOutput(io.TextIOWrapper):
    """Stands for a standard output that was closed at the start; what is written fails when it is flushed."""


def reopen_closed() -> None:
    """Open in place of each closed standard stream one that has no input, fails to print, or discards errors.

    Python has None for a closed one, and the next file or socket would take its number, and the errors of libraries.
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
    """Flush a stream, or drop what it cannot write: Python would try again at its end. Tells whether it was dropped."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False


def announce(line: str) -> None:
    """Print a server's line of readiness. A server whose standard output was closed serves all the same."""
    if not isinstance(sys.stdout, ClosedOutput):
        print(line, flush=True)
