"""Stop tables walked token by token find the same stop as a search in the whole text."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.decode import stops as stops_module
from gruve.decode.stops import MATCHED, compile_stops
from gruve.errors import InvalidField, LimitExceeded

letters = st.sampled_from("ab")
stops = st.lists(st.text(letters, min_size=1, max_size=4), min_size=1, max_size=4)
vocabularies = st.lists(st.text(st.sampled_from("abc"), max_size=3), min_size=1, max_size=6)
walks = st.lists(st.integers(0, 5), max_size=25)


def first_stop(text, strings, begin=0):
    """(end, index) of the stop that is completed first in `text` after `begin`, the longest of several; else None."""
    ends = [
        (end, -len(string), index)
        for end in range(begin + 1, len(text) + 1)
        for index, string in enumerate(strings)
        if text[:end].endswith(string)
    ]
    return (min(ends)[0], min(ends)[2]) if ends else None


@settings(max_examples=300)
@given(stops, vocabularies, walks)
def test_the_table_marks_the_token_in_which_a_stop_is_completed(strings, texts, walk):
    stop_table = compile_stops(strings, (), texts)
    state, text = 0, ""
    for token in walk:
        token %= len(texts)
        entry = int(stop_table.table[state, token])
        before, text, state = text, text + texts[token], entry & (MATCHED - 1)
        assert bool(entry & MATCHED) == (first_stop(text, strings, len(before)) is not None)


@settings(max_examples=300)
@given(stops, vocabularies, walks)
def test_depth_is_the_longest_end_of_the_text_that_may_still_become_a_stop(strings, texts, walk):
    stop_table = compile_stops(strings, (), texts)
    state, text = 0, ""
    for token in walk:
        token %= len(texts)
        text, state = text + texts[token], int(stop_table.table[state, token]) & (MATCHED - 1)
        open_ends = [
            k for k in range(len(text) + 1) for s in strings if len(s) > k and s.startswith(text[len(text) - k :])
        ]
        assert stop_table.depth[state] == max(open_ends)


@settings(max_examples=300)
@given(stops, st.text(st.sampled_from("abc"), max_size=20), st.integers(0, 20))
def test_walking_finds_the_first_stop_completed_and_the_longest_of_those_that_end_together(strings, text, cut):
    stop_table = compile_stops(strings, (), ("a",))
    found = first_stop(text, strings)
    state, index, used = stop_table.walk(0, text[:cut])
    if index is None:
        state, index, used = stop_table.walk(state, text[cut:])
        used = None if used is None else used + min(cut, len(text))
    assert (used is None) == (found is None)
    if found is not None:
        assert (used, strings[index]) == (found[0], strings[found[1]])


@settings(max_examples=300)
@given(stops, vocabularies, walks, st.integers(0, 8))
def test_before_min_tokens_a_stop_is_passed_over_and_a_later_one_counts(strings, texts, walk, min_tokens):
    """Walks as a stream does: within a token that may stop, the first stop completed in it is the one."""
    stop_table = compile_stops(strings, (), texts)
    table_state = state = 0
    text, tokens = "", [token % len(texts) for token in walk]
    for drawn, token in enumerate(tokens, 1):
        before, text = text, text + texts[token]
        entry = int(stop_table.table[table_state, token])
        table_state, at, stopped = entry & (MATCHED - 1), 0, None
        while stopped is None:
            state, index, used = stop_table.walk(state, texts[token][at:])
            if index is None:
                break
            at += used
            if drawn >= min_tokens:
                stopped = (len(before) + at, strings[index])
        expected = first_stop(text, strings, len(before)) if drawn >= min_tokens else None
        assert stopped == (None if expected is None else (expected[0], strings[expected[1]]))
        assert (bool(entry & MATCHED) and drawn >= min_tokens) == (stopped is not None)
        if stopped:
            return
        assert state == table_state


def test_stop_token_ids_match_from_every_state():
    stop_table = compile_stops(("ab",), (2,), ("a", "b", "c"))
    assert all(entry & MATCHED for entry in stop_table.table[:, 2].tolist())
    assert not stop_table.table[0, 0] & MATCHED


def test_nothing_to_stop_at_needs_no_table():
    assert compile_stops((), (), ("a",)) is None


def test_equal_stops_over_equal_texts_share_one_table_while_it_is_in_use():
    kept = compile_stops(("ab",), (1,), ("a", "b"))
    assert compile_stops(["ab"], [1], ["a", "b"]) is kept
    for other in (("ba",), (1,), ("a", "b")), (("ab",), (), ("a", "b")), (("ab",), (1,), ("b", "a")):
        assert compile_stops(*other) is not kept
    watched = weakref.ref(kept)
    del kept
    gc.collect()
    assert watched() is None


def test_different_stops_are_refused_beyond_what_all_may_take_and_small_ones_never(monkeypatch):
    monkeypatch.setattr(stops_module, "MAX_BYTES", stops_module._size(1_025, 200) * 3 // 2)
    gc.collect()
    texts = tuple(chr(200 + token) for token in range(200))
    first = [char * 64 for char in texts[:16]]
    kept = compile_stops(first, (), texts)
    with pytest.raises(LimitExceeded, match=rf"{kept.size_bytes} bytes beside .* at most {stops_module.MAX_BYTES}"):
        compile_stops(first[::-1], (), texts)
    assert compile_stops(first, (), texts) is kept
    assert compile_stops(["\n\n"], (), texts) is not None
    del kept
    gc.collect()
    assert compile_stops(first[::-1], (), texts) is not None


@pytest.mark.parametrize(
    ("strings", "ids", "texts", "why"),
    [
        (("",), (), ("a",), "empty string"),
        ((), (1,), ("a",), "id 1 is not in 0 to 0"),
        ((), (-1,), ("a",), "id -1"),
        (("x" * 64,) * 16, (), ("a",) * 2_000, "2050000 table entries; at most 1048576"),
    ],
)
def test_stops_that_cannot_be_are_refused(strings, ids, texts, why):
    with pytest.raises(InvalidField, match=why):
        compile_stops(strings, ids, texts)


@given(stops)
def test_a_character_of_no_stop_leads_to_the_start(strings):
    stop_table = compile_stops(strings, (), ("a", "z"))
    assert not stop_table.table[:, 1].any()


def test_many_stops_take_less_than_400_bytes_a_state_beside_the_table():
    strings = [f"{chr(0x4E00 + i)}{'a' * 63}" for i in range(16)]
    tracemalloc.start()
    compiled = compile_stops(strings, (), ("a", "b"))
    taken_bytes = tracemalloc.get_traced_memory()[0] - compiled.table.nbytes
    tracemalloc.stop()
    assert taken_bytes / len(compiled.table) < 400
