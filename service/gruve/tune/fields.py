"""Reads the fields of a tune (such as `M:6/8` and `K:G`), in its header and inside the music. Does not read notes."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from gruve.errors import TuneError
from gruve.tune import lexer
from gruve.tune.keys import parse_key
from gruve.tune.raw import Findings, RawEvent, RawPart
from gruve.tune.score import WHOLE, Key, Meter, Tempo
from gruve.tune.shift import Shift, parse_shift
from gruve.tune.tempo import parse_tempo

KEPT_FIELDS: Final = "ABCDFGHNOSZ"
"""Headers that say something about a tune and change nothing in it."""
_LEFT_OUT_FIELDS: Final = {"w": "lines of lyrics", "W": "lines of lyrics", "m": "macros", "s": "symbol lines"}


class Fields:
    """The values that fields have set. Without `findings` it is strict: an unknown value raises TuneError."""

    def __init__(self, findings: Findings | None) -> None:
        self.findings = findings  # None: strict
        self.line = self.column = 0
        self.events: list[RawEvent] = []
        self.title = self.rhythm = self.order = ""
        self.fields: list[tuple[str, str]] = []
        self.tempo: Tempo | None = None
        self.meter: Meter | None = None  # the first
        self.meter_now = Meter(4, 4)
        self.new_meter: Meter | None = None  # written in front of the next note
        self.free_meter = False
        self.key: Key | None = None  # once it is there, music is read
        self.unit = Fraction(0)  # of a whole note; 0 until L: or K: has set it
        self.signature: tuple[int, ...] = (0,) * 7
        self.in_force: dict[int, int] = {}  # letter -> alteration, up to the next bar line
        self.voice: str | None = None
        self.skipping = False  # another voice than the first
        self.shifts: list[tuple[int, Shift]] = []  # from the event of this number on
        self.voice_shifts: dict[str, Shift] = {}

    def fail(self, why: str) -> TuneError:
        return TuneError(why, self.line, self.column + 1)

    def fault(self, why: str, taken_for: str) -> None:
        """Raises TuneError if strict, else records a finding that says how the text is read."""
        if self.findings is None:
            raise self.fail(why)
        self.findings.warn(self.line, self.column + 1, f"{why}; {taken_for}")

    def leave_out(self, kind: str) -> None:
        if self.findings is not None:
            self.findings.leave_out(kind, self.line, self.column + 1)

    def take_field(self, name: str, value: str) -> None:
        if name == "V":
            self.take_voice(value)
        elif self.skipping:
            return
        elif name == "T" and not self.title:
            self.title = value
        elif name == "R":
            self.rhythm = self.rhythm or value
        elif name == "Q":
            self.take_tempo(value)
        elif name == "M":
            self.take_meter(value)
        elif name == "L":
            self.take_unit(value)
        elif name == "K":
            self.take_key(value)
        elif name == "P":
            self.take_part(value)
        else:
            self.take_text(name, value)

    def take_text(self, name: str, value: str) -> None:
        if name in _LEFT_OUT_FIELDS:
            self.leave_out(_LEFT_OUT_FIELDS[name])
        elif (name == "T" or name in KEPT_FIELDS) and not self.key:
            self.fields.append((name, value))

    def take_tempo(self, value: str) -> None:
        if self.key:
            self.leave_out("changes of tempo")
        else:
            self.tempo = self.tempo or parse_tempo(value)

    def take_meter(self, value: str) -> None:
        meter = lexer.parse_meter(value)
        if meter is None and (self.findings is None or value.strip().lower() not in ("none", "")):
            self.fault(f"meter {value[:20]!r} is not a fraction of up to 32 beats", "the meter is taken to be free")
        if self.meter is None or not self.events:
            self.free_meter = meter is None
            self.meter = self.meter_now = meter or Meter(4, 4)
        elif meter is None:
            self.free_meter = True
        elif self.findings is None:
            if meter.ticks != self.meter.ticks:
                raise self.fail(f"the meter changes to {value[:20]!r}")
        elif meter != self.meter_now:
            self.meter_now = self.new_meter = meter

    def take_unit(self, value: str) -> None:
        found = re.match(r"([1-9]\d?)\s?/\s?([1-9]\d{0,2})(?!\d)", value)
        if found:
            self.unit = Fraction(int(found[1]), int(found[2]))
        elif self.findings is None or value != "1":
            self.fault(f"unit length {value[:20]!r} is not a fraction of up to 99/999", "it is passed over")
        else:
            self.unit = Fraction(1)

    def take_key(self, value: str) -> None:
        parsed = parse_key(value)
        if shift := parse_shift(value):
            self.shifts.append((len(self.events), shift))
        if parsed is None and self.key and not re.match(r"[A-H]", value):
            return  # a change of clef
        if parsed is None:
            if self.findings is None or not re.match(
                r"(none\b.*)?$|clef=|treble|bass|alto|tenor|octave=", value.lower()
            ):
                self.fault(f"key {value[:20]!r} is not a root and a mode", "no sharps or flats are read")
            parsed = (Key(0, 0, "maj"), (0,) * 7)
        if self.meter is None:
            if self.findings is None:
                raise self.fail("no meter: bars cannot be counted")
            self.meter, self.free_meter = Meter(4, 4), True
        if self.events and parsed[1] != self.signature:
            self.leave_out("changes of key, written as accidentals")
        key, self.signature = parsed
        self.in_force = {}
        if not self.events:
            self.key = key
        short = not self.free_meter and self.meter.ticks * 4 < WHOLE * 3
        self.unit = self.unit or (Fraction(1, 16) if short else Fraction(1, 8))

    def take_voice(self, value: str) -> None:
        """Select the first voice that the music names, and skip the others."""
        name = value.split()[0] if value.split() else ""
        if shift := parse_shift(value):
            self.voice_shifts[name] = shift
        if self.key:
            first = self.voice is None
            self.voice = name if first else self.voice
            self.skipping = name != self.voice
            if self.skipping:
                self.leave_out("voices and returns to them")
            elif name in self.voice_shifts and (first or shift):
                self.shifts.append((len(self.events), self.voice_shifts[name]))

    def take_part(self, value: str) -> None:
        if self.findings is None:
            return
        if not self.key:
            self.order = value
        elif value:
            self.events.append(RawPart(value[0], self.line))
