"""What the reader finds, before repeats are brought to their normal form: the values between `read` and `parse`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from gruve.tune.score import Key, Meter, MeterChange, Note, Tempo, Tuplet

MAX_FINDINGS: Final = 100
"""Warnings that are kept of one tune; what comes then is counted."""


@dataclass(frozen=True, slots=True)
class RawBar:
    """A bar line as it stands: what it closes, what it opens, whether it is a single line, and its ending's numbers."""

    closes: bool = False
    opens: bool = False
    thin: bool = False
    ending: str = ""
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class RawPart:
    """The start of a part that `P:` in the body names."""

    name: str
    line: int = 0


RawEvent = Note | Tuplet | MeterChange | RawBar | RawPart


@dataclass(frozen=True, slots=True)
class RawTune:
    """What the reader found: headers, and events with bar lines as written.

    `fields` are the headers that say something about the tune and change nothing in it, such as `C:`, in their order.
    `order` is the `P:` of the header, in which the parts are played.
    """

    title: str
    source: str
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
    """Something about a text. An error ends its reading; a warning tells a fault, a note what was left out.

    `line` and `column` count from 1; 0 means the tune as a whole.
    """

    level: Level
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: {self.level}: {self.message}"


@dataclass(slots=True)
class Findings:
    """Collects findings: of warnings the first hundred, of what is left out one note for each kind."""

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
        """Counts one more of a kind that is left out; `kind` is a plural noun."""
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
