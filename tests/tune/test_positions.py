"""Positions in the bar, against a plain count of what detokenizing says."""

from __future__ import annotations

from hypothesis import given

from gruve.tune.bars import sounding
from gruve.tune.positions import BAR_CLASSES, BETWEEN, HEADER, LAST_POSITION, OVERFULL, bar_positions
from gruve.tune.score import WHOLE, Bar, Note
from gruve.tune.tokens import detokenize, split
from tunes import kept, token_lists

HEAD = ["L:1/8\n", "M:6/8\n", "K:Cmaj\n"]


def places(music: str) -> list[int]:
    return bar_positions([*HEAD, *split(music)])[3:]


def test_a_length_corrects_what_a_pitch_assumed() -> None:
    assert places("G A2 B/2") == [12, 24, 36, 48, 42]


def test_a_pair_corrects_its_first_note_and_shortens_its_second() -> None:
    assert places("A>B A<B") == [12, 18, 24, 36, 30, 48]


def test_a_tuplet_squeezes_the_notes_that_follow_it() -> None:
    assert places("(3ABc d") == [0, 8, 16, 24, 36]


def test_a_tie_and_a_rest_move_nothing_and_on() -> None:
    assert places("A-A z") == [12, 12, 24, 36]


def test_a_single_line_empties_the_bar_and_others_only_a_full_one() -> None:
    assert places("A | B5 :| |: c |") == [12, 0, 12, 60, 60, 60, 72, 0]
    assert places("A | B6 :| c") == [12, 0, 12, 72, 0, 12]


def test_a_second_ending_begins_with_what_the_first_began_with() -> None:
    assert places("z6 | A4 |1 B2 :|2 c")[3:] == [12, 48, 48, 60, 72, 48, 60]


def test_headers_and_fine_places_have_their_own_classes() -> None:
    assert bar_positions(HEAD) == [HEADER] * 3
    assert places("(5ABcde")[1] == BETWEEN


@given(token_lists)
def test_any_tokens_have_positions(tokens: list[str]) -> None:
    positions = bar_positions(tokens)
    assert len(positions) == len(tokens)
    assert all(0 <= position < BAR_CLASSES for position in positions)


def test_every_bar_of_the_kept_tunes_ends_where_the_notes_say() -> None:
    for one in kept():
        positions = bar_positions(one.tokens)
        filled = [positions[n - 1] for n, token in enumerate(one.tokens) if token == "| "]
        assert filled == _counted(one.tokens), one.source


def _counted(tokens: tuple[str, ...]) -> list[int]:
    """What stands in the bar at each single line, in 96ths: lines that a bar may go on behind carry over."""
    tune = detokenize(tokens)
    counts, filled, ending = [], 0, 0
    for event, ticks in sounding(tune.events):
        if isinstance(event, Note):
            filled += ticks
        elif isinstance(event, Bar):
            if event.kind == "|":
                position, rest = divmod(filled, WHOLE // 96)
                counts.append(BETWEEN if rest else position if position <= LAST_POSITION else OVERFULL)
            filled = 0 if event.kind == "|" or filled >= tune.meter.ticks else filled
            ending = filled if event.kind == "|1" else ending
            filled = ending if event.kind == ":|2" else filled
    return counts
