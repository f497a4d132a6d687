"""Reads a corpus from disk, splits it and builds the tokenizer. An unusable corpus raises an error that says why."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from torch import Tensor

from gruve.errors import CorpusError
from gruve.model.config import MAX_VOCABULARY_SIZE, ModelConfig
from gruve.model.tokenizer import Tokenizer, build
from gruve.training.auxiliary import CLASSES, auxiliary_targets
from gruve.training.batches import IGNORED, Piece
from gruve.training.config import TrainingConfig
from gruve.training.pointing import pointed_rows
from gruve.training.unlikelihood import UnlikelyTokens
from gruve.tune.books import read_books
from gruve.tune.tokens import join
from gruve.tune.variants import Part

TRAINING_SHARE = 0.9
"""The share of a text's characters, from its front, that train; the rest validates. It is nanoGPT's split."""
FEWEST_CHARACTERS = 2_570
"""With fewer, the last tenth does not fill a window of 257 characters, on which a text is measured."""

TOKENS_SHOWN = 5
"""The tokens that an error about a vocabulary names."""


@dataclasses.dataclass(frozen=True, slots=True)
class TextCorpus:
    """A text in two parts."""

    tokenizer: Tokenizer
    train: str
    validation: str
    sha256: str

    @property
    def summary(self) -> str:
        """The sizes of the two parts and the number of distinct characters."""
        distinct = self.tokenizer.size - 1  # without the start token
        return f"{len(self.train):,} characters train, {len(self.validation):,} validate; {distinct:,} are distinct"


def read_text(path: Path, expected_sha256: str = "") -> TextCorpus:
    """Reads a UTF-8 text; its first 90% of characters train, the rest validates.

    Raises `CorpusError` if it cannot be read, has another hash than `expected_sha256`, is empty, binary, in another
    encoding, too short, or too uniform to learn from.
    """
    if path.is_dir():
        raise CorpusError(f"the corpus {path} is a folder; of kind 'characters' it is a text, of kind 'abc' a folder")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"the corpus {path} cannot be read: {error.strerror}") from error
    sha256 = check_sha256(str(path), hashlib.sha256(content).hexdigest(), expected_sha256)
    text = decode(str(path), content)
    if len(text) < FEWEST_CHARACTERS:
        raise CorpusError(f"the corpus {path} has {len(text)} characters; at least {FEWEST_CHARACTERS} are needed")
    if len(set(text)) < 2:
        raise CorpusError(f"the corpus {path} holds one distinct character, {text[0]!r}; there is nothing to predict")
    if len(set(text)) >= MAX_VOCABULARY_SIZE:
        raise CorpusError(
            f"the corpus {path} has {len(set(text))} distinct characters; at most {MAX_VOCABULARY_SIZE - 1}"
        )
    cut = int(len(text) * TRAINING_SHARE)
    return TextCorpus(build("characters", [text], has_end=False), text[:cut], text[cut:], sha256)


def decode(name: str, content: bytes) -> str:
    """Decodes `content`; raises `CorpusError` if it is empty, has control bytes, or is not UTF-8."""
    if not content.strip():
        raise CorpusError(f"the corpus {name} is empty")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"the corpus {name} is not UTF-8: byte 0x{content[error.start]:02x} at {error.start}: {error.reason}"
        ) from error
    for offset, character in enumerate(text):
        if character < " " and character not in "\t\n\r\f":
            raise CorpusError(f"the corpus {name} is binary, not text: U+{ord(character):04X} at character {offset}")
    return text


def check_sha256(name: str, found: str, expected: str) -> str:
    """Raises `CorpusError` if `found` differs from a non-empty `expected`."""
    if expected and found != expected:
        raise CorpusError(
            f"the corpus {name} has sha256 {found}; the config expects {expected}. If this is the corpus to train on, "
            f'remove that line from the config or change it to: corpus_sha256 = "{found}"'
        )
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class TuneCorpus:
    """Tunes in three parts. All variants of one tune are in the same part."""

    tokenizer: Tokenizer
    train: tuple[Piece, ...]
    validation: tuple[Piece, ...]
    test: tuple[Piece, ...]
    unlikely: Tensor
    """The table (rows, V) of `unlikelihood.py`."""
    sha256: str
    summary: str
    """How many tunes of the books are in the corpus, and why the others are not."""


def read_tunes(folder: Path, expected_sha256: str = "") -> TuneCorpus:
    """Reads every ABC book under `folder`; `gruve.tune` selects, cuts and splits the tunes.

    Raises `CorpusError` if there is no tune, a book is binary, the books have another hash than `expected_sha256`, or a
    part of the split is empty.
    """
    if not folder.is_dir():
        raise CorpusError(f"the corpus {folder} is not a folder; of kind 'abc' it is a folder of ABC books")
    sha256 = check_sha256(str(folder), books_sha256(folder), expected_sha256)
    books = read_books(folder)
    kept = books.kept
    for part in get_args(Part):
        if not any(tune.part == part for tune in kept):
            raise CorpusError(f"the corpus {folder} has no tune for the {part} part: {books.summary()}")
    tokenizer = build("abc", [tune.tokens for tune in kept], has_end=True)
    unlikely = UnlikelyTokens(tokenizer, [tune.tokens for tune in kept if tune.part == "train"])
    parts: dict[str, list[Piece]] = {"train": [], "validation": [], "test": []}
    for tune in kept:
        parts[tune.part].append(piece_of(tokenizer, tune.tokens, unlikely))
    train, validation, test = (tuple(pieces) for pieces in parts.values())
    return TuneCorpus(tokenizer, train, validation, test, unlikely.table(), sha256, books.summary())


def piece_of(tokenizer: Tokenizer, tokens: Sequence[str], unlikely: UnlikelyTokens) -> Piece:
    """A tune between start and end token, with its auxiliary targets and rows of unlikely tokens."""
    start, end = tokenizer.start_id, tokenizer.end_id
    assert end is not None, "a tokenizer of tunes has an end"  # noqa: S101 - how `read_tunes` builds it
    ids = tokenizer.encode(join(tokens))
    none = (IGNORED,) * len(CLASSES)
    return Piece((start, *ids, end), (none, *auxiliary_targets(tokens), none), (*unlikely.rows(tokens), 0))


def tokens_of(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> list[list[str]]:
    """The tokens of tunes, without start and end."""
    return [[tokenizer.vocabulary[i] for i in piece.ids[1:-1]] for piece in pieces]


def with_pointers(corpus: TuneCorpus, model: ModelConfig) -> TuneCorpus:
    """The corpus with the pointers' values at every token, for a model with pointers; else the corpus itself."""
    if model.pointers is None:
        return corpus

    def pointed(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
        return tuple(dataclasses.replace(piece, pointed=pointed_rows(model, piece.ids)) for piece in pieces)

    train, validation, test = pointed(corpus.train), pointed(corpus.validation), pointed(corpus.test)
    return dataclasses.replace(corpus, train=train, validation=validation, test=test)


def vocabulary_difference(model: Tokenizer, corpus: Tokenizer) -> str:
    """Which tokens only the model or only the corpus has, in words; at most `TOKENS_SHOWN` of each."""

    def only(some: Tokenizer, other: Tokenizer) -> str:
        tokens = [repr(token) for token in some.vocabulary if token not in other.vocabulary]
        shown = ", ".join(tokens[:TOKENS_SHOWN]) or "none"
        return f"{shown} and {len(tokens) - TOKENS_SHOWN} more" if len(tokens) > TOKENS_SHOWN else shown

    return f"only the model has {only(model, corpus)}; only the corpus has {only(corpus, model)}"


def books_sha256(folder: Path) -> str:
    """The sha256 of the lines that `sha256sum` prints for every `.abc` file under `folder`, sorted by path."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.abc") if path.is_file()}
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in sorted(paths.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


Corpus = TextCorpus | TuneCorpus


def read_corpus(config: TrainingConfig, path: Path) -> Corpus:
    """Reads the corpus of the config's kind at `path`: a text file, or a folder of ABC books. Raises `CorpusError`."""
    if config.kind == "characters":
        return read_text(path, config.corpus_sha256)
    return read_tunes(path, config.corpus_sha256)
