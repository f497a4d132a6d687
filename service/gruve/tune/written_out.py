"""Writes out third endings, lists of endings, and parts in the order of `P:`, so that only two endings remain.

Works on the reader's output, before repeats are brought to their normal form. The music as played does not change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Final

from gruve.errors import TuneError
from gruve.tune.raw import Findings, RawBar, RawEvent, RawPart
from gruve.tune.score import Note

MAX_EVENTS: Final = 131_072
MAX_PARTS: Final = 64
MAX_PASSES: Final = 16
_DOUBLE: Final = RawBar()


def written_out(
    events: Sequence[RawEvent], order: str, findings: Findings, *, open_end: bool = False
) -> list[RawEvent]:
    """The events with parts in the order played, and with no endings but pairs of a first and a second.

    With `open_end` the music may continue, so a first ending at its end is not a fault. Raises TuneError if the result
    would be too long.
    """
    return _Endings(findings, open_end).write(_in_order(events, order, findings))


def expanded_order(order: str) -> list[str]:
    """The names of the parts that a `P:` field lists, at most the first 64: `A2(BC)2` is A A B C B C."""
    found = re.match(r"[A-Z0-9().\s]*", order)
    stack: list[list[str]] = [[]]
    last: list[str] = []
    for sign in re.findall(r"[A-Z]|\d{1,2}|[()]", found[0] if found else ""):
        if sign == "(":
            stack.append([])
            last = []
        elif sign == ")":
            last = stack.pop() if len(stack) > 1 else []
            if not stack:
                stack = [[]]
            stack[-1] += last
        elif sign.isdigit():
            stack[-1] += last * (min(int(sign), MAX_PARTS) - 1)
            last = []
        else:
            last = [sign]
            stack[-1].append(sign)
        stack[-1] = stack[-1][:MAX_PARTS]
    return [name for one in stack for name in one][:MAX_PARTS]


def _in_order(events: Sequence[RawEvent], order: str, findings: Findings) -> list[RawEvent]:
    """The parts one after the other in playing order."""
    before: list[RawEvent] = []
    parts: dict[str, list[RawEvent]] = {}
    part = before
    for event in events:
        if isinstance(event, RawPart):
            part = parts.setdefault(event.name, [])
        else:
            part.append(event)
    names = expanded_order(order)
    for name in sorted(set(names) - set(parts)):
        findings.warn(0, 0, f"P:{order[:20]} names a part {name} that is not there; it is passed over")
    names = [name for name in names if name in parts]
    if not names or names == list(parts):
        return [event for event in events if not isinstance(event, RawPart)]
    findings.warn(0, 0, f"P:{order[:20]} is an order of parts; they are written out in it")
    out = list(before)
    for name, run in groupby(names):
        out += _played(parts[name], len(list(run)))
        _ask_for_room(out)
    return out


def _played(part: list[RawEvent], times: int) -> list[RawEvent]:
    """A part `times` times; each pair is written as a repeat if the part has none of its own."""
    if any(isinstance(event, RawBar) and (event.closes or event.opens or event.ending) for event in part):
        return [_DOUBLE, *part] * times
    end = next((n + 1 for n in reversed(range(len(part))) if not isinstance(part[n], RawBar)), 0)
    twice = [RawBar(opens=True), *part[:end], RawBar(closes=True)]
    return twice * (times // 2) + [_DOUBLE, *part] * (times % 2)


def _ask_for_room(out: Sequence[RawEvent]) -> None:
    if len(out) > MAX_EVENTS:
        raise TuneError(f"written out, the tune has more than {MAX_EVENTS} notes and bar lines")


@dataclass(slots=True)
class _Ending:
    """An ending: its pass numbers, its bar line, and its music."""

    passes: list[int]
    bar: RawBar
    music: list[RawEvent] = field(default_factory=list)


class _Endings:
    def __init__(self, findings: Findings, open_end: bool) -> None:
        self.findings = findings
        self.open_end = open_end
        self.out: list[RawEvent] = []
        self.start = 0  # where in `out` a repeat that is closed next begins
        self.is_open = False
        self.has_notes = False

    def write(self, events: Sequence[RawEvent]) -> list[RawEvent]:
        place = 0
        while place < len(events):
            event = events[place]
            if isinstance(event, RawBar) and event.ending and self.has_notes and not event.opens:
                place = self.take_group(events, place, event)
                continue
            if isinstance(event, RawBar):
                self.take_bar(event)
            else:
                self.out.append(event)
                self.has_notes = self.has_notes or isinstance(event, Note)
            place += 1
        if self.is_open and not self.open_end:
            self.findings.warn(0, 0, "a repeat is opened and not closed; it is not played")
        return self.out

    def take_bar(self, bar: RawBar) -> None:
        if bar.ending:
            self.findings.warn(bar.line, bar.column, f"ending {bar.ending} of no repeat; its number is passed over")
        if bar.closes and not self.has_notes:
            self.findings.warn(bar.line, bar.column, "a repeat of nothing; its dots are passed over")
            bar = replace(bar, closes=False)
        self.report_unpaired(bar)
        self.out.append(replace(bar, ending="", thin=bar.thin or bool(bar.ending and not (bar.closes or bar.opens))))
        if bar.opens:
            self.start, self.is_open = len(self.out) - 1, True
        elif bar.closes or not (bar.thin or bar.ending or self.is_open):
            self.start, self.is_open = len(self.out), False

    def report_unpaired(self, bar: RawBar) -> None:
        """Warn about a repeat that is not opened or not closed; the first part needs no opening."""
        if bar.closes and not self.is_open and any(isinstance(event, Note) for event in self.out[: self.start]):
            self.findings.warn(
                bar.line, bar.column, "a repeat closed that was not opened; it opens at the last double bar"
            )
        if bar.opens and self.is_open and not bar.closes:
            self.findings.warn(bar.line, bar.column, "a repeat opened before the last was closed; that is not played")

    def take_group(self, events: Sequence[RawEvent], place: int, first: RawBar) -> int:
        """Reads the endings that begin at a bar line; returns the index after them."""
        if first.closes:
            self.take_bar(replace(first, ending=""))
        if not self.is_open:
            self.report_unpaired(RawBar(closes=True, line=first.line, column=first.column))
        endings, last, after = self.gather(events, place)
        numbers = [ending.passes for ending in endings]
        if numbers == [[1], [2]] or (self.open_end and after == len(events) and numbers == [[1]]):
            self.out += [replace(first, closes=False, ending="1"), *events[place + 1 : after]]
            if last and last.closes:
                self.findings.warn(last.line, last.column, "a repeat behind a second ending; it is not played")
        else:
            self.write_passes(endings, last)
        self.is_open = last is not None and last.opens
        self.start = len(self.out) - self.is_open
        return after

    def gather(self, events: Sequence[RawEvent], place: int) -> tuple[list[_Ending], RawBar | None, int]:
        """The endings, the bar line that ends the last one, if any, and the index after it."""
        endings: list[_Ending] = []
        while place < len(events):
            event = events[place]
            place += 1
            if not isinstance(event, RawBar):
                endings[-1].music.append(event)
                continue
            if event.ending:
                endings.append(_Ending(_numbers(event.ending), event))
                continue
            following = events[place] if place < len(events) else None
            if isinstance(following, RawBar) and following.ending:
                continue
            if event.closes or event.opens or (not event.thin and endings[-1].passes != [1]):
                return endings, event, place
            endings[-1].music.append(event)
        return endings, None, place

    def write_passes(self, endings: list[_Ending], last: RawBar | None) -> None:
        first = endings[0].bar
        body = self.out[self.start :]
        del self.out[self.start :]
        if body and isinstance(body[0], RawBar) and body[0].opens:
            before = replace(body[0], opens=False)
            body = body[1:]
            self.out += [before] if self.out else []
        count = min(max((number for ending in endings for number in ending.passes), default=1), MAX_PASSES)
        music = {number: ending.music for ending in endings for number in ending.passes}
        if count == 1:
            self.findings.warn(first.line, first.column, "a first ending without a second; its number is passed over")
            closed = last is not None and last.closes
            self.out += [RawBar(opens=closed), *body, RawBar(thin=True), *music.get(1, []), RawBar(closes=closed)]
        else:
            self.findings.warn(
                first.line, first.column, "endings other than a first and a second; they are written out"
            )
            for number in range(1, count + 1, 2):
                self.out += self.pair(body, [music.get(number, []), music.get(number + 1, [])], number < count)
                _ask_for_room(self.out)
        if last and last.opens:
            self.out.append(RawBar(opens=True))

    @staticmethod
    def pair(body: list[RawEvent], music: list[list[RawEvent]], both: bool) -> list[RawEvent]:
        """The music with two endings, or with the last one alone."""
        if not both:
            return [*body, RawBar(thin=True), *music[0], _DOUBLE]
        if not (music[0] and music[1]):
            return [*body, RawBar(thin=True), *music[0], _DOUBLE, *body, RawBar(thin=True), *music[1], _DOUBLE]
        return [
            RawBar(opens=True),
            *body,
            RawBar(ending="1"),
            *music[0],
            RawBar(closes=True, ending="2"),
            *music[1],
            _DOUBLE,
        ]


def _numbers(ending: str) -> list[int]:
    """The pass numbers of an ending; `1,3` and `1-3` name several."""
    passes: list[int] = []
    for first, last in re.findall(r"(\d{1,2})(?:-(\d{1,2}))?", ending):
        passes += range(int(first), min(int(last or first), MAX_PASSES) + 1)
    return passes or [1]
