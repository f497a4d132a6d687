"""The text assembler, compared with the whole text cut at its first stop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gruve.decode.stops import compile_stops
from gruve.serve.streams.text_assembler import TextAssembler
from naive_stop import naive_stop

TEXTS = ("", "a", "b", "ab", "ba", "aab", "c\n", "bca")
tokens_ = st.lists(st.integers(0, len(TEXTS) - 1), max_size=30)
stops_ = st.lists(st.text("abc\n", min_size=1, max_size=4), max_size=4)


@given(tokens_, stops_, st.integers(0, 12))
def test_the_text_ends_before_the_stop_that_is_completed_first(tokens, stops, min_tokens):
    assembler = TextAssembler(TEXTS, compile_stops(stops, (), TEXTS), min_tokens)
    sent, texts = "", [TEXTS[token] for token in tokens]
    expected = naive_stop(texts, stops, min_tokens)
    for token in tokens[: expected[0] if expected else None]:
        assert assembler.matched is None
        sent += assembler.feed(token)
    if expected:
        assert (sent, assembler.matched) == expected[1:]
    else:
        assert (sent + assembler.finish(), assembler.matched) == ("".join(texts), None)


@given(tokens_, stops_)
def test_no_more_is_withheld_than_may_become_a_stop(tokens, stops):
    assembler = TextAssembler(TEXTS, compile_stops(stops, (), TEXTS), 10**9)
    sent = text = ""
    for token in tokens:
        sent += assembler.feed(token)
        text += TEXTS[token]
        withheld = text[len(sent) :]
        assert text.startswith(sent)
        assert not withheld or any(stop.startswith(withheld) and stop != withheld for stop in stops)
