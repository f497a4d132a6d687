"""The whole books, where GRUVE_CORPORA names the folder that holds them: what is kept, and that it is whole."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path

import pytest

from gruve.tune.bars import wrong_bars
from gruve.tune.books import Corpus, read_books
from gruve.tune.draw import engraving_warnings
from gruve.tune.recover import recovered
from gruve.tune.score import Key
from gruve.tune.tokens import detokenize, join, split, tokenize
from gruve.tune.transpose import to_key, to_root_c
from gruve.tune.write import write_tune

BOOKS = Path(os.environ.get("GRUVE_CORPORA", "")) / "abc"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BOOKS.is_dir(), reason="GRUVE_CORPORA names no folder with abc/, the public-domain books"),
]


@cache
def corpus() -> Corpus:
    return read_books(BOOKS)


def test_at_least_3600_of_4033_tunes_are_kept_and_every_other_is_accounted_for() -> None:
    headers = sum(len(re.findall(rb"^X:", path.read_bytes(), re.MULTILINE)) for path in BOOKS.rglob("*.abc"))
    assert len(corpus().kept) + len(corpus().drops) == headers == 4033
    assert len(corpus().kept) >= 3600


def test_the_kept_tunes_and_their_split_are_those_the_folk_model_learned_from() -> None:
    parts = [
        [join(one.tokens) for one in corpus().kept if one.part == part] for part in ("train", "validation", "test")
    ]
    digest = hashlib.sha256("\n\n".join("\n".join(part) for part in parts).encode()).hexdigest()
    assert digest == "94378c6888224560841f500a1b27303757b4679ee1c412e76d9d40fcf936e752"


def test_every_kept_tune_is_right_and_survives_the_round_trip() -> None:
    for one in corpus().kept:
        tune = detokenize(one.tokens)
        assert not wrong_bars(tune), one.source
        assert tuple(tokenize(tune)) == one.tokens, one.source
        assert split(join(one.tokens)) == list(one.tokens), one.source
        assert recovered(one.tokens) == to_root_c(tune) == tune, one.source


def test_every_part_of_the_split_has_its_share() -> None:
    parts = [one.part for one in corpus().kept]
    assert 0.88 < parts.count("train") / len(parts) < 0.92
    assert 0.04 < parts.count("validation") / len(parts) < 0.06
    assert 0.04 < parts.count("test") / len(parts) < 0.06


def test_verovio_engraves_every_kept_tune_without_a_warning() -> None:
    tunes = [write_tune(to_key(detokenize(one.tokens), Key(4, 0, "maj"))) for one in corpus().kept]
    assert not [log for log in engraving_warnings(tunes) if log]
