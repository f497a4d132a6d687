"""Tokenizers: fixed texts, round trips, and errors that name the character and its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruve.errors import InvalidField, UnknownCharacter
from gruve.model.tokenizer import Tokenizer, build
from gruve.tune.tokens import split

TUNE = "L:1/8\nM:6/8\nK:Gmaj\nG2 A | B3 (3cde ||\n"
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(texts, st.booleans())
def test_any_unicode_text_survives_a_character_tokenizer(text, has_end):
    tokenizer = build("characters", [text], has_end=has_end)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert min(ids) >= (2 if has_end else 1)


@given(texts, st.booleans())
def test_a_tokenizer_is_its_own_text(text, has_end):
    tokenizer = build("characters", [text], has_end=has_end)
    assert Tokenizer.from_json(tokenizer.to_json()) == tokenizer


@given(texts, st.data())
def test_each_token_has_one_text_whatever_stands_beside_it(text, data):
    tokenizer = build("characters", [text], has_end=True)
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1)))
    assert tokenizer.decode(ids) == "".join(tokenizer.decode([i]) for i in ids)


def test_vocabularies_do_not_depend_on_the_order_of_the_corpus():
    assert build("characters", ["ba", "ab"], has_end=True) == build("characters", ["b", "a"], has_end=True)


def test_start_and_end_have_no_text():
    tokenizer = build("characters", ["x"], has_end=True)
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.decode([0, 2, 1])) == (0, 1, "x")
    assert build("characters", ["x"], has_end=False).end_id is None


def test_an_unknown_character_is_named_with_line_column_and_offset():
    tokenizer = build("characters", ["abc\n"], has_end=False)
    with pytest.raises(UnknownCharacter, match=r"'é' \(U\+00E9\), at line 2, column 3") as error:
        tokenizer.encode("abc\nabé\né")
    assert (error.value.line, error.value.column, error.value.offset) == (2, 3, 6)


def test_an_unknown_unit_of_abc_is_quoted_without_code_points():
    tokenizer = build("abc", [["M:6/8\n", "C"]], has_end=True)
    with pytest.raises(UnknownCharacter) as error:
        tokenizer.encode("M:6/8\nM:7/16\n")
    assert str(error.value) == "the model has no token for 'M:7/16', at line 2, column 1"


@pytest.mark.parametrize("ids", [[5], [-1], [0, 1, 99]])
def test_an_id_outside_the_vocabulary_is_refused_by_its_index(ids):
    tokenizer = build("characters", ["abc"], has_end=True)
    with pytest.raises(InvalidField, match=f"id {ids[-1]} at index {len(ids) - 1} is not in 0 to 4"):
        tokenizer.decode(ids)


def abc(text=TUNE):
    return build("abc", [split(text)], has_end=True)


def test_an_abc_text_is_the_concatenation_of_its_tokens():
    tokenizer = abc()
    text = tokenizer.decode(tokenizer.encode(TUNE))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_space_between_abc_tokens_carries_nothing():
    assert abc().encode("G2A|B3") == abc().encode("  G2 \n A | B3 ")


@pytest.mark.parametrize(
    ("text", "found", "offset"),
    [
        ("K:Gmaj\nG2 A ? B", "?", 12),  # not a token of ABC
        ("  ?", "?", 2),
        ("G2 G2 G4", "4", 7),  # a token, but not of this vocabulary; its text does not occur earlier
        ("K:Gmaj\n  K:Dmaj\nG", "K:Dmaj", 9),
        ("G2 22 2", "22", 3),  # another token begins with the same text
        ("A | B |]", "|]", 6),
        ("A|B:|", ":|", 3),
        ("G\n\n\t(4", "(4", 4),
    ],
)
def test_an_unknown_abc_token_is_found_where_it_stands(text, found, offset):
    with pytest.raises(UnknownCharacter) as error:
        abc().encode(text)
    assert (error.value.found, error.value.offset) == (found, offset)


@given(st.lists(st.sampled_from(["G", "A", "2", " ", "\n", "|", "(3", "K:Gmaj\n", "^^c'", "L:1/8\n", ":|2", "7"])))
def test_an_unknown_abc_token_stands_where_its_offset_says(pieces):
    text, tokenizer = "".join(pieces) + " 22", abc("G A2|")
    with pytest.raises(UnknownCharacter) as caught:
        tokenizer.encode(text)
    assert text.startswith(caught.value.found, caught.value.offset)
    tokenizer.encode(text[: caught.value.offset])


class Watched(str):
    """A text that counts the copies that are made of its parts."""

    __slots__ = ("copies",)

    def __getitem__(self, at):
        self.copies = getattr(self, "copies", 0) + isinstance(at, slice)
        return super().__getitem__(at)


def test_an_unknown_abc_token_is_found_without_copying_the_text_for_each_token_before_it():
    text = Watched(1_000 * "G" + "22")
    with pytest.raises(UnknownCharacter) as caught:
        abc("G A2|").encode(text)
    assert (caught.value.offset, getattr(text, "copies", 0)) == (1_000, 0)


def test_a_text_is_read_no_further_than_is_needed_to_see_that_it_is_too_long():
    assert len(abc("G A2|").encode("G A2" + 100 * "?", most=2)) == 3
    assert build("characters", ["ab"], has_end=True).encode("aba??", most=2) == [2, 3, 2]
