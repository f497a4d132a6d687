"""Auxiliary targets that teach a network to count bars, parts and endings of a tune.

Each token gets one class for every question below, computed from the tokens up to and including it. A network that can
answer the questions from its last output has what it needs to close a bar, a part or an ending in time. The head that
answers them is trained with the model and not saved.
"""

from __future__ import annotations

from collections.abc import Sequence

from gruve.tune.positions import BAR_CLASSES, HEADER, LAST_POSITION, bar_positions
from gruve.tune.tokens import BAR_TEXT, PART_STARTS

POSITIONS_PER_STEP = 6
"""Pick-ups are measured in sixteenth notes, positions in 96ths of a whole note."""
LONG_PICKUP = LAST_POSITION // POSITIONS_PER_STEP + 1
"""The class of the longest pick-ups, and of all that are longer."""
MANY_BARS = 32
"""The class of parts with this many bars or more."""
MOST_NOTES_LEFT = 9

CLASSES = (BAR_CLASSES, LONG_PICKUP + 1, LONG_PICKUP + 1, 6, MANY_BARS + 1, MOST_NOTES_LEFT + 1)
"""The number of classes of each question.

They are: how full the bar is (`bar_positions`); the length of the tune's first bar, in sixteenth notes; that of the
part's first bar; 3 in a repeated part, else 0, plus the number of the ending, 0 to 2; how many bars of the part are
complete; and how many notes the tuplet still has.
"""

LINES: frozenset[str] = frozenset(BAR_TEXT)
"""The bar lines, without the space that ends their texts."""


def auxiliary_targets(tokens: Sequence[str]) -> list[tuple[int, ...]]:
    """One class for each entry of `CLASSES`, for each token."""
    positions = bar_positions(tokens)
    answers: list[tuple[int, ...]] = []
    tune_pickup = part_pickup = 0
    segment_start = 0
    first_of_tune = first_of_part = True
    repeat_open = ending = bars = notes_left = 0
    for at, token in enumerate(tokens):
        line = token.strip()
        if line in LINES:
            before = positions[at - 1] if at and positions[at - 1] != HEADER else 0
            length = _steps(before - segment_start)
            if length and first_of_part:
                part_pickup, first_of_part = length, False
                if first_of_tune:
                    tune_pickup, first_of_tune = length, False
            bars += bool(length)
            segment_start = positions[at]
            ending = {"|1": 1, ":|2": 2, "|": ending}.get(line, 0)
            if line in PART_STARTS:
                first_of_part, part_pickup, bars = True, 0, 0
            repeat_open = {"|:": 1, ":|": 0, "||": 0, "|]": 0, ":|2": 0}.get(line, repeat_open)
            notes_left = 0
        elif token.startswith("("):
            notes_left = int(token.split(":")[-1].lstrip("("))
        elif (token[0].isalpha() and token[1:2] != ":") or token[0] in "_^=":
            notes_left = max(0, notes_left - 1)
        form = 3 * repeat_open + ending
        answers.append(
            (positions[at], tune_pickup, part_pickup, form, min(bars, MANY_BARS), min(notes_left, MOST_NOTES_LEFT))
        )
    return answers


def _steps(positions: int) -> int:
    """The class of a first bar's length: its sixteenths, rounded up; 0 if there is none."""
    return min(max(-(-positions // POSITIONS_PER_STEP), 0), LONG_PICKUP)
