"""Repairs bar lines and rests where only one reading makes every bar right. Never changes a note."""

from __future__ import annotations

from dataclasses import replace

from gruve.tune.bars import sounding, wrong_bars
from gruve.tune.pickups import completed
from gruve.tune.score import Bar, Event, MeterChange, Tune, Tuplet


def repaired(tune: Tune) -> Tune:
    """The tune with its bar lines repaired if that makes every bar right, else the tune as it is.

    - A `|:` before a pick-up moves after it, if the part's last bar is already full.
    - A bar line that cuts a bar in two is removed. A stretch that is too long gets a bar line at the end of each bar.
    - Rests at the ends of parts fill bars that no pick-up completes, or make room for a pick-up (`pickups.py`).
    - An ending begins with its bar: notes of that bar before the ending are copied into both endings.
    """
    for events in _attempts(tune):
        attempt = replace(tune, events=_endings_on_bars(events, tune.meter.ticks))
        if not wrong_bars(attempt):
            return attempt
    return tune


def _attempts(tune: Tune) -> list[tuple[Event, ...]]:
    """The tune as it is, then with more and more repairs; only the tune as it is if its meter changes."""
    if not wrong_bars(tune) or any(isinstance(event, MeterChange) for event in tune.events):
        return [tune.events]
    bar = tune.meter.ticks
    divided = _divided(tune.events, bar)
    lines = [tune.events, divided, _repeats_behind_pickups(tune.events, bar), _repeats_behind_pickups(divided, bar)]
    return [events for one in lines for events in (one, completed(one, bar))]


def _divided(events: tuple[Event, ...], bar: int) -> tuple[Event, ...]:
    """The events with a bar line at each bar's end in a stretch that is too long, and none inside a bar."""
    out: list[Event] = []
    filled = short = 0
    removable: int | None = None  # the index of a line after a short bar
    ends: list[int] = []  # the places since the last line where a bar was just full
    behind_line = False
    in_tuplet = 0
    for event, length in sounding(events):
        if isinstance(event, Bar):
            plain = event.kind == "|"
            if removable is not None and filled and short + filled == bar and plain:
                del out[removable]
                filled = bar
            for place in reversed(ends):
                out.insert(place, Bar("|"))
            out.append(event)
            removable = len(out) - 1 if plain and behind_line and 0 < filled < bar else None
            short, filled, ends, behind_line = filled, 0, [], plain
            continue
        if filled and filled % bar == 0 and not in_tuplet:
            ends.append(len(out))
        in_tuplet = event.notes if isinstance(event, Tuplet) else max(0, in_tuplet - 1)
        out.append(event)
        filled += length
    return tuple(out)


def _repeats_behind_pickups(events: tuple[Event, ...], bar: int) -> tuple[Event, ...]:
    """The events with each `|:` moved after its pick-up if the part's last bar is full without the pick-up."""
    out: list[Event | None] = list(events)
    opened: int | None = None
    line: int | None = None  # the first bar line after it
    pickup = filled = 0
    for place, (event, length) in enumerate(sounding(events)):
        if not isinstance(event, Bar):
            filled += length
            continue
        if event.kind == "|:":
            opened, line = place, None
        elif opened is not None and line is None:
            line, pickup = place, filled
        if event.kind in (":|", ":|2") and opened is not None and line is not None:
            if pickup < bar == filled and events[line] == Bar("|"):
                out[line] = Bar("|:")
                out[opened] = None if opened == 0 or isinstance(events[opened - 1], Bar) else Bar("||")
            opened = None
        filled = 0
    return tuple(event for event in out if event is not None)


def _endings_on_bars(events: tuple[Event, ...], bar: int) -> tuple[Event, ...]:
    """The events with each `|1` that splits a bar moved to the bar's start; both endings get the notes in between."""
    out: list[Event] = []
    start = 0  # the index in `out` after the last line
    filled = 0
    shared: list[Event] = []
    for event, length in sounding(events):
        if not isinstance(event, Bar):
            filled += length
            out.append(event)
            continue
        if event.kind == "|1" and 0 < filled < bar and start and out[start - 1] == Bar("|"):
            shared = out[start:]
            out[start - 1 :] = [event, *shared]
        else:
            out.append(event)
            if event.kind == ":|2":
                out += shared
                shared = []
        start, filled = len(out), 0
        if event.kind == "|1" and shared:
            start, filled = len(out) - len(shared), sum(length for _, length in sounding(shared))
    return tuple(out)
