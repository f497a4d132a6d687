"""Checks a book of tunes: the errors of each tune with line and column, and a corrected tune. Does no file access."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gruve.errors import TuneError
from gruve.tune.bar_repair import repaired
from gruve.tune.bars import wrong_bars
from gruve.tune.lexer import split_book, with_line_feeds
from gruve.tune.parse import AnyTune, parse_any_tune
from gruve.tune.raw import Finding, Findings
from gruve.tune.score import Tune
from gruve.tune.write import write_tune


@dataclass(frozen=True, slots=True)
class CheckedTune:
    """A checked tune: its `X:`, its first line in the book, the findings, and the corrected tune.

    `fixed` is None if the tune cannot be read. A wrong bar that has no single certain repair is left as it is.
    """

    number: str
    line: int
    findings: tuple[Finding, ...]
    fixed: str | None

    @property
    def is_right(self) -> bool:
        """Whether there is no error and no warning; notes about what the reader leaves out do not count."""
        return all(finding.level == "note" for finding in self.findings)


def check_book(text: str) -> Iterator[CheckedTune]:
    """Checks each tune of a book; lines and columns count in the book. A text without `X:` is one tune."""
    text = with_line_feeds(text)
    for line, tune in list(split_book(text)) or [(1, text.split("\n"))]:
        yield _checked(line, "\n".join(tune))


def _checked(line: int, text: str) -> CheckedTune:
    found = Findings()
    number = text.split("\n", 1)[0][2:].split("%")[0].strip() if text.startswith("X:") else ""
    fixed: str | None = None
    errors: list[Finding] = []
    x = int(number) if re.fullmatch("[0-9]{1,9}", number) else None
    if x is None:
        found.warn(1, 1, "no X: field with a number of 1 to 9 digits; it is 1")
    try:
        read = parse_any_tune(text, found)
        if not read.tune.title:
            found.warn(1, 1, "no T: field; the tune is untitled")
        fixed = _fixed(read, 1 if x is None else x, found)
    except TuneError as error:
        errors = [Finding("error", error.line, error.column, error.why)]
    # What is about a whole tune stands at its beginning.
    findings = tuple(
        replace(finding, line=max(finding.line, 1) + line - 1, column=max(finding.column, 1))
        for finding in [*found.all(), *errors]
    )
    return CheckedTune(number, line, findings, fixed)


def _fixed(read: AnyTune, number: int, found: Findings) -> str:
    """The tune as ABC with its bars repaired; adds a finding for each wrong bar that says whether it was repaired."""
    tune: Tune = read.tune
    before = wrong_bars(tune)
    tune = repaired(tune)
    left = before if wrong_bars(tune) else []
    for wrong in before:
        found.warn(*wrong.place, f"{wrong}; " + ("it stays" if left else "its bar lines and rests are repaired"))
    return write_tune(tune, number=number, fields=read.fields)
