"""The reader's output, before repeats are brought to their normal form: the values between `read` and `parse`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from gruve.tune.score import Key, Meter, MeterChange, Note, Tempo, Tuplet

MAX_FINDINGS: Final = 100
"""Warnings that are kept of one tune; what comes then is counted."""


@dataclass(frozen=True, slots=True)
class RawBar:
    """A bar line as written: what it closes, what it opens, whether it is a single line, and its ending's numbers."""

    closes: bool = False
    opens: bool = False
    thin: bool = False
    ending: str = ""
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class RawPart:
    """The start of a part that a `P:` in the music names."""

    name: str
    line: int = 0


RawEvent = Note | Tuplet | MeterChange | RawBar | RawPart


@dataclass(frozen=True, slots=True)
class RawTune:
    """A tune as read: headers, and events with bar lines as written.

    `fields` are the headers that do not change the music, such as `C:`, in their order. `order` is the header's `P:`,
    the order in which the parts are played.
    """

    title: str
    meter: Meter
    key: Key
    events: tuple[RawEvent, ...]
    rhythm: str = ""
    tempo: Tempo | None = None
    free_meter: bool = False
    order: str = ""
    fields: tuple[tuple[str, str], ...] = ()


Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A message about a text. An error ends reading, a warning reports a fault, a note reports what was left out.

    `line` and `column` count from 1; 0 means the whole tune.
    """

    level: Level
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        place = f"{self.line}:{self.column}: " if self.line else ""
        return f"{place}{self.level}: {self.message}"


@dataclass(slots=True)
class Findings:
    """Collects findings: the first hundred warnings, and one note for each kind of thing that is left out."""

    warnings: list[Finding] = field(default_factory=list)
    unlisted: int = 0
    left_out: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def warn(self, line: int, column: int, message: str) -> None:
        """Adds a warning."""
        if len(self.warnings) < MAX_FINDINGS:
            self.warnings.append(Finding("warning", line, column, message))
        else:
            self.unlisted += 1

    def leave_out(self, kind: str, line: int, column: int) -> None:
        """Counts one more thing of `kind`, a plural noun, as left out."""
        count, first_line, first_column = self.left_out.get(kind, (0, line, column))
        self.left_out[kind] = (count + 1, first_line, first_column)

    def all(self) -> list[Finding]:
        """Every finding in the order of the text."""
        notes = [
            Finding("note", line, column, f"left out: {kind} ({count})")
            for kind, (count, line, column) in self.left_out.items()
        ]
        found = sorted([*self.warnings, *notes], key=lambda one: (one.line, one.column))
        more = [Finding("warning", 0, 0, f"and {self.unlisted} more")] if self.unlisted else []
        return found + more
