"""The fast computations of pointers against the definition, and the definition against worked examples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.decode import HISTORY_TOKENS
from gruve.errors import ModelBroken
from gruve.model.pointer_tracker import PointerTracker, point_all
from gruve.model.pointers import WINDOW, PointerConfig, point

V = 8
START, END, BAR, PART, A, B, C, HALF = range(V)
CONFIG = PointerConfig(
    bars=(1, 2, 4),
    followers=(1, 2, 3),
    scale=(A, B, C),
    bar_tokens=(BAR, PART),
    part_tokens=(PART,),
    advances=(0, 0, 0, 0, 24, 24, 24, -12),
    start_token=START,
    place_step=12,
    places=8,
    counts=4,
    matches=6,
)
NONE = V


def check(config: PointerConfig, ids: list[int], at: list[int]) -> None:
    """Compares the fast computations with `point` at the given positions, and a tracker that begins with the window."""
    rows = point_all(config, V, ids)
    tracker = PointerTracker(config, V)
    for t, token in enumerate(ids):
        fed = tracker.feed(token)
        if t not in at:
            continue
        plain = point(config, V, ids[: t + 1])
        assert fed == plain
        assert rows[t].tolist() == [*plain.tokens, *plain.matches, plain.place_row, plain.count_row]
        resumed = PointerTracker(config, V)
        assert [resumed.feed(token) for token in ids[max(t + 1 - WINDOW, 0) : t + 1]][-1] == plain


def configs() -> st.SearchStrategy[PointerConfig]:
    """Pointer configurations over the vocabulary above, with and without each part."""
    tables = {"places": st.sampled_from((0, 5, 9)), "counts": st.sampled_from((0, 1, 5))}
    return st.builds(
        dataclasses.replace,
        st.just(CONFIG),
        bars=st.lists(st.integers(1, 6), unique=True, max_size=3).map(tuple),
        followers=st.lists(st.integers(1, 9), unique=True, min_size=1, max_size=3).map(tuple),
        transposed=st.lists(st.integers(1, 4), unique=True, max_size=3).map(tuple),
        scale=st.sampled_from(((A, B, C), (C, A), (B, HALF, A, C))),
        start_token=st.sampled_from((START, -1)),
        place_step=st.integers(1, 30),
        matches=st.sampled_from((0, 1, 2, 12)),
        **tables,
    )


@settings(max_examples=150, deadline=None)
@given(configs(), st.lists(st.integers(0, V - 1), min_size=1, max_size=80))
def test_short_transcripts_match_the_definition(config: PointerConfig, ids: list[int]) -> None:
    check(config, ids, list(range(len(ids))))


@settings(max_examples=25, deadline=None)
@given(
    configs(),
    st.integers(0, 2**32 - 1),
    st.integers(WINDOW - 20, 2 * WINDOW + 300),
    st.sampled_from(((0, 0, 3, 1, 6, 6, 6, 3), (1, 1, 40, 8, 99, 90, 80, 60), (0, 0, 1, 1, 200, 300, 300, 200))),
    st.data(),
)
def test_windows_that_slide_match_the_definition(
    config: PointerConfig, seed: int, length: int, shares: tuple[int, ...], data: st.DataObject
) -> None:
    """Long transcripts: bars that slide out, bars of more than 256 tokens, rare start tokens."""
    ids = np.random.default_rng(seed).choice(V, size=length, p=np.array(shares) / sum(shares)).tolist()
    check(config, ids, data.draw(st.lists(st.integers(0, length - 1), min_size=4, max_size=12)))


def test_a_transcript_that_repeats_points_at_what_came_before() -> None:
    ids = [START, A, B, C, BAR, A, B]
    plain = point(CONFIG, V, ids)
    # The first bar opens at the start token; at B's place it holds B, which C follows.
    assert plain.tokens == (C, NONE, NONE, C, C, NONE)
    assert plain.matches == (2, 0, 0, 2, 2, 0)
    assert (plain.place_row, plain.count_row) == (4, 1)


def test_a_bar_that_moves_along_the_scale_goes_on_as_far_from_the_bar_before() -> None:
    config = dataclasses.replace(CONFIG, bars=(), followers=(), transposed=(1, 2))
    ids = [START, A, HALF, B, A, BAR, B]
    first = point(config, V, ids)
    assert (first.tokens, first.matches) == ((HALF, NONE), (1, 0))  # one step above; the token after A is in no scale
    assert point(config, V, [*ids, HALF]).tokens == (C, NONE)  # B, moved by a step
    assert point(config, V, [*ids, HALF]).matches == (2, 0)
    assert point(config, V, [*ids, HALF, C]).tokens == (B, NONE)
    assert point(config, V, [*ids, HALF, B]).tokens == (NONE, NONE)  # not moved as far as the note before
    assert point(config, V, [START, A, HALF, B, A, BAR, A]).tokens == (NONE, NONE)  # nothing has moved
    assert point(config, V, [START, B, HALF, C, A, BAR, C, HALF]).tokens == (NONE, NONE)  # out of the scale
    assert point(config, V, [*ids, HALF, C, B, BAR, C]).tokens == (HALF, HALF)


def test_a_start_token_begins_everything_anew() -> None:
    nothing = point(CONFIG, V, [START, A, B, BAR, A, START])
    assert nothing.tokens == (NONE,) * 6
    assert (nothing.matches, nothing.place_row, nothing.count_row) == ((0,) * 6, 0, 0)


def test_a_part_token_begins_the_count_anew_and_empty_bars_do_not_count() -> None:
    counts = [
        point(CONFIG, V, ids).count_row for ids in ([A, BAR, A, BAR], [START, A, BAR, BAR, A, BAR], [START, A, PART])
    ]
    assert counts == [1, 2, 0]


def test_a_window_without_the_opening_of_its_first_bar_has_no_place() -> None:
    assert point(CONFIG, V, [A, A]).place_row == CONFIG.places - 1
    assert point(CONFIG, V, [START, A, A]).place_row == 4


def test_a_place_beyond_256_tokens_of_a_bar_is_unknown() -> None:
    config = dataclasses.replace(CONFIG, advances=(0,) * 4 + (1, 0, 0, 0), place_step=1, places=256)
    ids = [BAR, A, *[B] * 254]
    assert point(config, V, ids).place_row == 1
    beyond = [*ids, B]
    assert point(config, V, beyond).place_row == 255
    assert point(config, V, [*beyond, BAR]).tokens[0] == A  # the bar is complete, and its opening is at place 0


def test_a_window_is_what_a_slot_remembers() -> None:
    assert WINDOW == HISTORY_TOKENS


def test_the_oldest_token_of_the_window_counts_and_the_one_before_does_not() -> None:
    config = PointerConfig(followers=(1,), matches=2)
    ids = [A, B, *[C] * (WINDOW - 3), A]
    assert len(ids) == WINDOW
    assert point(config, V, ids).tokens == (B,)
    assert point(config, V, [*ids[:-1], C, A]).tokens == (NONE,)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bars": (), "followers": ()}, "the number of pointers is 0; allowed: 1 to 16"),
        ({"followers": tuple(range(1, 17))}, "the number of pointers is 19; allowed: 1 to 16"),
        ({"bars": (65,)}, "bars is 65; allowed: 1 to 64"),
        ({"bars": (2, 2)}, r"bars is \[2, 2\]; allowed: distinct values"),
        ({"transposed": (65,)}, "transposed is 65; allowed: 1 to 64"),
        ({"transposed": (1,), "scale": (A,)}, r"scale is \[4\]; allowed: at least two tokens with transposed"),
        ({"scale": (A, BAR)}, "scale is 2; allowed: none of bar_tokens and not start_token"),
        ({"scale": (A, A)}, r"scale is \[4, 4\]; allowed: distinct ids"),
        ({"followers": (33,)}, "followers is 33; allowed: 1 to 32"),
        ({"place_step": 0}, "place_step is 0; allowed: 1 to 1000"),
        ({"places": 257}, "places is 257; allowed: 0 to 256"),
        ({"counts": 65}, "counts is 65; allowed: 0 to 64"),
        ({"matches": 33}, "matches is 33; allowed: 0 to 32"),
        ({"advances": (0,) * 7 + (1_001,)}, "advances is 1001; allowed: -1000 to 1000"),
        ({"bar_tokens": ()}, r"bar_tokens is \[\]; allowed: at least one token"),
        ({"part_tokens": (A,)}, "part_tokens is 4; allowed: one of bar_tokens"),
        ({"start_token": BAR}, "start_token is 2; allowed: none of bar_tokens"),
    ],
)
def test_values_out_of_bounds_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelBroken, match=reason):
        dataclasses.replace(CONFIG, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bar_tokens": (BAR, PART, V)}, "bar_tokens is 8; allowed: 0 to 7"),
        ({"start_token": V}, "start_token is 8; allowed: -1 to 7"),
        ({"advances": (0,) * 7}, "the length of advances is 7; allowed: 8, one for each token"),
    ],
)
def test_a_vocabulary_of_another_size_is_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelBroken, match=reason):
        dataclasses.replace(CONFIG, **change).check_vocabulary(V)  # type: ignore[arg-type]


def test_fields_of_another_type_and_unknown_keys_are_refused() -> None:
    assert PointerConfig.from_fields({"followers": [2, 1]}).followers == (2, 1)
    for fields, reason in (
        ([], r"pointers is \[\]; allowed: an object"),
        ({"followers": 3}, "followers is 3; allowed: a list of integers"),
        ({"followers": [True]}, "followers is True; allowed: integers"),
        ({"followers": [1], "matches": 2.0}, "matches is 2.0; allowed: an integer"),
        ({"followers": [1], "bar": [1]}, "unknown key 'bar'; known are bars, followers"),
    ):
        with pytest.raises(ModelBroken, match=reason):
            PointerConfig.from_fields(fields)
