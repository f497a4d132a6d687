"""Finds the bars of a tune that are too short or too long. Independent of ABC's notation.

A tune is checked in the order in which it is played, with repeats and endings. A single bar line ends a bar, and the
bar must then be full. Any other bar line (double, repeat, ending) may be inside a bar, which continues after it. So a
repeat may split a bar, and every continuation must complete the bar. Only the first bar may be short (the pick-up), and
the last bar, if it completes the pick-up of the tune or of a later part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gruve.tune.score import Bar, BarKind, Event, Meter, MeterChange, Note, Tune, Tuplet, whole_notes


@dataclass(frozen=True, slots=True)
class Segment:
    """The music between two bar lines: its length, and the kinds of the lines (None at the tune's start and end)."""

    ticks: int
    before: BarKind | None
    after: BarKind | None
    meter: Meter | None = None
    """The meter that a change in it, or before it, has set; None: the tune's."""
    place: tuple[int, int] = field(default=(0, 0), compare=False)
    """Line and column of its first note in the text that it was read from."""


@dataclass(frozen=True, slots=True)
class WrongBar:
    """A bar whose length is not the meter's: its segments, counted from 0, their total length, and the right length."""

    segments: tuple[int, ...]
    ticks: int
    wanted: int
    place: tuple[int, int] = field(default=(0, 0), compare=False)

    def __str__(self) -> str:
        where = " with ".join(str(n + 1) for n in self.segments)
        return f"bar {where} has {whole_notes(self.ticks)} of a whole note, not {whole_notes(self.wanted)}"


def sounding(events: Iterable[Event]) -> Iterator[tuple[Event, int]]:
    """Each event with its duration in ticks, tuplets taken into account; bar lines and tuplet marks take 0 ticks."""
    left, into, count = 0, 1, 1
    for event in events:
        if isinstance(event, Note):
            yield event, event.ticks * into // count if left else event.ticks
            left -= left > 0
            continue
        if isinstance(event, Tuplet):
            left, into, count = event.notes, event.into, event.count
        yield event, 0


def segments(events: Iterable[Event]) -> list[Segment]:
    """The segments of music between bar lines; two adjacent bar lines enclose an empty segment."""
    found: list[Segment] = []
    ticks = 0
    before: BarKind | None = None
    meter: Meter | None = None
    place = (0, 0)
    for event, length in sounding(events):
        if isinstance(event, MeterChange):
            meter = event.meter
        if not isinstance(event, Bar):
            place = event.place if isinstance(event, Note) and not ticks else place
            ticks += length
            continue
        if before is not None or ticks:
            found.append(Segment(ticks, before, event.kind, meter, place))
        ticks, before = 0, event.kind
    if ticks:
        found.append(Segment(ticks, before, None, meter, place))
    return found


def play_order(parts: list[Segment]) -> list[int]:
    """The segments that are not empty, in playing order: repeats twice, with the first and then the second ending."""
    order: list[int] = []
    start = first_ending = 0
    for at, part in enumerate(parts):
        if part.before == "|:":
            start = at
        elif part.before == "|1":
            first_ending = at
        order.append(at)
        if part.after == ":|":
            order.extend(range(start, at + 1))
            start = at + 1
        elif part.after == ":|2":
            order.extend(range(start, first_ending))
            start = at + 1
    return [at for at in order if parts[at].ticks]


def wrong_bars(tune: Tune) -> list[WrongBar]:
    """The bars whose length is not the meter's, each once, in the order in which they are first played.

    In free meter none is wrong.
    """
    if tune.free_meter:
        return []
    parts = segments(tune.events)
    order = play_order(parts)
    pickups = {part.ticks for part in parts if part.before in ("|:", "||", ":|")}
    wrong: dict[WrongBar, None] = {}
    group: list[int] = []
    filled = 0
    first = True
    for place, at in enumerate(order):
        part, last = parts[at], place == len(order) - 1
        group.append(at)
        wanted = (parts[group[0]].meter or tune.meter).ticks
        filled += part.ticks
        # The bar continues after this line, unless it is a pick-up before a repeat whose first bar is full.
        goes_on = not last and part.after != "|" and not (first and parts[order[place + 1]].ticks == wanted)
        if filled < wanted and goes_on:
            continue
        if first and filled < wanted:
            pickups.add(filled)
        elif filled != wanted and not (last and wanted - filled in pickups):
            wrong[WrongBar(tuple(group), filled, wanted, parts[group[0]].place)] = None
        group, filled, first = [], 0, False
    return list(wrong)
