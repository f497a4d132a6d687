"""A tune as tokens and back: one fixed, context-free text per token; their concatenation is the tune as valid ABC.

Three header tokens, each a line (`L:1/8`, `M:6/8`, `K:Cmaj`), then the music: pitches with accidental and octave, `z`,
lengths (`2`, `/2`, `3/2`; none means one unit), `>` and `<` between the two notes of a dotted pair, `(3` before a
tuplet, `-` after a tied note, and seven bar lines. A bar line's text ends in a space, or in a line feed where a part
ends, so that two adjacent bar lines cannot be read as a third one. An accidental is written if the pitch is not in the
key, and also if an earlier accidental in the bar has the same letter: the text then means the same under every
convention about the range of accidentals. Whitespace between the tokens of the music has no meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Final

from gruve.errors import TuneError, UnknownCharacter
from gruve.tune.keys import key_name, signature
from gruve.tune.lexer import ALTER
from gruve.tune.parse import parse_tune
from gruve.tune.score import (
    LETTERS,
    WHOLE,
    Bar,
    BarKind,
    Event,
    Meter,
    MeterChange,
    Note,
    Pitch,
    Tune,
    Tuplet,
    default_into,
)

UNITS: Final = (WHOLE // 8, WHOLE // 16)
"""Unit lengths that a tune may be written in, in ticks; the first where both take equally many tokens."""
BAR_TEXT: Final[dict[BarKind, str]] = {
    "|": "| ", "||": "||\n", "|]": "|]\n", "|:": "|: ", ":|": ":|\n", "|1": "|1 ", ":|2": ":|2 ",
}  # fmt: skip
PART_STARTS: Final[tuple[BarKind, ...]] = ("|:", ":|", "||")
"""The bar lines after which a part begins."""
_LINE_TEXT: Final = {str(kind): text for kind, text in BAR_TEXT.items()}
_ACCIDENTALS: Final = {alter: sign for sign, alter in ALTER.items()}
WORD_PATTERN: Final = (
    r"[LMK]:\S+|:\|2|\|1|\|\]|\|:|:\||\|\||\|"
    r"|(?:\^\^|\^|__|_|=)?[A-Ga-g](?:,+|'+)?|z|\d+/\d+|/\d+|\d+|[-<>]|\(\d(?::\d:\d)?"
)
"""A token as it stands in a text, without the space that ends its own text."""
_TOKEN: Final = re.compile(WORD_PATTERN)


def detokenize(tokens: Iterable[str]) -> Tune:
    """The tune that tokens spell; raises TuneError if they are not a tune."""
    return parse_tune(join(tokens))


def tokenize(tune: Tune) -> list[str]:
    """The tune's tokens, in the unit length that needs the fewest tokens.

    Raises TuneError if the meter changes, because no token stands for that.
    """
    if any(isinstance(event, MeterChange) for event in tune.events):
        raise TuneError("the meter changes; tokens have one meter for a tune")
    unit = shortest_unit(tune)
    body = [token for _, tokens in spelled(tune, unit) for token in tokens]
    return [f"L:1/{WHOLE // unit}\n", f"M:{tune.meter.beats}/{tune.meter.unit}\n", f"K:{key_name(tune.key)}\n", *body]


def shortest_unit(tune: Tune) -> int:
    """The unit length, in ticks, in which the tune needs the fewest tokens."""
    spellings = [(unit, [token for _, tokens in spelled(tune, unit) for token in tokens]) for unit in UNITS]
    return min(spellings, key=lambda one: len(one[1]))[0]


def is_header(token: str) -> bool:
    """Whether a token is one of the three header lines."""
    return token[1:2] == ":" and token[0] in "LMK"


def join(tokens: Iterable[str]) -> str:
    """The concatenated text of tokens."""
    return "".join(tokens)


def split(text: str) -> list[str]:
    """The tokens of a complete or unfinished text; whitespace between them is skipped.

    Raises UnknownCharacter at a position where no token begins. The text may be empty and may end after any token.
    """
    return [token for token, _ in locate(text)]


def locate(text: str) -> Iterator[tuple[str, int]]:
    """The tokens of a text, each with the offset where it begins; raises UnknownCharacter as `split` does."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found = _TOKEN.match(text, at)
        if found is None:
            raise UnknownCharacter(text[at], text, at)
        token = found[0]
        yield (token + "\n" if token[0] in "LMK" else _LINE_TEXT.get(token, token)), at
        at = found.end()


def spelled(tune: Tune, unit: int) -> Iterator[tuple[Event, list[str]]]:
    """Each event with its tokens, for a unit length of `unit` ticks."""
    key = signature(tune.key)
    altered: set[int] = set()
    clock = _Clock()
    meter = tune.meter
    second = False  # of a dotted pair: the sign before it tells its length
    for event, following in pairwise([*tune.events, None]):
        if isinstance(event, Bar):
            altered.clear()
            clock.restart()
            yield event, [BAR_TEXT[event.kind]]
        elif isinstance(event, Tuplet):
            clock.squeeze(event)
            yield event, [_tuplet_text(event, meter)]
        elif isinstance(event, MeterChange):
            meter = event.meter
            yield event, [f"[M:{meter.beats}/{meter.unit}]"]
        elif isinstance(event, Note):
            tokens = [_pitch_text(event.pitch, key, altered)]
            pair = "" if second else _pair(event, following, unit, clock)
            if not second and not pair and event.ticks != unit:
                tokens.append(_length_text(Fraction(event.ticks, unit)))
            tokens += ["-"] * event.tied + [pair] * bool(pair)
            second = bool(pair)
            clock.advance(event.ticks)
            yield event, tokens


class _Clock:
    """The start of the next note, in ticks from the bar line, or in written ticks from the start of a tuplet."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.onset = self.outer = self.left = 0
        self.into = self.count = 1

    def squeeze(self, tuplet: Tuplet) -> None:
        self.outer, self.onset = self.onset, 0
        self.left, self.into, self.count = tuplet.notes, tuplet.into, tuplet.count

    def advance(self, ticks: int) -> None:
        self.onset += ticks
        if self.left:
            self.left -= 1
            if not self.left:
                self.onset = self.outer + self.onset * self.into // self.count


def _pair(event: Note, following: Event | None, unit: int, clock: _Clock) -> str:
    """The sign between this note and the next, if they are a dotted pair that begins on a whole unit."""
    if not isinstance(following, Note) or event.pitch is None or following.pitch is None or event.tied:
        return ""
    if event.ticks + following.ticks != 2 * unit or clock.onset % unit or clock.left == 1:
        return ""
    return {unit * 3: ">", unit: "<"}.get(2 * event.ticks, "")


def _pitch_text(pitch: Pitch | None, key: tuple[int, ...], altered: set[int]) -> str:
    if pitch is None:
        return "z"
    letter = pitch.letter
    accidental = ""
    if pitch.alter != key[letter] or letter in altered:
        accidental = _ACCIDENTALS[pitch.alter]
        altered.add(letter)
    octave = pitch.staff // 7
    name = LETTERS[letter] + "," * -octave if octave < 1 else LETTERS[letter].lower() + "'" * (octave - 1)
    return accidental + name


def _length_text(length: Fraction) -> str:
    if length.denominator == 1:
        return str(length)
    return f"/{length.denominator}" if length.numerator == 1 else f"{length.numerator}/{length.denominator}"


def _tuplet_text(tuplet: Tuplet, meter: Meter) -> str:
    if tuplet.into == default_into(tuplet.count, meter) and tuplet.notes == tuplet.count:
        return f"({tuplet.count}"
    return f"({tuplet.count}:{tuplet.into}:{tuplet.notes}"
