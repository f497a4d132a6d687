"""Where in its bar each token leaves the music: what a model may be asked to learn beside the next token.

Works on tokens as they come, whatever their order: a text that is only begun, or a model's worst.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gruve.tune.lexer import parse_length, parse_meter
from gruve.tune.score import WHOLE, Meter, default_into
from gruve.tune.tokens import BAR_TEXT

POSITIONS_PER_WHOLE: Final = 96
LAST_POSITION: Final = 119
HEADER, OVERFULL, BETWEEN = 120, 121, 122
BAR_CLASSES: Final = 123
"""Classes are 0 to this, exclusive."""

_LINES: Final = frozenset(BAR_TEXT.values())
_STEP: Final = WHOLE // POSITIONS_PER_WHOLE


def bar_positions(tokens: Sequence[str]) -> list[int]:
    """For each token, how much of its bar would be filled if the music ended right behind it.

    0 to 119 count 96ths of a whole note; 120 is a header, 121 a bar of more than 119, 122 a place between two of them.
    A note counts one unit, or what a pair's sign or tuplet before it makes of one, until a length or sign behind it
    says otherwise: so the class behind a pitch is the one that holds if nothing follows to change it. A single bar line
    empties the bar. Any other line empties it if it is full, and else leaves it, because it may stand inside a bar; a
    second ending begins with what the first began with.
    """
    walk = _Walk()
    return [walk.take(token) for token in tokens]


class _Walk:
    def __init__(self) -> None:
        self.meter = Meter(4, 4)
        self.unit = WHOLE // 8
        self.filled = 0  # up to the last note
        self.note = 0  # the last note
        self.ending = 0  # what was filled where the first ending began
        self.left, self.into, self.count = 0, 1, 1
        self.halves = 2  # half units that the next note counts

    def take(self, text: str) -> int:
        if text[1:2] == ":" and text[0] in "LMK":
            self.take_header(text[0], text[2:].strip())
            return HEADER
        if text in _LINES:
            self.take_line(text.strip())
        elif text[0] == "(":
            self.take_tuplet(text)
        elif text in ("<", ">"):
            self.note = self.note * (3 if text == ">" else 1) // 2
            self.halves = 1 if text == ">" else 3
        elif text[0].isdigit() or text[0] == "/":
            length = parse_length(text)
            self.note = int(self.note * length) if length else self.note
        elif text != "-":
            self.take_note()
        return _position_class(self.filled + self.note)

    def take_header(self, name: str, value: str) -> None:
        if name == "L":
            self.unit = int(WHOLE * (parse_length(value) or 0)) or self.unit
        elif name == "M":
            self.meter = parse_meter(value) or self.meter

    def take_line(self, kind: str) -> None:
        self.filled += self.note
        self.note = self.left = 0
        self.halves = 2
        if kind == "|" or self.filled >= self.meter.ticks:
            self.filled = 0
        if kind == "|1":
            self.ending = self.filled
        elif kind == ":|2":
            self.filled = self.ending

    def take_tuplet(self, text: str) -> None:
        numbers = [int(n) for n in re.findall(r"\d", text)]
        self.count = numbers[0]
        self.into = numbers[1] if len(numbers) == 3 else default_into(self.count, self.meter)
        self.left = numbers[-1]

    def take_note(self) -> None:
        self.filled += self.note
        self.note = self.unit * self.halves // 2
        if self.left:
            self.note = self.note * self.into // self.count
            self.left -= 1
        self.halves = 2


def _position_class(ticks: int) -> int:
    position, rest = divmod(ticks, _STEP)
    if rest:
        return BETWEEN
    return position if position <= LAST_POSITION else OVERFULL
