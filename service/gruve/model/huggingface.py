"""A tokenizer in Hugging Face's form: the folder that `transformers`, and what is built on it, loads by its path.

    tokenizer.json  tokenizer_config.json

`tokenizer.json` is for the `tokenizers` library: a word-level vocabulary, and patterns that cut a text into words as
`Tokenizer.encode` cuts it into tokens. The ids and the texts of encoded and decoded tokens are the same, and no token
is added. A text that is all of one model's tokens is encoded in the same way whether or not unknown ones are skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from gruve.errors import InvalidField, UnknownCharacter
from gruve.model.tokenizer import END, START, Tokenizer
from gruve.tune import tokens as abc_tokens

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_UNKNOWN_WORD: Final = "<unk>"
"""The form demands the name of a token for unknown words. None has this name, so that an unknown word is an error."""
_ANY_CHARACTER: Final = r"[\s\S]"
_SPACE: Final = r"[\s\x{1c}-\x{1f}]+"
"""What `str.isspace` accepts."""


def export_tokenizer(tokenizer: Tokenizer, folder: Path, *, skip_unknown: bool = False) -> None:
    """Writes both files into a folder, which is created if it is absent; files of these names are replaced.

    Encoding a text with an unknown character or token raises an error there, as it does here. With `skip_unknown` it
    leaves them out instead: a program that makes prompts from a text of its own then gets prompts of known tokens.

    Raises `InvalidField` for an `abc` vocabulary with a token that `Tokenizer.encode` never produces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, fields in (
        (TOKENIZER, tokenizer_fields(tokenizer, skip_unknown)),
        (TOKENIZER_CONFIG, _config(tokenizer)),
    ):
        partial = folder / f".{name}.partial"
        partial.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, folder / name)


def tokenizer_fields(tokenizer: Tokenizer, skip_unknown: bool) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    words = _words(tokenizer)
    cuts = [_split(_ANY_CHARACTER, "Isolated")]
    if tokenizer.kind == "abc":
        cuts = [_split(abc_tokens.WORD_PATTERN, "Isolated"), _split(_SPACE, "Removed")]
    if skip_unknown:
        cuts.append(_split(rf"\A(?!{_one_of(words)}\z){_ANY_CHARACTER}+\z", "Removed"))
    specials = tokenizer.vocabulary[: tokenizer.size - len(words)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],  # a special token here would be found in texts, where it is no token
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*_texts_of(specials, words, tokenizer.texts), {"type": "Fuse"}]},
        "model": {
            "type": "WordLevel",
            "vocab": {word: token for token, word in enumerate((*specials, *words))},
            "unk_token": _UNKNOWN_WORD,
        },
    }


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END if tokenizer.has_end else None,
        "split_special_tokens": True,  # the names of special tokens in a text are characters of it
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
    }


def _words(tokenizer: Tokenizer) -> list[str]:
    """The tokens that have a text, in the order of their ids, each as it stands in a text that is cut.

    The space that ends an ABC token's text belongs to its text alone: a text may have another one there, or none.
    """
    texts = [text for text in tokenizer.texts if text]
    if tokenizer.kind == "characters":
        return texts
    for text in texts:
        if not _is_cut_out(text):
            raise InvalidField("tokenizer", f"has the token {text!r}, which no text is cut into")
    return [text.strip() for text in texts]


def _is_cut_out(text: str) -> bool:
    """Whether this text alone is one ABC token, with exactly its text."""
    try:
        return abc_tokens.split(text) == [text]
    except UnknownCharacter:
        return False


def _texts_of(specials: Iterable[str], words: Iterable[str], texts: Iterable[str]) -> list[dict[str, Any]]:
    """Decoders that turn each token's word into its text: none for special tokens, the ABC tokens' space at the end."""
    ended: dict[str, list[str]] = {}
    for word, text in zip(words, filter(None, texts), strict=True):
        if word != text:
            ended.setdefault(text.removeprefix(word), []).append(word)
    decoders = [_replace(rf"\A{_one_of(specials)}\z", "")]
    for space, before in ended.items():
        behind = "|".join(rf"\A{_escaped(word)}" for word in before)
        decoders.append(_replace(rf"(?<={behind})\z", space))
    return decoders


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _one_of(texts: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(_escaped, texts))})"


def _escaped(text: str) -> str:
    """A pattern for exactly this text, in Oniguruma's grammar."""
    return "".join(one if one.isalnum() else rf"\x{{{ord(one):x}}}" for one in text)
