"""Reads ABC (abcnotation.com's standard 2.1) into events. Knows nothing of what is right or wrong music.

What a single line of melody does not need is left out by rule: grace notes, decorations, chord symbols and annotations,
slurs, lyrics, layout. A chord is read as its top note, which is where these books put the melody; of several voices the
first is read. `P:` and D.C. play nothing twice. Hostile input costs time in proportion to its length and raises
TuneError with line and column.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from gruve.errors import TuneError
from gruve.tune import lexer
from gruve.tune.keys import parse_key
from gruve.tune.score import WHOLE, Key, Meter, Note, Pitch, Tempo, Tuplet, default_into
from gruve.tune.tempo import parse_tempo

MAX_TUNE_CHARACTERS: Final = 65_536
MAX_NOTE: Final = 64 * WHOLE
"""Ticks of the longest note that is read."""


@dataclass(frozen=True, slots=True)
class RawBar:
    """A bar line as it stands: what it closes, what it opens, whether it is a single line, and its ending's numbers."""

    closes: bool = False
    opens: bool = False
    thin: bool = False
    ending: str = ""
    line: int = 0
    column: int = 0


RawEvent = Note | Tuplet | RawBar


@dataclass(frozen=True, slots=True)
class RawTune:
    """What the reader found: headers, and events with bar lines as written."""

    title: str
    source: str
    meter: Meter
    key: Key
    events: tuple[RawEvent, ...]
    rhythm: str = ""
    tempo: Tempo | None = None


def read_tune(text: str) -> RawTune:
    """Read one tune: headers up to and with `K:`, then music."""
    if len(text) > MAX_TUNE_CHARACTERS:
        raise TuneError(f"the tune has {len(text)} characters; at most {MAX_TUNE_CHARACTERS} are read")
    reader = _Reader()
    for number, line in enumerate(text.split("\n"), 1):
        reader.take_line(number, line)
    return reader.finish()


