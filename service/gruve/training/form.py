"""The form of tunes: which bars return, how long the parts are, and how tunes end.

Every figure is a share of tunes or bars, computed in the same way for a corpus and for generated tunes, so that the two
can be compared. A bar is the tokens between two bar lines, without headers. The first bar of a tune is a pick-up, and
left out, if it has fewer than 3 tokens. Bars are compared token by token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import pairwise

from gruve.training.melody import natural_step, notes_of
from gruve.tune.tokens import BAR_TEXT, is_header

PICKUP_TOKENS = 3
"""A first bar with fewer tokens is a pick-up."""
PART_BARS = 8
MOVED_NOTES = 3
"""With fewer notes, a bar is like another by chance."""
PART_ENDS = frozenset({"|:", ":|", "||", "|]"})
SECOND_ENDING = ":|2"
PROMPT_BARS = 4
LINES = frozenset(BAR_TEXT.values())

Bar = tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """The figures. Each is a share from 0 to 1; 0 if there was nothing to count."""

    bars_repeated: float
    """Bars that are equal to an earlier bar of their tune."""
    tunes_with_repeat: float
    """Tunes with at least one such bar."""
    bars_moved: float
    """Bars that are one of the two before, moved up or down the scale by the same steps throughout."""
    tunes_with_move: float
    """Tunes with at least one such bar."""
    bar_5_is_bar_1: float
    """Of the tunes with at least 8 bars."""
    half_cadences_equal: float
    """Bar 15 equals bar 7, of the tunes with at least 16 bars."""
    parts_of_8_bars: float
    """Tunes in which every part has 8 bars. A second ending is not counted in addition to the first."""
    ends_on_tonic: float
    """Tunes whose last note is C, the tonic of every tune in the corpus."""
    notes_repeated: float
    """Notes that equal the note before, of those that have one; a measure of dullness, not of form."""


@dataclasses.dataclass(frozen=True, slots=True)
class TuneForm:
    """What the figures count in one tune."""

    bars: int
    repeated: int
    """Bars that are equal to an earlier one."""
    moved: int
    """Bars that are one of the two before, moved along the scale."""
    bar_5_is_bar_1: bool | None
    """None if the tune has fewer than 8 bars."""
    half_cadences_equal: bool | None
    """None if the tune has fewer than 16 bars."""
    parts_of_8_bars: bool
    ends_on_tonic: bool
    steps: int
    """Notes that have a note before."""
    notes_repeated: int
    """Of these, notes that equal it."""


def bars_of(tokens: Sequence[str]) -> list[Bar]:
    """The bars of a tune given as tokens, without the pick-up."""
    bars = [bar for bar, _ in _segments(tokens) if bar]
    return bars[1:] if bars and len(bars[0]) < PICKUP_TOKENS else bars


def tune_form(tokens: Sequence[str]) -> TuneForm:
    """The form of one tune given as tokens."""
    bars, notes = bars_of(tokens), notes_of(tokens)
    return TuneForm(
        bars=len(bars),
        repeated=sum(bar in bars[:n] for n, bar in enumerate(bars)),
        moved=sum(any(is_moved(earlier, bar) for earlier in bars[max(n - 2, 0) : n]) for n, bar in enumerate(bars)),
        bar_5_is_bar_1=bars[4] == bars[0] if len(bars) >= 8 else None,
        half_cadences_equal=bars[14] == bars[6] if len(bars) >= 16 else None,
        parts_of_8_bars=set(parts_of(tokens)) == {PART_BARS},
        ends_on_tonic=ends_on_tonic(tokens),
        steps=max(0, len(notes) - 1),
        notes_repeated=sum(before == after for before, after in pairwise(notes)),
    )


def form_of(tunes: Iterable[Sequence[str]]) -> Form:
    """Computes the figures of tunes given as tokens."""
    forms = [tune_form(tokens) for tokens in tunes]
    return Form(
        bars_repeated=_share(sum(form.repeated for form in forms), sum(form.bars for form in forms)),
        tunes_with_repeat=_true(form.repeated > 0 for form in forms),
        bars_moved=_share(sum(form.moved for form in forms), sum(form.bars for form in forms)),
        tunes_with_move=_true(form.moved > 0 for form in forms),
        bar_5_is_bar_1=_true(form.bar_5_is_bar_1 for form in forms),
        half_cadences_equal=_true(form.half_cadences_equal for form in forms),
        parts_of_8_bars=_true(form.parts_of_8_bars for form in forms),
        ends_on_tonic=_true(form.ends_on_tonic for form in forms),
        notes_repeated=_share(sum(form.notes_repeated for form in forms), sum(form.steps for form in forms)),
    )


def is_moved(earlier: Bar, bar: Bar) -> bool:
    """Whether a bar of at least 3 notes is the earlier one with all notes moved by the same number of steps, not by 0.

    Notes with an accidental are not moved: they would have to be equal.
    """
    if len(earlier) != len(bar):
        return False
    distances = []
    for before, after in zip(earlier, bar, strict=True):
        low, high = natural_step(before), natural_step(after)
        if low is not None and high is not None:
            distances.append(high - low)
        elif before != after:
            return False
    return len(distances) >= MOVED_NOTES and len(set(distances)) == 1 and distances[0] != 0


def parts_of(tokens: Sequence[str]) -> list[int]:
    """The number of bars of each part of a tune, without pick-ups and second endings."""
    parts: list[int] = []
    count = 0
    first, second_ending = True, False
    for bar, line in _segments(tokens):
        if bar and not (first and len(bar) < PICKUP_TOKENS) and not second_ending:
            count += 1
        first = first and not bar
        if line == SECOND_ENDING:
            second_ending = True
        elif line in PART_ENDS:
            parts += [count] * bool(count)
            count, first, second_ending = 0, True, False
    return parts + [count] * bool(count)


def ends_on_tonic(tokens: Sequence[str]) -> bool:
    """Whether the last note is C, in any octave."""
    notes = [token.strip("=,'") for token in tokens if token.strip("_^=,'").lower() in set("abcdefg")]
    return bool(notes) and notes[-1] in {"c", "C"}


def opening(tokens: Sequence[str], bars: int = PROMPT_BARS) -> list[str] | None:
    """A tune's tokens up to the bar line that closes bar `bars`; None if no bar follows."""
    if len(bars_of(tokens)) <= bars:
        return None
    lines = (at for at, token in enumerate(tokens) if token in LINES)
    end = next(at for at in lines if len(bars_of(tokens[:at])) == bars)
    return list(tokens[: end + 1])


def opening_returns(tokens: Sequence[str], bars: int = PROMPT_BARS) -> bool:
    """Whether one of the tune's first bars occurs again after them."""
    found = bars_of(tokens)
    return any(bar in found[:bars] for bar in found[bars:])


def _segments(tokens: Sequence[str]) -> list[tuple[Bar, str]]:
    """The tokens before each bar line, with the line; last the tokens after all of them, with ""."""
    segments: list[tuple[Bar, str]] = []
    bar: list[str] = []
    for token in tokens:
        if token in LINES:
            segments.append((tuple(bar), token.strip()))
            bar = []
        elif not is_header(token):
            bar.append(token)
    return [*segments, (tuple(bar), "")]


def _share(some: int, of: int) -> float:
    return some / of if of else 0.0


def _true(answers: Iterable[bool | None]) -> float:
    """The share of true answers; None is not counted."""
    given = [answer for answer in answers if answer is not None]
    return _share(sum(given), len(given))
