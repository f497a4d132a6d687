"""Writes a tune as ABC with a title, notes beamed by the beat, and some bars on a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from gruve.tune.bars import segments, sounding
from gruve.tune.keys import key_name
from gruve.tune.score import WHOLE, Bar, Meter, MeterChange, Note, Tune, Tuplet
from gruve.tune.tempo import suited_rhythm, suited_tempo
from gruve.tune.tokens import shortest_unit, spelled

BARS_PER_LINE: Final = 4
MAX_TEXT: Final = 200
"""Characters of a title, a rhythm or a note."""
_PART_ENDS: Final = frozenset({"||", "|]", ":|"})


def write_tune(
    tune: Tune,
    *,
    title: str = "",
    number: int = 1,
    fields: Iterable[tuple[str, str]] = (),
    bars_per_line: int = BARS_PER_LINE,
) -> str:
    """The tune as ABC: `X:`, `T:`, `R:`, `fields`, `M:`, `L:`, `Q:`, `K:`, then its music, ending in a line feed.

    `R:` and `Q:` are written if the tune has a rhythm and a tempo; `fields` are more headers, each a letter and its
    text. Bar lines are written as they are, also around wrong bars. A text is cut to one line of 200 characters; its
    `%` is written as `\\%`, because a bare one begins a comment (ABC 2.1, section 2.2.5). A tune without a title is
    "Untitled", because notation programs warn about a missing title.
    """
    unit = shortest_unit(tune)
    head = [f"X:{number}", f"T:{_one_line(title or tune.title) or 'Untitled'}"]
    head += [f"R:{_one_line(tune.rhythm)}"] if tune.rhythm else []
    head += [f"{name}:{_one_line(text)}" for name, text in fields]
    head += [f"M:{'none' if tune.free_meter else _meter_text(tune.meter)}", f"L:1/{WHOLE // unit}"]
    head += [f"Q:{tune.tempo.note}={tune.tempo.per_minute}"] if tune.tempo else []
    return "\n".join([*head, f"K:{key_name(tune.key, short=True)}", *_lines(tune, unit, bars_per_line)]) + "\n"


def complete(tune: Tune) -> Tune:
    """The tune with a suitable rhythm and tempo, if it has none of its own."""
    return replace(tune, rhythm=suited_rhythm(tune), tempo=suited_tempo(tune))


def _meter_text(meter: Meter) -> str:
    return "C|" if meter == Meter(2, 2) else f"{meter.beats}/{meter.unit}"


def _one_line(text: str) -> str:
    return re.sub(r"[\s\\]+", " ", text).strip()[:MAX_TEXT].replace("%", r"\%")


def group_ticks(meter: Meter) -> int:
    """The length of a beam group: three units in compound time and 3/8, a half note in 4/4 and 2/2, else a quarter."""
    if meter.compound or meter == Meter(3, 8):
        return 3 * WHOLE // meter.unit
    return WHOLE // 2 if meter in (Meter(4, 4), Meter(2, 2)) else WHOLE // 4


def _lines(tune: Tune, unit: int, bars_per_line: int) -> Iterator[str]:
    """The lines of music, each a whole number of bars."""
    line = ""
    bars = 0
    for music, bar, full in _measures(tune, unit):
        opens = bar == "|:" and not music
        # A line that opens a part begins the next line of text, unless it ends the music before it.
        line += f"{' ' if line and music else ''}{music}{' ' if music else ''}{bar}"
        bars += full
        if bar in _PART_ENDS or (bars >= bars_per_line and bar == "|"):
            yield line
            line, bars = "", 0
        elif bar == "|:" and not opens:
            yield line[: -len(bar)].rstrip() + " ||"
            line, bars = bar, 0
    if line:
        yield line


def _measures(tune: Tune, unit: int) -> Iterator[tuple[str, str, bool]]:
    """Each piece of music with the bar line after it, and whether it counts as a bar."""
    lengths = iter(segments(tune.events))
    group = group_ticks(tune.meter)
    music, onset, in_tuplet = "", 0, 0
    after_tuplet = False
    part = next(lengths, None) if tune.events and not isinstance(tune.events[0], Bar) else None
    pickup = tune.meter.ticks - part.ticks if part else 0
    for (event, tokens), (_, ticks) in zip(spelled(tune, unit), sounding(tune.events), strict=True):
        if isinstance(event, Bar):
            yield music, event.kind, part is not None and part.ticks * 2 > tune.meter.ticks
            music, onset, in_tuplet = "", 0, 0
            part = next(lengths, None)
            # A short bar in front of a single line is a pick-up, and beamed from its end.
            short = part is not None and part.after == "|" and part.ticks < tune.meter.ticks
            pickup = tune.meter.ticks - part.ticks if part and short else 0
            continue
        if isinstance(event, MeterChange):
            group = group_ticks(event.meter)
            music += (" " if music else "") + "".join(tokens) + " "
            continue
        # A tuplet is beamed by itself: verovio 6 takes notes beamed to it for part of it.
        apart = after_tuplet or isinstance(event, Tuplet) or (onset + pickup) % group == 0
        if music and apart and not in_tuplet and not music.endswith(" "):
            music += " "
        after_tuplet = in_tuplet == 1
        if isinstance(event, Tuplet):
            in_tuplet = event.notes
        elif isinstance(event, Note):
            in_tuplet -= in_tuplet > 0
            onset += ticks
        music += "".join(tokens)
    if music:
        yield music, "", False
