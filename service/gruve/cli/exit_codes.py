"""The exit codes of every command, in one table, which `--help` prints too."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
CANNOT_CHECK: Final = 3
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141
TERMINATED: Final = 143

MEANINGS: Final = {
    DONE: "done",
    FAILED: "failed: a server, a file or a model does not do what was asked, or a check failed",
    USAGE: "wrong usage: an unknown flag, a missing argument, or a value that is malformed or out of range",
    CANNOT_CHECK: "verify alone: the receipt cannot be checked with these models on this machine",
    INTERRUPTED: "Ctrl-C",
    PIPE_CLOSED: "the reader of the output is gone",
    TERMINATED: "SIGTERM, where the command could not end in order",
}
"""Each exit code with its meaning."""


def table() -> str:
    """The lines of the table for `--help`."""
    return "\n".join(f"  {code:<5}{meaning}" for code, meaning in MEANINGS.items())
