"""Reads a corpus: a folder of ABC books becomes a list of tunes to train on and a list of dropped tunes with reasons.

Independent of training. No tune is dropped without a recorded reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from gruve.errors import CorpusError, TuneError
from gruve.tune.bar_repair import repaired
from gruve.tune.bars import wrong_bars
from gruve.tune.lexer import split_book, with_line_feeds
from gruve.tune.parse import parse_tune
from gruve.tune.score import Tune
from gruve.tune.tokens import tokenize
from gruve.tune.transpose import to_root_c
from gruve.tune.variants import Part, split_by_variant

MAX_BOOK_BYTES: Final = 32 * 1024 * 1024
MIN_TOKEN_COUNT: Final = 5
"""A tune with a token that the corpus has fewer times than this is dropped."""
MAX_TOKENS: Final = 2_048
"""Tokens of the longest tune that is kept."""

DropKind = Literal["not read", "wrong bars", "too long", "copy", "rare token"]
DROPPED: Final[dict[DropKind, str]] = {
    "not read": "that cannot be read",
    "wrong bars": "with wrong bars",
    "too long": f"of more than {MAX_TOKENS} tokens",
    "copy": "that are copies",
    "rare token": f"with a token that occurs fewer than {MIN_TOKEN_COUNT} times",
}
"""Each kind in words that follow a number of tunes."""


@dataclass(frozen=True, slots=True)
class Source:
    """The place of a tune: its book (a path within the folder), its `X:` and its first title."""

    book: str
    number: str
    title: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A tune to train on: its tokens, and its part of the split."""

    source: Source
    tokens: tuple[str, ...]
    part: Part


@dataclass(frozen=True, slots=True)
class Drop:
    """A dropped tune: `kind` groups drops for counting, `reason` is the full reason."""

    source: Source
    kind: DropKind
    reason: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """The kept and the dropped tunes of a folder; every `X:` line is in exactly one of the two lists."""

    kept: tuple[Kept, ...]
    drops: tuple[Drop, ...]

    def drop_counts(self) -> dict[DropKind, int]:
        """How many tunes were dropped for each kind of reason, the most frequent first."""
        return dict(Counter(drop.kind for drop in self.drops).most_common())

    def summary(self) -> str:
        """How many tunes are kept, and how many are not for which reason, in one line."""
        dropped = ", ".join(f"{count} {DROPPED[kind]}" for kind, count in self.drop_counts().items())
        return f"{len(self.kept)} of {len(self.kept) + len(self.drops)} tunes are kept; left out: {dropped or 'none'}"


def read_books(folder: Path) -> Corpus:
    """Reads every `.abc` file under a folder, as UTF-8 or else Latin-1.

    Kept tunes are transposed to the root C, all their bars are right, and no two are the same. Raises CorpusError if
    there is no tune, or if a file is binary or too large.
    """
    drops: list[Drop] = []
    found: list[_Found] = []
    for path in _book_paths(folder):
        for source, text in _tunes(path.relative_to(folder).as_posix(), _text(path)):
            one = _musical(source, text)
            if isinstance(one, Drop):
                drops.append(one)
            else:
                found.append(one)
    if not found and not drops:
        raise CorpusError(f"{folder} has no tune: no line of an .abc file begins with X:")
    found = _without_rare(_without_copies(found, drops), drops)
    parts = split_by_variant([(one.tune, one.tokens) for one in found])
    kept = (Kept(one.source, one.tokens, part) for one, part in zip(found, parts, strict=True))
    return Corpus(tuple(kept), tuple(drops))


@dataclass(frozen=True, slots=True)
class _Found:
    source: Source
    tune: Tune
    tokens: tuple[str, ...]


def _book_paths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CorpusError(f"{folder} is not a folder")
    return sorted(path for path in folder.rglob("*.abc") if path.is_file())


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_BOOK_BYTES:
        raise CorpusError(f"{path} has {size} bytes; at most {MAX_BOOK_BYTES} are read")
    data = path.read_bytes()
    if b"\0" in data:
        raise CorpusError(f"{path} is binary: it has a zero byte at offset {data.index(0)}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    text = with_line_feeds(text)
    # No line of ABC ends in these: it is quoted-printable, as mail left it.
    return re.sub(r"(=20|=0D)$|=\n", "", text, flags=re.MULTILINE)


def _tunes(book: str, text: str) -> Iterator[tuple[Source, str]]:
    """The tunes of a book."""
    for _, lines in split_book(text):
        title = next((line[2:].strip() for line in lines if line.startswith("T:")), "")
        yield Source(book, lines[0][2:].strip(), title), "\n".join(_unwrapped(lines))


def _unwrapped(lines: list[str]) -> list[str]:
    """The lines, with music rejoined that a mail program wrapped at 72 columns, even inside bars and notes."""
    music = [n for n, line in enumerate(lines) if not re.match(r"[A-Za-z]:[^|:]|%", line)]
    cut = {n for n in music[:-1] if len(lines[n]) in (71, 72)}
    if len(music) < 3 or len(cut) < 0.7 * (len(music) - 1):
        return lines
    return "".join(line + ("" if n in cut else "\n") for n, line in enumerate(lines)).split("\n")


def _musical(source: Source, text: str) -> _Found | Drop:
    try:
        tune = repaired(parse_tune(text))
    except TuneError as error:
        return Drop(source, "not read", str(error))
    wrong = wrong_bars(tune)
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return Drop(source, "wrong bars", "; ".join(map(str, wrong[:3])) + more)
    tune = to_root_c(tune)
    tokens = tuple(tokenize(tune))
    if len(tokens) > MAX_TOKENS:
        return Drop(source, "too long", f"{len(tokens)} tokens; at most {MAX_TOKENS} are kept")
    return _Found(source, tune, tokens)


def _without_copies(found: list[_Found], drops: list[Drop]) -> list[_Found]:
    first: dict[tuple[str, ...], _Found] = {}
    for one in found:
        same = first.setdefault(one.tokens, one)
        if same is not one:
            drops.append(Drop(one.source, "copy", f"the same music as X:{same.source.number} of {same.source.book}"))
    return list(first.values())


def _without_rare(found: list[_Found], drops: list[Drop]) -> list[_Found]:
    """The tunes without a rare token. Dropping a tune may make another token rare, so this repeats until none is."""
    while True:
        counts = Counter(token for one in found for token in one.tokens)
        rare = {token for token, count in counts.items() if count < MIN_TOKEN_COUNT}
        if not rare:
            return found
        rest = []
        for one in found:
            if here := rare.intersection(one.tokens):
                names = " ".join(sorted(token.strip() for token in here))
                drops.append(Drop(one.source, "rare token", f"seen too rarely: {names}"))
            else:
                rest.append(one)
        found = rest
