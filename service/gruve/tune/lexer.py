"""The lexer of ABC: lines and tunes of a book, patterns for tokens, and values of meters, lengths and accidentals.

Every pattern takes time linear in the line: each repetition is bounded or ends at a single character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from gruve.tune.score import LETTERS, SHORTEST, Meter

ALTER: Final = {"^": 1, "^^": 2, "_": -1, "__": -2, "=": 0}
"""Accidentals and their semitones."""
FIELD: Final = re.compile(r"([A-Za-z+]):(.*)")
FIELD_COMMENT: Final = re.compile(r"(?<!\\)%.*")
# `d:|` at the start of a line is music, although it looks like a field.
MUSIC_LIKE_FIELD: Final = re.compile(r"[A-Ga-gzx]:+\|?[|:]")
_NOTE: Final = (
    r"(?:(?P<accidental>\^\^|\^|__|_|=)(?P<microtone>\d{0,2}/\d{0,2}|\d{1,2})?)?"
    r"(?P<letter>[A-Ga-g])(?P<octave>[,']{0,8})"
)
_LENGTH: Final = r"(?P<length>\d{0,4}/{0,6}\d{0,4})"
TOKEN: Final = re.compile(
    rf"""
      (?P<note>{_NOTE}){_LENGTH}
    # An invisible rest that carries a fermata in front of a bar line fills space, not time.
    | (?P<space>Hx(?=\s*[|:]))
    | (?P<rest>[zx])(?P<rest_length>\d{{0,4}}/{{0,6}}\d{{0,4}})
    | (?P<whole_bars>[ZX])(?P<bars>\d{{0,4}})
    | \[(?P<inline>[A-Za-z]:[^\]]*)\]
    | (?P<bar>:*(?:\[\||\|)[|\]]*(?:\[\|\])?:*\|?:*|::+|\[\|?\])(?:\s*\[?(?P<ending>[1-9][0-9,\-]{{0,16}}))?
    | \[\s*(?P<loose_ending>[1-9][0-9,\-]{{0,16}})
    | (?P<chord>\[)
    | (?P<tuplet>\((?P<p>[2-9])(?::(?P<q>[1-9])?(?::(?P<r>[1-9])?)?)?)
    | (?P<broken>>{{1,3}}|<{{1,3}})
    | (?P<tie>-)
    | (?P<old_chord>\+(?=(?:[\^_=]{{0,2}}[A-Ga-g][,']{{0,3}}[\d/]{{0,3}}){{2,6}}\+))
    | (?P<dots>:)
    | (?P<overlay>\(&|&\)|&)
    | (?P<skip>[\s`()\\.~H-Wh-wy*$]|"[^"]*"|\{{[^}}]*\}}|![^!|\s\[\]]{{1,40}}!|!|\+[a-z0-9]{{1,20}}\+)
    """,
    re.VERBOSE,
)
CHORD_NOTE: Final = re.compile(_NOTE + _LENGTH)
CHORD_SKIP: Final = re.compile(r'[\s.~H-Wh-w()\-`]|"[^"]*"|![^!]{1,40}!|[zx][\d/]{0,8}')
_LENGTH_ALONE: Final = re.compile(_LENGTH)
BROKEN: Final = {1: (3, 1, 2), 2: (7, 1, 4), 3: (15, 1, 8)}
"""Signs of broken rhythm -> numerators of the longer and the shorter note, and their denominator."""


def with_line_feeds(text: str) -> str:
    """The text with a line feed at the end of each line, whatever stood there."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split_book(text: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of each tune of a book, and the number of its first one.

    A tune goes from its `X:` line to an empty line or to the next `X:`.
    """
    first, tune = 0, list[str]()
    for number, line in enumerate([*text.split("\n"), ""], 1):
        begins = line.startswith("X:")
        if tune and (begins or not line.strip()):
            yield first, tune
            tune = []
        if begins:
            first = number
        if begins or tune:
            tune.append(line)


def parse_meter(text: str) -> Meter | None:
    """The meter that an `M:` field names; None for free meter and for a text that is not a meter."""
    text = text.strip()
    if text.startswith("C"):
        return Meter(2, 2) if text.startswith("C|") else Meter(4, 4)
    found = re.match(r"\(?(\d{1,2}(?:\s?\+\s?\d{1,2}){0,8})\)?\s?/\s?(\d{1,2})(?!\d)", text)
    if not found:
        return None
    beats, unit = sum(int(n) for n in found[1].split("+")), int(found[2])
    return Meter(beats, unit) if 1 <= beats <= 32 and unit in (1, 2, 4, 8, 16, 32) else None


def parse_length(text: str) -> Fraction | None:
    """A note's length in units (`3`, `/2`, `/`, `//`, `3/2`; empty means 1); None if it is zero or not a length."""
    found = re.fullmatch(r"(\d{0,4})(?:(/{1,6})(\d{0,4}))?", text)
    if not found:
        return None
    over = int(found[1] or 1)
    under = int(found[3] or 2) * 2 ** (len(found[2]) - 1) if found[2] else 1
    return Fraction(over, under) if over and under else None


def parse_alteration(accidental: str, microtone: str | None) -> int:
    """The semitones of an accidental; a microtone is rounded to the nearest semitone, a half away from the natural."""
    alter = ALTER[accidental]
    if not microtone:
        return alter
    over, slash, under = microtone.partition("/")
    part = Fraction(int(over or 1), max(1, int(under or 2)) if slash else 1)
    return max(-2, min(2, int(part + Fraction(1, 2)) * (1 if alter > 0 else -1)))


def length_at(line: str, at: int) -> str:
    """The text of the length at a position of a line; may be empty."""
    found = _LENGTH_ALONE.match(line, at)
    return found[0] if found else ""


def exact_ticks(length: Fraction) -> int | None:
    """A length in ticks as an integer, or None if it is not a multiple of the shortest length that can be written."""
    ticks = length / SHORTEST
    return int(length) if ticks.denominator == 1 else None


def parse_staff(letter: str, octave: str) -> int:
    """The staff position of a letter with its octave marks."""
    return LETTERS.index(letter.upper()) + 7 * (letter.islower() + octave.count("'") - octave.count(","))
