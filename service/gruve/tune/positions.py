"""The position in the bar after each token, as a class: an auxiliary training target beside the next token.

Accepts tokens in any order, so also unfinished or malformed text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gruve.tune.lexer import parse_length, parse_meter
from gruve.tune.score import WHOLE, Meter, default_into
from gruve.tune.tokens import BAR_TEXT, is_header

POSITIONS_PER_WHOLE: Final = 96
LAST_POSITION: Final = 119
HEADER, OVERFULL, BETWEEN = 120, 121, 122
BAR_CLASSES: Final = 123
"""Classes are 0 to this, exclusive."""

_LINES: Final = frozenset(BAR_TEXT.values())
_STEP: Final = WHOLE // POSITIONS_PER_WHOLE


def bar_positions(tokens: Sequence[str]) -> list[int]:
    """For each token, how much of its bar is filled after it.

    Classes 0 to 119 count 96ths of a whole note; 120 is a header, 121 more than 119/96, 122 a position between two
    96ths. A note counts as one unit, changed by a dotted pair's sign or a tuplet before it, until a length or sign
    after it changes that: the class after a pitch is right if no length follows. A single bar line sets the position to
    0. Any other bar line sets it to 0 only if the bar is full, because such a line may be inside a bar. A second ending
    begins at the position where the first one began.
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
        if is_header(text):
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
