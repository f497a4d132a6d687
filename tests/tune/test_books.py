"""Corpora: every tune is kept or dropped with a reason, variants stay together, bad folders are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from gruve.errors import CorpusError
from gruve.tune.books import MAX_BOOK_BYTES, MIN_TOKEN_COUNT, read_books
from gruve.tune.parse import parse_tune
from gruve.tune.tokens import detokenize, join, tokenize
from gruve.tune.variants import plain_title, split_by_variant, variant_groups
from tunes import abc, fixture, kept

REEL = "ABcd efga|gfed cBAG|EFGA Bcde|dcBA GFED|"


def book(folder: Path, *tunes: str, title: str = "Nameless") -> Path:
    texts = [tune.replace("X:1\n", f"X:{n}\nT:{title} {n}\nZ:Somebody\n") for n, tune in enumerate(tunes, 1)]
    (folder / "book.abc").write_text("\n\n".join(texts), encoding="utf-8")
    return folder


def test_every_tune_of_the_fixture_is_kept_or_dropped_for_a_reason() -> None:
    corpus = fixture()
    assert len(corpus.kept) + len(corpus.drops) == 200
    assert corpus.drop_counts() == {"rare token": 15, "wrong bars": 7, "copy": 1, "not read": 1}
    assert all(drop.reason for drop in corpus.drops)


def test_the_tokens_of_what_is_kept_are_all_frequent() -> None:
    tokens = [token for one in kept() for token in one.tokens]
    assert min(tokens.count(token) for token in set(tokens)) >= MIN_TOKEN_COUNT


def test_a_drop_says_where_the_tune_stands_and_why(tmp_path: Path) -> None:
    (drop,) = read_books(book(tmp_path, abc("AB?"), title="Ill")).drops
    assert (drop.source.book, drop.source.number, drop.source.title) == ("book.abc", "1", "Ill 1")
    assert (drop.kind, drop.reason) == ("not read", "line 7, column 3: cannot read '?'")


def test_a_wrong_bar_is_quoted(tmp_path: Path) -> None:
    (drop,) = read_books(book(tmp_path, abc("A8|B7|c8|]"))).drops
    assert (drop.kind, drop.reason) == ("wrong bars", "bar 2 has 7/8 of a whole note, not 1")


def test_the_same_music_in_another_key_is_a_copy(tmp_path: Path) -> None:
    music, higher = "CDEF GABc|c8|]", "DEFG ABcd|d8|]"
    corpus = read_books(book(tmp_path, *[abc(music)] * 4, abc(higher, key="D")))
    assert [drop.reason for drop in corpus.drops if drop.kind == "copy"] == ["the same music as X:1 of book.abc"] * 4


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_books_of_any_age_are_read(tmp_path: Path, encoding: str, newline: str) -> None:
    text = abc("?").replace("X:1\n", "X:1\nT:Mná\n").replace("\n", newline)
    (tmp_path / "old.abc").write_bytes(text.encode(encoding))
    assert read_books(tmp_path).drops[0].source.title == "Mná"


def test_what_mail_did_to_a_book_is_undone(tmp_path: Path) -> None:
    mailed = abc("ABcd efga|gf=\ned cBAG|=20\nEFGA B?")
    (tmp_path / "mail.abc").write_text(mailed)
    assert read_books(tmp_path).drops[0].reason == "line 6, column 7: cannot read '?'"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has no tune"),
        (b"no tune here", "has no tune"),
        (b"X:1\n\0", "is binary"),
        (b" " * (MAX_BOOK_BYTES + 1), "at most"),
    ],
    ids=["empty", "no tune", "binary", "too large"],
)
def test_a_bad_book_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "bad.abc").write_bytes(content)
    with pytest.raises(CorpusError, match=why):
        read_books(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is not a folder"):
        read_books(tmp_path / "nowhere")


def test_variants_are_found_by_title_and_by_melody() -> None:
    tunes = [
        parse_tune(f"X:1\nT:{title}\n" + abc(music)[4:])
        for title, music in [
            ("The Humours of Nowhere -- Reel", REEL),
            ("Humours of Nowhere, The (2nd setting)", "c8|d8|]"),
            ("Quite another name", "z8|" + REEL),
            ("A third name", "GFGA GFGA|cBcB cBcB|d8|]"),
        ]
    ]
    groups = variant_groups(tunes)
    assert groups[0] == groups[1] == groups[2] != groups[3]
    parts = split_by_variant([(tune, tokenize(tune)) for tune in tunes])
    assert len(set(parts[:3])) == 1


def test_a_title_that_names_nothing_makes_no_variants() -> None:
    assert plain_title("The Quick Step -- 2nd Setting") == ""
    assert plain_title("HUMOURS OF BANDON, The [1]") == plain_title("The Humours of Bandon") == "humoursofbandon"


def test_the_split_is_the_same_everywhere_and_about_18_to_1_to_1() -> None:
    tunes = [(detokenize(one.tokens), one.tokens) for one in kept()]
    parts = split_by_variant(tunes)
    assert parts[::-1] == split_by_variant(tunes[::-1])
    assert 0.8 < parts.count("train") / len(parts) < 0.97
    assert parts.count("validation")
    assert parts.count("test")


def test_no_two_kept_tunes_are_the_same() -> None:
    texts = [join(one.tokens) for one in kept()]
    assert len(set(texts)) == len(texts)
