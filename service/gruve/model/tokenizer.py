"""Text to token ids and back. Each token has one fixed text; a text is the concatenation of its tokens' texts.

Text is cut in one of two ways: into characters, or into the ABC tokens of `gruve.tune`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from gruve.errors import InvalidField, ModelBroken, UnknownCharacter
from gruve.model.config import MAX_VOCABULARY_SIZE
from gruve.tune import tokens as abc_tokens

Kind = Literal["characters", "abc"]

FORMAT_VERSION = 1
START = "<s>"
END = "</s>"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and the way to cut text into it.

    Token 0 is always the start token, with which every transcript begins. Token 1 is the end token if `has_end`. Both
    have the empty text. Every other token has a text of its own; in a `characters` tokenizer it is one character.
    """

    kind: Kind
    vocabulary: tuple[str, ...]
    """The tokens' names: `<s>`, then `</s>` if there is an end, then the texts."""
    has_end: bool

    def __post_init__(self) -> None:
        specials = [START, END] if self.has_end else [START]
        if list(self.vocabulary[: len(specials)]) != specials:
            raise ModelBroken(f"tokenizer.json: tokens begin {self.vocabulary[:2]!r}; they must begin {specials!r}")
        texts = self.vocabulary[len(specials) :]
        if not texts or "" in texts:
            raise ModelBroken("tokenizer.json: tokens must not be empty, and must be at least one beside the specials")
        if len(set(self.vocabulary)) != len(self.vocabulary):
            token, ids = _first_duplicate(self.vocabulary)
            raise ModelBroken(f"tokenizer.json: token {token!r} occurs twice (ids {ids[0]} and {ids[1]})")
        if len(self.vocabulary) > MAX_VOCABULARY_SIZE:
            raise ModelBroken(f"tokenizer.json: {len(self.vocabulary)} tokens; at most {MAX_VOCABULARY_SIZE}")
        if half := re.search("[\ud800-\udfff]", "".join(texts)):
            raise ModelBroken(f"tokenizer.json: a token holds {half[0]!r}, half of a surrogate pair, which is no text")
        if self.kind == "characters" and (longer := next((text for text in texts if len(text) != 1), None)):
            raise ModelBroken(f"tokenizer.json: a characters tokenizer holds {longer!r}, longer than one character")
        object.__setattr__(self, "texts", ("",) * len(specials) + texts)
        object.__setattr__(self, "_ids", {text: len(specials) + i for i, text in enumerate(texts)})

    texts: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)
    """The text of each token, by id."""
    _ids: dict[str, int] = dataclasses.field(init=False, repr=False, compare=False)

    start_id = 0

    @property
    def end_id(self) -> int | None:
        """The id of the end token, or None if the model does not end sequences by itself."""
        return 1 if self.has_end else None

    @property
    def size(self) -> int:
        """V."""
        return len(self.vocabulary)

    def encode(self, text: str, most: int | None = None) -> list[int]:
        """The ids of `text`, without start or end; raises `UnknownCharacter` with the character and its offset.

        With `most` it stops after `most` + 1 tokens, which is enough to see that there are more.
        """
        read = None if most is None else most + 1
        if self.kind == "characters":
            text = text[:read]
            try:
                return [self._ids[character] for character in text]
            except KeyError as error:
                found = str(error.args[0])
                raise UnknownCharacter(found, text, text.index(found)) from None
        tokens = [token for token, _ in itertools.islice(abc_tokens.locate(text), read)]
        try:
            return [self._ids[token] for token in tokens]
        except KeyError as error:
            unknown = str(error.args[0])
            offset = next(at for token, at in abc_tokens.locate(text) if token == unknown)
            raise UnknownCharacter(unknown.strip(), text, offset) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; raises `InvalidField` for an id outside the vocabulary."""
        size = self.size
        pieces = []
        for position, token in enumerate(ids):
            if not 0 <= token < size:
                raise InvalidField("token_ids", f"id {token} at index {position} is not in 0 to {size - 1}")
            pieces.append(self.texts[token])
        return "".join(pieces)

    def to_json(self) -> str:
        """The canonical text of `tokenizer.json`."""
        fields = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "has_end": self.has_end,
            "tokens": list(self.vocabulary),
        }
        return json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Reads a `tokenizer.json`; raises `ModelBroken` on anything it does not know."""
        try:
            fields: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelBroken(f"tokenizer.json is not JSON: {error}") from error
        if not isinstance(fields, dict) or set(fields) != {"format_version", "kind", "has_end", "tokens"}:
            raise ModelBroken("tokenizer.json must hold exactly format_version, kind, has_end and tokens")
        if type(fields["format_version"]) is not int or fields["format_version"] != FORMAT_VERSION:
            raise ModelBroken(
                f"tokenizer.json: format_version is {fields['format_version']!r}; known: {FORMAT_VERSION}"
            )
        if fields["kind"] not in get_args(Kind):
            raise ModelBroken(f"tokenizer.json: kind is {fields['kind']!r}; known: {get_args(Kind)}")
        tokens = fields["tokens"]
        if (
            not isinstance(tokens, list)
            or not all(isinstance(t, str) for t in tokens)
            or type(fields["has_end"]) is not bool
        ):
            raise ModelBroken("tokenizer.json: tokens must be a list of strings and has_end true or false")
        return cls(fields["kind"], tuple(tokens), fields["has_end"])


def _first_duplicate(vocabulary: Sequence[str]) -> tuple[str, tuple[int, int]]:
    """The first token that occurs twice, with both ids; one must exist."""
    first: dict[str, int] = {}
    for token_id, token in enumerate(vocabulary):
        if first.setdefault(token, token_id) != token_id:
            return token, (first[token], token_id)
    raise AssertionError("the tokens are distinct")


def build(kind: Kind, pieces: Iterable[Sequence[str]], *, has_end: bool) -> Tokenizer:
    """A tokenizer of every token in `pieces` (cut texts), in code point order, after the special tokens."""
    texts = sorted({token for piece in pieces for token in piece})
    return Tokenizer(kind, ((START, END) if has_end else (START,)) + tuple(texts), has_end)
