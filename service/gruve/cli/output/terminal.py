"""Prints: generated text on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

from gruve.cli.exit_codes import FAILED

PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
"""Control characters and what is shown for them, so that a model's output cannot control the terminal. Those above
U+007F, of which xterm takes U+009B for ESC [, have no pictures."""


class Failure(Exception):
    """A command could not do its work; the message is shown to the user on one line."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class TextOut:
    """Writes text as it comes: as it is to a file or a pipe, without control characters to a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._at_line_start = True
        self.is_terminal = stream.isatty()

    def write(self, text: str, style: str = "") -> None:
        """Writes at once; `style` is one of rich's, for terminals alone."""
        if not text:
            return
        self._at_line_start = text.endswith("\n")
        if not self.is_terminal:
            self._stream.write(text)
        elif style:
            write_styled(self._stream, text.translate(PICTURES), style)
        else:
            self._stream.write(text.translate(PICTURES))
        self._stream.flush()

    def end_line(self) -> None:
        """Ends a line that was begun on a terminal; adds nothing to a file."""
        if self.is_terminal and not self._at_line_start:
            self._stream.write("\n")
            self._stream.flush()
            self._at_line_start = True


def standard_output() -> TextOut:
    """Standard output, in UTF-8 whatever the locale says."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    return TextOut(sys.stdout)


def piped_text(argument: str | None) -> str | None:
    """The text that is piped or redirected into the command; None if there is none.

    A terminal or a device such as /dev/null is not read, unless `argument` is "-", which asks for it. Raises `Failure`
    if the text is not UTF-8.
    """
    if argument != "-" and not _is_piped():
        return None
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8")
    try:
        return sys.stdin.read() or None
    except UnicodeDecodeError as error:
        raise Failure(f"standard input is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}") from error


def _is_piped() -> bool:
    """Whether standard input is a pipe, a socket or a file."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or replaced by something without a file
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def say_error(message: str) -> None:
    """One line on standard error; lost if that cannot be written, as the exit code tells of the error too."""
    with contextlib.suppress(OSError):
        print("gruve:", " ".join(message.split()).translate(PICTURES), file=sys.stderr)


def say_note(message: str) -> None:
    """Prints a line on standard error about what was done, dimmed on a terminal; it is lost if it cannot be written."""
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():
            write_styled(sys.stderr, f"{message.translate(PICTURES)}\n", "dim")
        else:
            print(message, file=sys.stderr)


def say_nothing(message: str) -> None:
    """A replacement of `say_note` that prints nothing."""


def is_styled(stream: TextIO) -> bool:
    """Whether to style what is written to `stream`: on a terminal that can, unless NO_COLOR is set and not empty."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "")


def write_styled(stream: TextIO, text: str, style: str) -> None:
    """Writes to a terminal in a style, or plainly where `is_styled` says so."""
    if not is_styled(stream):
        stream.write(text)
        stream.flush()
        return
    from rich.console import Console

    Console(file=stream).out(text, style=style, highlight=False, end="")


def print_tabs(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a header and a line for each row, with tabs between columns; white space in a cell becomes one space."""
    for row in (columns, *rows):
        print("\t".join(" ".join(cell.split()) for cell in row))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: drawn on a terminal; elsewhere as `print_tabs` does."""
    if sys.stdout.isatty():
        print_wide(columns, [(row, "") for row in rows])
    else:
        print_tabs(columns, rows)


def print_wide(columns: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]) -> None:
    """Prints a table to a terminal; below each row its note, indented, if it has one.

    A line that is wider than the terminal is wrapped between words, and its rest is indented.
    """
    widths = [max(len(cell) for cell in cells) for cells in zip(columns, *(row for row, _ in rows), strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    print_wrapped(line(columns), "bold")
    for row, note in rows:
        print_wrapped(line(row))
        if note:
            print_wrapped(note, "dim", indent="  ")


def print_wrapped(text: str, style: str = "", *, indent: str = "") -> None:
    """Prints a paragraph to a terminal, wrapped between words to its width."""
    width = max(20, shutil.get_terminal_size().columns)
    plain = " ".join(text.split("\n")).translate(PICTURES)
    if len(indent) + len(plain) <= width:
        parts = [indent + plain]
    else:
        parts = textwrap.wrap(
            plain, width, initial_indent=indent, subsequent_indent=indent or "  ", break_on_hyphens=False
        )
    for part in parts:
        if style:
            write_styled(sys.stdout, part, style)
        print("" if style else part)