class _Reader:
    """What is in force at the place that is read."""

    def __init__(self) -> None:
        self.line = self.column = 0
        self.title = self.source = self.rhythm = ""
        self.tempo: Tempo | None = None
        self.meter: Meter | None = None
        self.key: Key | None = None  # once it is there, music is read
        self.unit = Fraction(0)  # of a whole note; 0 until L: or K: has set it
        self.signature: tuple[int, ...] = (0,) * 7
        self.in_force: dict[int, int] = {}  # letter -> alteration, up to the next bar line
        self.voice: str | None = None
        self.skipping = False  # another voice than the first
        self.events: list[RawEvent] = []
        self.last: Note | None = None  # the last note, and where it stands
        self.last_place = -1
        self.broken: Fraction | None = None  # what the next note's length is multiplied by
        self.tuplet_left = 0

    def fail(self, why: str) -> TuneError:
        return TuneError(why, self.line, self.column + 1)

    def finish(self) -> RawTune:
        if self.meter is None or self.key is None:
            raise TuneError("no K: field, so no music")
        self.ask_for_no_broken()
        if self.tuplet_left:
            raise self.fail("the last tuplet is not complete")
        self.drop_false_tie(None)
        return RawTune(self.title, self.source, self.meter, self.key, tuple(self.events), self.rhythm, self.tempo)

    def take_line(self, number: int, line: str) -> None:
        self.line, self.column = number, 0
        line = line.split("%", 1)[0].rstrip()
        found = lexer.FIELD.match(line)
        if found and not (self.key and lexer.MUSIC_LIKE_FIELD.match(line)):
            self.take_field(found[1], found[2].strip())
        elif self.key and line:
            self.take_music(line)

    def take_field(self, name: str, value: str) -> None:
        if name == "V":
            self.take_voice(value)
        elif self.skipping:
            return
        elif name == "T":
            self.title = self.title or value
        elif name == "Z":
            self.source = self.source or value
        elif name == "R":
            self.rhythm = self.rhythm or value
        elif name == "Q":
            self.tempo = self.tempo or parse_tempo(value)
        elif name == "M":
            self.take_meter(value)
        elif name == "L":
            self.take_unit(value)
        elif name == "K":
            self.take_key(value)

    def take_meter(self, value: str) -> None:
        meter = lexer.parse_meter(value)
        if meter is None:
            raise self.fail(f"meter {value[:20]!r} is not a fraction of up to 32 beats")
        if self.meter is None or not self.events:
            self.meter = meter
        elif meter.ticks != self.meter.ticks:
            raise self.fail(f"the meter changes to {value[:20]!r}")

    def take_unit(self, value: str) -> None:
        found = re.match(r"([1-9]\d?)\s?/\s?([1-9]\d{0,2})(?!\d)", value)
        if not found:
            raise self.fail(f"unit length {value[:20]!r} is not a fraction of up to 99/999")
        self.unit = Fraction(int(found[1]), int(found[2]))

    def take_key(self, value: str) -> None:
        parsed = parse_key(value)
        if parsed is None and self.key and not re.match(r"[A-H]", value):
            return  # a change of clef
        if parsed is None:
            raise self.fail(f"key {value[:20]!r} is not a root and a mode")
        if self.meter is None:
            raise self.fail("no meter: bars cannot be counted")
        key, self.signature = parsed
        self.in_force = {}
        if not self.events:
            self.key = key
        self.unit = self.unit or (Fraction(1, 16) if self.meter.ticks * 4 < WHOLE * 3 else Fraction(1, 8))

    def take_voice(self, value: str) -> None:
        """Read the voice that the music names first, and skip the others."""
        if self.key:
            name = value.split()[0] if value.split() else ""
            self.voice = name if self.voice is None else self.voice
            self.skipping = name != self.voice

    def take_music(self, line: str) -> None:
        at = 0
        while at < len(line):
            if self.skipping:
                at = line.find("[V:", at)
                if at < 0:
                    return
            self.column = at
            found = lexer.TOKEN.match(line, at)
            if found is None:
                raise self.fail(f"cannot read {line[at : at + 10]!r}")
            at = found.end()
            if found["chord"]:
                at = self.take_chord(line, at, "]")
            elif found["old_chord"]:
                at = self.take_chord(line, at, "+")
            else:
                self.take_token(found)

    def take_token(self, found: re.Match[str]) -> None:
        if found["note"]:
            self.take_note(self.pitch(found), self.length(found["length"]))
        elif found["rest"]:
            self.take_note(None, self.length(found["rest_length"]))
        elif found["bar"]:
            self.take_bar(found["bar"], found["ending"] or "")
        elif found["loose_ending"]:
            self.take_bar("", found["loose_ending"])
        elif found["tuplet"]:
            self.take_tuplet(found)
        elif found["broken"]:
            self.take_broken(found["broken"])
        elif found["tie"]:
            self.take_tie()
        elif found["inline"]:
            self.take_field(found["inline"][0], found["inline"][2:].strip())
        elif found["dots"]:
            self.take_dots()
        elif found["whole_bars"]:
            raise self.fail("a rest of whole bars")

    def take_chord(self, line: str, start: int, close: str) -> int:
        """Read a chord up to its closing sign and the length behind that; return where it ends."""
        end = line.find(close, start)
        if end < 0:
            raise self.fail("a chord is not closed")
        notes: list[tuple[Pitch, Fraction]] = []
        at = start
        while at < end:
            self.column = at
            found = lexer.CHORD_SKIP.match(line, at, end)
            if found is None:
                found = lexer.CHORD_NOTE.match(line, at, end)
                if found is None:
                    raise self.fail(f"cannot read {line[at : at + 10]!r} in a chord")
                notes.append((self.pitch(found), self.length(found["length"])))
            at = found.end()
        if not notes:
            raise self.fail("a chord without a note")
        outer = lexer.length_at(line, end + 1)
        top = max((pitch for pitch, _ in notes), key=lambda pitch: pitch.midi)
        self.take_note(top, notes[0][1] * self.length(outer))
        return end + 1 + len(outer)

    def pitch(self, found: re.Match[str]) -> Pitch:
        staff = lexer.parse_staff(found["letter"], found["octave"])
        letter = staff % 7
        tied = self.last.pitch if self.last and self.last.tied else None
        if found["accidental"]:
            self.in_force[letter] = lexer.ALTER[found["accidental"]]
        elif tied and tied.staff == staff and letter not in self.in_force:
            return tied  # over a bar line a tie carries its accidental
        return Pitch(staff, self.in_force.get(letter, self.signature[letter]))

    def length(self, text: str) -> Fraction:
        length = lexer.parse_length(text)
        if length is None:
            raise self.fail(f"length {text!r} is zero or divides by zero")
        return length

    def take_note(self, pitch: Pitch | None, length: Fraction) -> None:
        ticks = lexer.exact_ticks(length * self.unit * (self.broken or 1) * WHOLE)
        self.broken = None
        if ticks is None:
            raise self.fail(f"a note of {length} units of {self.unit} is no multiple of 1/1024")
        if ticks > MAX_NOTE:
            raise self.fail(f"a note of {ticks // WHOLE} whole notes; at most {MAX_NOTE // WHOLE} are read")
        self.drop_false_tie(pitch)
        self.last, self.last_place = Note(pitch, ticks), len(self.events)
        self.events.append(self.last)
        self.tuplet_left -= self.tuplet_left > 0

    def change_last(self, note: Note) -> None:
        self.last = self.events[self.last_place] = note

    def drop_false_tie(self, pitch: Pitch | None) -> None:
        """A tie to another pitch is a slur, and left out."""
        if self.last and self.last.tied and pitch != self.last.pitch:
            self.change_last(replace(self.last, tied=False))

    def take_tie(self) -> None:
        # Behind a bar line it is no tie, says the standard.
        if self.last and self.last.pitch is not None and self.last_place == len(self.events) - 1:
            self.change_last(replace(self.last, tied=True))

    def take_broken(self, sign: str) -> None:
        if self.last is None or self.last_place != len(self.events) - 1 or self.broken is not None:
            raise self.fail(f"{sign!r} does not stand between two notes")
        longer, shorter, under = lexer.BROKEN[len(sign)]
        here, then = (longer, shorter) if sign[0] == ">" else (shorter, longer)
        ticks = lexer.exact_ticks(Fraction(self.last.ticks * here, under))
        if ticks is None:
            raise self.fail(f"{sign!r} makes a note shorter than 1/1024")
        self.change_last(replace(self.last, ticks=ticks))
        self.broken = Fraction(then, under)

    def ask_for_no_broken(self) -> None:
        if self.broken is not None:
            raise self.fail("broken rhythm without its second note")

    def take_tuplet(self, found: re.Match[str]) -> None:
        self.ask_for_no_broken()
        if self.tuplet_left:
            raise self.fail("a tuplet inside a tuplet")
        count = int(found["p"])
        into = int(found["q"] or default_into(count, self.meter))
        self.tuplet_left = int(found["r"] or count)
        self.events.append(Tuplet(count, into, self.tuplet_left))

    def take_bar(self, text: str, ending: str) -> None:
        self.ask_for_no_broken()
        if self.tuplet_left:
            raise self.fail("a bar line inside a tuplet")
        self.in_force = {}
        dots_alone = bool(text) and not text.strip(":")
        closes = text.startswith(":") or dots_alone
        opens = text.endswith(":") or dots_alone
        self.events.append(RawBar(closes, opens, text == "|" and not ending, ending, self.line, self.column + 1))

    def take_dots(self) -> None:
        """Two dots behind a bar line that a line break tore off belong to it."""
        last = self.events[-1] if self.events else None
        if not isinstance(last, RawBar):
            raise self.fail("two dots without a bar line")
        self.events[-1] = replace(last, opens=True, thin=False)
