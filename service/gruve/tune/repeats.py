"""Brings bar lines to their canonical form: every repeat opened and closed, endings one and two, one final bar line.

Repairs unambiguous faults, refuses others, and never changes a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from gruve.errors import TuneError
from gruve.tune.raw import RawBar, RawEvent, RawPart
from gruve.tune.score import Bar, Event, Note


def fold_repeats(raw: Iterable[RawEvent], *, open_end: bool = False) -> tuple[Event, ...]:
    """The events with canonical bar lines.

    Repairs: a `:|` without its `|:` gets one at the last double bar, repeat or start. A `|:` that is never closed
    becomes a double bar, which plays the same. A `|` or `||` before a second ending becomes a `:|`, and a `:|` after
    one a double bar. The end gets `|]`. Raises TuneError for endings other than one and two, and for an ending without
    its partner.

    With `open_end` the music may continue: no note is needed, an open repeat stays open, and the final bar line is a
    double one.
    """
    fold = _Fold()
    pending: RawBar | None = None
    for event in raw:
        if isinstance(event, RawPart):
            continue
        if not isinstance(event, RawBar):
            if pending is not None:
                fold.take_bar(pending)
                pending = None
            fold.out.append(event)
        else:
            pending = event if pending is None else _joined(pending, event)
    if not open_end:
        fold.finish(pending or RawBar())
    elif pending:
        fold.take_bar(pending)
    return tuple(fold.out)


def _joined(first: RawBar, second: RawBar) -> RawBar:
    """Two adjacent bar lines as one."""
    return replace(
        first,
        closes=first.closes or second.closes,
        opens=first.opens or second.opens,
        thin=first.thin and second.thin,
        ending=first.ending or second.ending,
    )


class _Fold:
    def __init__(self) -> None:
        self.out: list[Event] = []
        self.start = 0  # the place of the line, or between lines, where a repeat that is closed next would open
        self.is_open = False
        self.ending = 0

    def take_bar(self, bar: RawBar) -> None:
        endings = re.findall(r"\d{1,2}", bar.ending)
        if endings and endings not in (["1"], ["2"]):
            raise TuneError(f"ending {bar.ending!r}; endings 1 and 2 are read", bar.line, bar.column)
        if not self.out and (bar.closes or endings):
            raise TuneError("a repeat of nothing", bar.line, bar.column)
        if not self.out:
            if bar.opens:
                self.open_here()
        elif endings == ["1"]:
            self.take_first_ending(bar)
        elif endings == ["2"]:
            self.take_second_ending(bar)
        elif self.ending == 1 and (bar.closes or bar.opens):
            raise TuneError("a first ending without a second", bar.line, bar.column)
        elif bar.thin or self.ending == 1:
            self.out.append(Bar("|"))
        elif bar.closes and self.ending != 2:
            self.close(bar)
        else:
            self.divide(bar)

    def take_first_ending(self, bar: RawBar) -> None:
        if bar.closes or bar.opens or self.ending:
            raise TuneError("a first ending that stands at a repeat", bar.line, bar.column)
        if not self.is_open:
            self.open_at_start()
        self.out.append(Bar("|1"))
        self.ending = 1

    def take_second_ending(self, bar: RawBar) -> None:
        if self.ending != 1 or bar.opens:
            raise TuneError("a second ending without a first", bar.line, bar.column)
        self.out.append(Bar(":|2"))
        self.ending = 2
        self.is_open = False

    def close(self, bar: RawBar) -> None:
        if not self.is_open:
            self.open_at_start()
        self.out.append(Bar(":|"))
        self.is_open = False
        self.start = len(self.out)
        if bar.opens:
            self.open_here()

    def divide(self, bar: RawBar) -> None:
        """Writes a double bar or the start of a repeat; both end a second ending."""
        self.ending = 0
        if bar.opens:
            if self.is_open:
                self.forget_open()
            self.open_here()
        else:
            if not self.is_open:
                self.start = len(self.out)
            self.out.append(Bar("||"))

    def open_here(self) -> None:
        self.start = len(self.out)
        self.out.append(Bar("|:"))
        self.is_open = True

    def open_at_start(self) -> None:
        """Opens the repeat at the place where it must begin: a double bar there becomes `|:`."""
        if self.start < len(self.out) and self.out[self.start] == Bar("||"):
            self.out[self.start] = Bar("|:")
        else:
            self.out.insert(self.start, Bar("|:"))
        self.is_open = True

    def forget_open(self) -> None:
        if self.start == 0 or isinstance(self.out[self.start - 1], Bar):
            del self.out[self.start]
        else:
            self.out[self.start] = Bar("||")
        self.is_open = False

    def finish(self, bar: RawBar) -> None:
        if not any(isinstance(event, Note) for event in self.out):
            raise TuneError("no notes")
        if bar.ending or self.ending == 1:
            raise TuneError("a first ending without a second", bar.line, bar.column)
        if bar.closes and self.ending != 2:
            if not self.is_open:
                self.open_at_start()
            self.out.append(Bar(":|"))
            return
        if self.is_open:
            self.forget_open()
        self.out.append(Bar("|]"))
