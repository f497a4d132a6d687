"""The text assembler, compared with the whole text cut at its first stop."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.decode.stops import compile_stops
from gruve.serve.streams.text_assembler import TextAssembler
from naive_stop import naive_stop

TEXTS = ("", "a", "b", "ab", "ba", "aab", "c\n", "bca")
NEVER = 10**9
"""The value of min_tokens with which no stop is ever completed."""


@st.composite
def tokens_and_stops(draw):
    """Tokens, and stops of which most are in their text; chance alone would complete a stop in one example of forty."""
    tokens = draw(st.lists(st.integers(0, len(TEXTS) - 1), max_size=30))
    text = "".join(TEXTS[token] for token in tokens)
    parts = st.builds(lambda at, size: text[at : at + size] or "a", st.integers(0, len(text)), st.integers(1, 5))
    return tokens, draw(st.lists(parts | st.text("abc\n", min_size=1, max_size=4), max_size=4))


@settings(max_examples=200)
@given(tokens_and_stops(), st.integers(0, 12))
def test_the_text_ends_before_the_stop_that_is_completed_first(given_, min_tokens):
    tokens, stops = given_
    assembler = TextAssembler(TEXTS, compile_stops(stops, (), TEXTS), min_tokens)
    sent, texts = "", [TEXTS[token] for token in tokens]
    expected = naive_stop(texts, stops, min_tokens)
    for token in tokens[: expected[0] if expected else None]:
        assert assembler.matched is None
        sent += assembler.feed(token)
    if expected:
        assert (sent + assembler.finish(), assembler.matched) == expected[1:]
    else:
        assert (sent + assembler.finish(), assembler.matched) == ("".join(texts), None)


@settings(max_examples=200)
@given(tokens_and_stops())
def test_no_more_is_withheld_than_may_become_a_stop(given_):
    tokens, stops = given_
    assembler = TextAssembler(TEXTS, compile_stops(stops, (), TEXTS), NEVER)
    sent = text = ""
    for token in tokens:
        sent += assembler.feed(token)
        text += TEXTS[token]
        withheld = text[len(sent) :]
        assert text.startswith(sent)
        assert not withheld or any(stop.startswith(withheld) and stop != withheld for stop in stops)


@settings(max_examples=200)
@given(tokens_and_stops(), st.integers(0, 30), st.integers(0, 30))
def test_one_that_begins_in_the_middle_gives_the_text_from_there_on(given_, cut, min_tokens):
    tokens, stops = given_
    table = compile_stops(stops, (), TEXTS)
    whole, later = TextAssembler(TEXTS, table, min_tokens), TextAssembler(TEXTS, table, min_tokens)
    for token in tokens[:cut]:
        whole.feed(token)
    if whole.matched is not None:
        return  # the generation ended before
    later.feed(1)
    later.seek(len(tokens[:cut]), tokens[:cut])
    for token in tokens[cut:]:
        assert later.feed(token) == whole.feed(token)
    assert (later.matched, later.finish()) == (whole.matched, whole.finish())


def test_a_stop_token_ends_the_text_without_its_own_once_min_tokens_are_reached():
    assembler = TextAssembler(TEXTS, compile_stops(("abab",), (4,), TEXTS), min_tokens=3)
    assert [assembler.feed(token) for token in (4, 3)] == ["b", "a"]
    assert (assembler.matched, assembler.feed(4), assembler.matched, assembler.finish()) == (None, "ab", 4, "")


def test_no_stop_is_completed_across_what_finishes_the_text():
    assembler = TextAssembler(TEXTS, compile_stops(("ab",), (), TEXTS), min_tokens=0)
    assert (assembler.feed(1), assembler.finish(), assembler.feed(2)) == ("", "a", "b")
    assert assembler.matched is None
