"""Tokens: fixed texts, exact round trips, and errors that say where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruve.errors import UnknownCharacter
from gruve.tune.parse import parse_tune
from gruve.tune.score import Tune
from gruve.tune.tokens import detokenize, join, locate, split, tokenize
from gruve.tune.transpose import to_root_c
from tunes import TOKENS, abc, kept, token_lists, tunes


@given(tunes())
def test_detokenize_undoes_tokenize(tune: Tune) -> None:
    tokens = tokenize(tune)
    assert detokenize(tokens) == tune
    assert split(join(tokens)) == tokens


def test_every_kept_tune_survives_the_round_trip_and_is_in_normal_form() -> None:
    for one in kept():
        tune = detokenize(one.tokens)
        assert tuple(tokenize(tune)) == one.tokens
        assert split(join(one.tokens)) == list(one.tokens)
        assert to_root_c(tune) == tune


@given(token_lists)
def test_the_bar_lines_of_any_tokens_are_found_again_in_their_text(tokens: list[str]) -> None:
    lines = [token for token in tokens if token[-1].isspace()]
    assert split(join(lines)) == lines


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_found_in_its_own_text(token: str) -> None:
    assert split(token) == [token]


def test_a_tune_is_spelled_with_few_tokens() -> None:
    text = "G2 A>B|(3cBA z4-|z|:^F3/2-F/2 =FF F,:|d|1e:|2e'|]"
    assert tokenize(parse_tune(abc(text, meter="2/4"))) == [
        "L:1/8\n", "M:2/4\n", "K:Cmaj\n", "G", "2", "A", ">", "B", "| ", "(3", "c", "B", "A", "z", "4", "| ", "z",
        "|: ", "^F", "3/2", "-", "^F", "/2", "=F", "=F", "=F,", ":|\n", "|: ", "d", "|1 ", "e", ":|2 ", "e'", "|]\n",
    ]  # fmt: skip


def test_the_unit_that_takes_fewer_tokens_is_chosen() -> None:
    assert tokenize(parse_tune(abc("A/B/c/d/|e/f/g/a/|]")))[0] == "L:1/16\n"
    assert tokenize(parse_tune(abc("A2B2|]", unit="1/16")))[0] == "L:1/8\n"


@pytest.mark.parametrize(
    ("music", "pitches"),
    [("^FF|F", "^F ^F F"), ("_B=B_B", "_B =B _B"), ("^Ff=fF", "^F ^f =f =F"), ("^F-|F", "^F ^F"), ("=FF", "F F")],
)
def test_an_accidental_is_written_wherever_a_reader_could_doubt_it(music: str, pitches: str) -> None:
    tokens = tokenize(parse_tune(abc(music)))[3:]
    assert [token for token in tokens if token.strip("^_=").isalpha()] == pitches.split()


@pytest.mark.parametrize("text", ["", " \n", "L:1/8\n", "M:6/8", "|: G", "|:G A2 | (3", "  A>\n\n B :| "])
def test_a_prompt_may_stop_behind_any_token(text: str) -> None:
    assert join(split(text)).split() == text.split() or split(text) == split(join(split(text)))


@pytest.mark.parametrize(
    ("text", "found", "line", "column", "offset"),
    [
        ("A?", "?", 1, 2, 1),
        ("L:1/8\nM:6/8\nK:Cmaj\nAB\n cQ", "Q", 5, 3, 24),
        ("A ♯", "♯", 1, 3, 2),
        ("^", "^", 1, 1, 0),
    ],
)
def test_what_is_no_token_is_named_with_its_place(text: str, found: str, line: int, column: int, offset: int) -> None:
    with pytest.raises(UnknownCharacter) as caught:
        split(text)
    assert (caught.value.found, caught.value.line, caught.value.column, caught.value.offset) == (
        found,
        line,
        column,
        offset,
    )


@given(st.text(max_size=80))
def test_any_text_is_split_or_refused_at_a_place_in_it(text: str) -> None:
    refused: UnknownCharacter | None = None
    try:
        tokens = split(text)
    except UnknownCharacter as error:
        refused, tokens = error, split(text[: error.offset])
    taken = text[: refused.offset] if refused else text
    assert "".join(join(tokens).split()) == "".join(taken.split())
    assert not refused or text[refused.offset] == refused.found


@given(token_lists)
def test_located_tokens_stand_where_they_are_said_to(tokens: list[str]) -> None:
    text = join(tokens)
    for token, offset in locate(text):
        assert text[offset:].startswith(token.strip())
