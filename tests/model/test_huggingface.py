"""Exported tokenizers, read by the `tokenizers` library, encode and decode as gruve's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from commands import gruve
from gruve.errors import InvalidField, UnknownCharacter
from gruve.model.huggingface import export_tokenizer, tokenizer_fields
from gruve.model.repository import read_tokenizer
from gruve.model.tokenizer import END, START, Tokenizer, build

MODELS = Path(__file__).parents[2] / "models"
TINY, FOLK = read_tokenizer(MODELS / "tiny"), read_tokenizer(MODELS / "folk")
unicode_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
# Each ABC token as it stands in a text, what is no token, and all kinds of space
abc_pieces = st.sampled_from([*(text.strip() for text in FOLK.texts), *" \n\t\x1c\u2003?€LKM:", "22", "K:no"])


def exported(tokenizer: Tokenizer, skip_unknown: bool = False) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_fields(tokenizer, skip_unknown)))


REFUSING, SKIPPING = exported(FOLK), exported(FOLK, skip_unknown=True)


@given(unicode_texts, st.booleans(), st.data())
def test_any_characters_are_encoded_and_decoded_in_the_same_way(alphabet, has_end, data):
    tokenizer = build("characters", [alphabet], has_end=has_end)
    text = data.draw(st.text(st.sampled_from(alphabet)))
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1)))
    for other in (exported(tokenizer), exported(tokenizer, skip_unknown=True)):
        assert other.encode(text).ids == tokenizer.encode(text)
        assert other.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)


@given(st.lists(abc_pieces))
def test_any_abc_text_is_encoded_in_the_same_way_or_refused_by_both(pieces):
    text = "".join(pieces)
    try:
        ids = FOLK.encode(text)
    except UnknownCharacter:
        with pytest.raises(Exception, match="Missing"):
            REFUSING.encode(text)
    else:
        assert REFUSING.encode(text).ids == SKIPPING.encode(text).ids == ids


@given(st.lists(st.integers(0, FOLK.size - 1)))
def test_any_abc_tokens_are_decoded_in_the_same_way(ids):
    assert REFUSING.decode(ids, skip_special_tokens=False) == FOLK.decode(ids)


def test_unknown_characters_are_refused_or_skipped():
    with pytest.raises(Exception, match="Missing"):
        exported(TINY).encode("né")
    assert exported(TINY, skip_unknown=True).encode("<né 7>").ids == TINY.encode("n ")
    assert SKIPPING.encode("M:6/8 K:Gmaj ?G2 22 A").ids == FOLK.encode("M:6/8 G2 A")


def test_the_names_of_special_tokens_are_characters_of_a_text():
    tokenizer = build("characters", [START + END], has_end=True)
    assert exported(tokenizer).encode(START + END).ids == tokenizer.encode(START + END)


def test_a_vocabulary_that_no_text_is_cut_into_is_not_exported(tmp_path):
    with pytest.raises(InvalidField, match=r"'A \?', which no text is cut into"):
        export_tokenizer(Tokenizer("abc", (START, "A", "A ?"), has_end=False), tmp_path)


def test_the_command_writes_the_folder_of_a_checked_model(tmp_path):
    ran = gruve("export-tokenizer", str(MODELS / "tiny"), str(tmp_path / "new"))
    assert (ran.returncode, ran.stderr) == (0, f"the 66 tokens of {MODELS / 'tiny'} are in {tmp_path / 'new'}\n")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "new/tokenizer.json")).encode("a!").ids == TINY.encode("a!")
    assert "own folder" in gruve("export-tokenizer", str(MODELS / "tiny"), str(MODELS / "tiny")).stderr
