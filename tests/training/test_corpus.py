"""Every unusable corpus is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from gruve.errors import CorpusError
from gruve.model.tokenizer import build
from gruve.training.corpus import FEWEST_CHARACTERS, read_text, read_tunes, vocabulary_difference
from gruve.training.evaluate import COLD_WINDOW


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\n ", "is empty"),
        (b"a" * 3_000, "one distinct character, 'a'"),
        (b"abc" * 10, "has 30 characters; at least 2570"),
        (b"text " * 500 + b"\xff\xfe", "not UTF-8: byte 0xff at 2500"),
        (b"text\0" * 500, r"binary, not text: U\+0000 at character 4"),
    ],
)
def test_a_text_that_cannot_be_learned_from_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "corpus.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=says):
        read_text(tmp_path / "corpus.txt")


def test_a_corpus_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="No such file"):
        read_text(tmp_path / "none.txt")


def test_a_corpus_of_the_other_kind_is_refused_with_what_each_kind_takes(tmp_path: Path) -> None:
    (tmp_path / "tunes.abc").write_text("X:1\n")
    with pytest.raises(CorpusError, match="is a folder; of kind 'characters' it is a text, of kind 'abc' a folder"):
        read_text(tmp_path)
    with pytest.raises(CorpusError, match="is not a folder; of kind 'abc' it is a folder of ABC books"):
        read_tunes(tmp_path / "tunes.abc")


def test_two_vocabularies_are_compared_in_words() -> None:
    one, other = (build("characters", [text], has_end=False) for text in ("abcdefgh", "abx"))
    says = "only the model has 'c', 'd', 'e', 'f', 'g' and 1 more; only the corpus has 'x'"
    assert vocabulary_difference(one, other) == says
    assert vocabulary_difference(one, one) == "only the model has none; only the corpus has none"


def test_a_corpus_of_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("some text\n" * 200, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"expects 0000[^.]*\. .*change it to: corpus_sha256 = \"[0-9a-f]{64}\""):
        read_text(tmp_path / "corpus.txt", "0" * 64)


def test_the_shortest_text_can_be_measured_and_one_of_too_many_characters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("ab" * (FEWEST_CHARACTERS // 2))
    assert len(read_text(path).validation) == COLD_WINDOW + 1
    path.write_text("".join(map(chr, range(0x10000, 0x20000))))
    with pytest.raises(CorpusError, match="65536 distinct characters; at most 65534"):
        read_text(path)


def test_the_last_tenth_of_a_text_validates(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + n % 900) for n in range(2_575))
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    corpus = read_text(tmp_path / "corpus.txt")
    assert corpus.train + corpus.validation == text
    assert len(corpus.train) == int(2_575 * 0.9)
    assert corpus.tokenizer.encode(text)[0] == 1
