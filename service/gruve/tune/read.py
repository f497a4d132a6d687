"""Reads ABC (abcnotation.com's standard 2.1) into events. Does not judge the bars.

Everything that is not part of a single melody line is left out: grace notes, decorations, chord symbols and
annotations, slurs, lyrics, layout. A chord is read as its top note, which has the melody in most books. Of several
voices and of overlays (`&`), the first is read.

There are two modes. The strict mode is for corpora and for the text of a model. It raises TuneError, with line and
column, for anything unknown and for a meter that changes or is free, and it ignores the playing order of `P:`. The
tolerant mode is for any ABC. It continues after a fault and records in findings how it read the fault and what it left
out. In both modes the time is linear in the length of the input, also for hostile input.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Final

from gruve.errors import TuneError
from gruve.tune import lexer
from gruve.tune.fields import Fields
from gruve.tune.raw import Findings, RawBar, RawTune
from gruve.tune.score import SHORTEST, WHOLE, MeterChange, Note, Pitch
from gruve.tune.shift import shifted
from gruve.tune.tuplets import Tuplets

MAX_TUNE_CHARACTERS: Final = 65_536
MAX_NOTE: Final = 64 * WHOLE
"""Ticks of the longest note that is read."""
MAX_REST_BARS: Final = 1_024
"""Bars of `Z` rests in a tune."""
_SKIPPED: Final = {
    '"': "chord symbols and annotations", "{": "grace notes", "!": "decorations", "+": "decorations",
    "(": "slurs", ")": "slurs",
}  # fmt: skip


def read_tune(text: str) -> RawTune:
    """Reads one tune strictly: headers up to and including `K:`, then music. Raises TuneError at the first fault."""
    return _read(text, None)


def read_any_tune(text: str, findings: Findings, *, open_end: bool = False) -> RawTune:
    """Reads one tune, or a part of one, tolerantly. Raises TuneError only if it is too long.

    With `open_end` the music may continue, so a tie from its last note stays, and headers alone are no fault.
    """
    return _read(text, findings, open_end=open_end)


def _read(text: str, findings: Findings | None, *, open_end: bool = False) -> RawTune:
    if len(text) > MAX_TUNE_CHARACTERS:
        raise TuneError(f"the tune has {len(text)} characters; at most {MAX_TUNE_CHARACTERS} are read")
    reader = _Reader(findings)
    for number, line in enumerate(lexer.with_line_feeds(text).split("\n"), 1):
        reader.take_line(number, line)
    return reader.finish(open_end=open_end)


class _Reader(Fields):
    """The state of the reader at its position in the text."""

    def __init__(self, findings: Findings | None) -> None:
        super().__init__(findings)
        self.overlay = self.overlay_group = False
        self.last: Note | None = None  # the last note, and its position
        self.last_place = -1
        self.broken: Fraction | None = None  # what the next note's length is multiplied by
        self.tuplets = Tuplets(self.events)
        self.rest_bars = 0

    def finish(self, *, open_end: bool) -> RawTune:
        if self.meter is None or self.key is None:
            if self.findings is None:
                raise TuneError("no K: field, so no music")
            self.take_key("C")
            if not open_end:
                self.findings.warn(0, 0, "no K: field and no music; read as C major")
        assert self.meter is not None  # noqa: S101 - take_key has seen to both
        assert self.key is not None  # noqa: S101
        self.ask_for_no_broken("the sign is passed over")
        if self.tuplets.left:
            self.fault("the last tuplet is not complete", "it ends with its last note")
            self.tuplets.cut()
        if not open_end:
            self.drop_false_tie(None)
        key, events = shifted(self.key, self.events, self.shifts)
        return RawTune(
            self.title, self.meter, key, tuple(events), self.rhythm, self.tempo, self.free_meter,
            self.order, tuple(self.fields),
        )  # fmt: skip

    def take_line(self, number: int, line: str) -> None:
        self.line, self.column = number, 0
        found = lexer.FIELD.match(line)
        if found and not (self.key and lexer.MUSIC_LIKE_FIELD.match(line)):
            self.take_field(found[1], lexer.FIELD_COMMENT.sub("", found[2]).replace(r"\%", "%").strip())
            return
        line = line.split("%", 1)[0].rstrip()
        if line and (self.key or self.findings is not None):
            if not self.key:
                self.fault("no K: field before the music", "it is read in C major")
                self.take_key("C")
            self.take_music(line)

    def take_music(self, line: str) -> None:
        at = 0
        while at < len(line):
            if self.skipping:
                at = line.find("[V:", at)
                if at < 0:
                    return
            self.column = at
            found = lexer.TOKEN.match(line, at)
            if self.overlay:
                at = self.pass_overlay(found, at)
            elif found is None or (found["overlay"] and self.findings is None):
                self.fault(f"cannot read {line[at : at + 10]!r}", "the first character is passed over")
                at += 1
            elif found["chord"]:
                at = self.take_chord(line, found.end(), "]")
            elif found["old_chord"]:
                at = self.take_chord(line, found.end(), "+")
            else:
                at = found.end()
                self.take_token(found)

    def pass_overlay(self, found: re.Match[str] | None, at: int) -> int:
        """Skip the second voice of an overlay, which ends with the bar or with its `&)`."""
        if found is None:
            return at + 1
        if (found["bar"] and not self.overlay_group) or found["overlay"] == "&)":
            self.overlay = self.overlay_group = False
        return at if found["bar"] and not self.overlay else found.end()

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
            self.take_rest_bars(found["bars"])
        elif found["overlay"]:
            self.take_overlay(found["overlay"])
        elif self.findings is not None:
            self.take_skipped(found[0])

    def take_skipped(self, text: str) -> None:
        if not text.isspace() and text not in "`\\y$*":
            self.leave_out(_SKIPPED.get(text[0], "decorations"))

    def take_overlay(self, text: str) -> None:
        self.leave_out("second voices behind &")
        self.overlay_group = text == "(&" or self.overlay_group
        self.overlay = text == "&"

    def take_rest_bars(self, count: str) -> None:
        if self.findings is None:
            raise self.fail("a rest of whole bars")
        bars = int(count or 1)
        self.rest_bars += bars
        if self.rest_bars > MAX_REST_BARS:
            raise self.fail(f"{self.rest_bars} bars of rests; at most {MAX_REST_BARS} are read")
        for number in range(bars):
            if number:
                self.take_bar("|", "")
            self.add_note(None, self.meter_now.ticks)

    def take_chord(self, line: str, start: int, close: str) -> int:
        """Reads a chord with its closing sign and the length after it; returns where it ends."""
        end = line.find(close, start)
        if end < 0:
            self.fault("a chord is not closed", "its sign is passed over")
            return start
        notes: list[tuple[Pitch, Fraction]] = []
        tied: set[Pitch] = set()
        at, column = start, self.column
        while at < end:
            self.column = at
            found = lexer.CHORD_SKIP.match(line, at, end)
            if found is not None:
                if found[0] == "-" and notes:
                    tied.add(notes[-1][0])
            else:
                found = lexer.CHORD_NOTE.match(line, at, end)
                if found is None:
                    self.fault(f"cannot read {line[at : at + 10]!r} in a chord", "the first character is passed over")
                    at += 1
                    continue
                notes.append((self.pitch(found), self.length(found["length"])))
            at = found.end()
        outer = lexer.length_at(line, end + 1)
        self.column = column
        if not notes:
            self.fault("a chord without a note", "it is passed over")
        else:
            if len(notes) > 1:
                self.leave_out("chords but for their top notes")
            top = max((pitch for pitch, _ in notes), key=lambda pitch: pitch.midi)
            self.take_note(top, notes[0][1] * self.length(outer))
            # The strict way leaves it out, as it did for the tunes that published models learned from.
            if top in tied and self.findings is not None:
                self.take_tie()
        return end + 1 + len(outer)

    def pitch(self, found: re.Match[str]) -> Pitch:
        staff = lexer.parse_staff(found["letter"], found["octave"])
        letter = staff % 7
        tied = self.last.pitch if self.last and self.last.tied else None
        if found["accidental"]:
            if found["microtone"]:
                self.fault(f"{found[0]!r} is no semitone of the scale", "the nearest is read")
            self.in_force[letter] = lexer.parse_alteration(found["accidental"], found["microtone"])
        elif tied and tied.staff == staff and letter not in self.in_force:
            return tied  # over a bar line a tie carries its accidental
        return Pitch(staff, self.in_force.get(letter, self.signature[letter]))

    def length(self, text: str) -> Fraction:
        length = lexer.parse_length(text)
        if length is None:
            self.fault(f"length {text!r} is zero or divides by zero", "it is passed over")
        return length or Fraction(1)

    def take_note(self, pitch: Pitch | None, length: Fraction) -> None:
        exact = length * self.unit * (self.broken or 1) * WHOLE
        ticks = lexer.exact_ticks(exact)
        self.broken = None
        if ticks is None:
            self.fault(f"a note of {length} units of {self.unit} is no multiple of 1/1024", "it is rounded to one")
            ticks = max(1, round(exact / SHORTEST)) * SHORTEST
        if ticks > MAX_NOTE:
            self.fault(f"a note of {ticks // WHOLE} whole notes; at most {MAX_NOTE // WHOLE} are read", "it is cut")
            ticks = MAX_NOTE
        self.add_note(pitch, ticks)

    def add_note(self, pitch: Pitch | None, ticks: int) -> None:
        if self.new_meter:
            self.events.append(MeterChange(self.new_meter))
            self.new_meter = None
        self.tuplets.before_note()
        self.drop_false_tie(pitch)
        self.last, self.last_place = Note(pitch, ticks, place=(self.line, self.column + 1)), len(self.events)
        self.events.append(self.last)
        self.tuplets.after_note()

    def change_last(self, note: Note) -> None:
        self.last = self.events[self.last_place] = note

    def drop_false_tie(self, pitch: Pitch | None) -> None:
        """Removes a tie to another pitch, which is a slur."""
        if self.last and self.last.tied and pitch != self.last.pitch:
            self.change_last(replace(self.last, tied=False))

    def take_tie(self) -> None:
        # Behind a bar line it is no tie, says the standard.
        if self.last and self.last.pitch is not None and self.last_place == len(self.events) - 1:
            self.change_last(replace(self.last, tied=True))

    def take_broken(self, sign: str) -> None:
        behind_bar = self.findings is not None and all(
            isinstance(event, RawBar) for event in self.events[self.last_place + 1 :]
        )
        adjacent = self.last_place == len(self.events) - 1 or behind_bar
        if self.last is None or not adjacent or self.broken is not None:
            self.fault(f"{sign!r} does not stand between two notes", "it is passed over")
            return
        longer, shorter, under = lexer.BROKEN[len(sign)]
        here, then = (longer, shorter) if sign[0] == ">" else (shorter, longer)
        ticks = lexer.exact_ticks(Fraction(self.last.ticks * here, under))
        if ticks is None:
            self.fault(f"{sign!r} makes a note shorter than 1/1024", "it is passed over")
            return
        self.change_last(replace(self.last, ticks=ticks))
        self.broken = Fraction(then, under)

    def ask_for_no_broken(self, taken_for: str) -> None:
        if self.broken is not None:
            self.fault("broken rhythm without its second note", taken_for)
            self.broken = None

    def take_tuplet(self, found: re.Match[str]) -> None:
        if self.findings is None:
            self.ask_for_no_broken("")
            if self.tuplets.left:
                raise self.fail("a tuplet inside a tuplet")
        meter = self.meter if self.findings is None else self.meter_now
        if not self.tuplets.begin(found["p"], found["q"], found["r"], meter):
            self.fault("a tuplet inside a tuplet that no sign can say", "the inner sign is passed over")

    def take_bar(self, text: str, ending: str) -> None:
        if self.findings is None:
            self.ask_for_no_broken("")
        if self.tuplets.left:
            self.fault("a bar line inside a tuplet", "the tuplet goes on behind it")
            self.tuplets.interrupt()
        self.in_force = {}
        dots_alone = bool(text) and not text.strip(":")
        closes = text.startswith(":") or dots_alone
        opens = text.endswith(":") or dots_alone
        self.events.append(RawBar(closes, opens, text == "|" and not ending, ending, self.line, self.column + 1))

    def take_dots(self) -> None:
        """Adds two dots to a bar line that a line break separated from them."""
        last = self.events[-1] if self.events else None
        if isinstance(last, RawBar):
            self.events[-1] = replace(last, opens=True, thin=False)
            if self.findings is not None:
                self.fault("two dots torn off their bar line", "they open a repeat")
        else:
            self.fault("two dots without a bar line", "they are passed over")
