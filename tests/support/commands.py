"""Runs the `gruve` command as a process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

ECHO = b"^C"
"""What a terminal shows for Ctrl-C, before or after the output that answers it."""
GRUVE = (sys.executable, "-m", "gruve.cli")
# A terminal has a size of its own; pytest-xdist sets COLUMNS in its processes.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}


def gruve(*arguments: str, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, with `text` piped in."""
    return subprocess.run(
        (*GRUVE, *arguments), input=text, capture_output=True, text=True, check=False, env=os.environ | environment
    )


def generate(address: str, *arguments: str, **more) -> subprocess.CompletedProcess[str]:
    return gruve("generate", "tiny", *arguments, "--address", address, **more)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended after the test."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen((*GRUVE, *arguments), text=True, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def in_a_terminal(
    *arguments: str, columns: int = 80, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """A process on a terminal of its own: (process, our end of the terminal, the end of the process)."""
    shown, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    # Otherwise Ctrl-C discards what the process has written, also what it writes in answer to it.
    attributes = termios.tcgetattr(inside)
    attributes[3] |= termios.NOFLSH
    termios.tcsetattr(inside, termios.TCSANOW, attributes)
    # The first terminal that a session leader opens becomes its controlling terminal, so that Ctrl-C interrupts it.
    script = 'exec "$@" <"$0" >"$0" 2>&1'
    command = ("sh", "-c", script, os.ttyname(inside), *GRUVE, *arguments)
    process = subprocess.Popen(command, start_new_session=True, env=_ENVIRONMENT | {"TERM": "xterm"} | environment)
    try:
        yield process, shown, inside
    finally:
        process.kill()
        process.wait()
        os.close(shown)
        os.close(inside)


def read_until(terminal: int, text: bytes) -> bytes:
    """Reads the output until `text` is in it, without the echo of Ctrl-C."""
    shown = b""
    while text not in shown:
        assert select.select([terminal], [], [], 60)[0], f"{text!r} does not come; shown is {shown!r}"
        shown = (shown + os.read(terminal, 4_096)).replace(ECHO, b"")
    return shown


def read_all(terminal: int, process: subprocess.Popen[bytes]) -> bytes:
    """Reads the output until the process ends, without the echo of Ctrl-C."""
    shown = b""
    os.set_blocking(terminal, False)
    while True:
        ended = process.poll() is not None
        with contextlib.suppress(BlockingIOError):
            shown += os.read(terminal, 65_536)
            continue
        if ended:
            return shown.replace(ECHO, b"")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
