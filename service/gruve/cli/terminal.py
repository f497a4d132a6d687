"""What is printed and where: generated text on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters to their pictures, so that what a model writes cannot command the terminal."""


class Failure(Exception):
    """What a command could not do, told to its user in a line."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
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


def say_error(message: str) -> None:
    """One line on standard error."""
    print("gruve:", " ".join(message.split()).translate(PICTURES), file=sys.stderr)


def say_note(message: str) -> None:
    """A line on standard error about what was done, dimmed on a terminal."""
    if sys.stderr.isatty():
        write_styled(sys.stderr, f"{message.translate(PICTURES)}\n", "dim")
    else:
        print(message, file=sys.stderr)


def say_nothing(message: str) -> None:
    """`say_note` for those who want none."""


def write_styled(stream: TextIO, text: str, style: str) -> None:
    """Writes to a terminal in a style, where the terminal and its user (NO_COLOR) want one."""
    from rich.console import Console

    Console(file=stream).out(text, style=style, highlight=False, end="")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: drawn on a terminal; elsewhere tabs between columns and a line for each row."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(" ".join(cell.split()) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell.translate(PICTURES)) for cell in row))
    Console().print(table)
