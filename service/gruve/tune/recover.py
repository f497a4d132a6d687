"""Error recovery: makes a tune from any sequence of tokens, also malformed ones. Never raises and never adds a note.

Meant for display and playback. `detokenize` and `wrong_bars` tell whether the tokens are valid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from gruve.errors import TuneError
from gruve.tune.keys import parse_key
from gruve.tune.lexer import parse_length, parse_meter
from gruve.tune.score import WHOLE, Key, Meter, Tune
from gruve.tune.tokens import BAR_TEXT, UNITS, detokenize

DEFAULTS: Final = {"L": "1/8", "M": "4/4", "K": "Cmaj"}
_LINES: Final = frozenset(BAR_TEXT.values())
_PITCH: Final = re.compile(r"(?:\^\^|\^|__|_|=)?[A-Ga-g](?:,{1,4}|'{1,4})?|z")
_LENGTH: Final = re.compile(r"(\d{1,2})?(?:/(?:2|4|8|16)?)?")
_TUPLET: Final = re.compile(r"\((?:[2-9]|[2-9]:[1-9]:[1-9])")
_LONGEST: Final = 64  # units; any pairing keeps such a note within what is read


def recovered(tokens: Iterable[str]) -> Tune:
    """The tune that tokens spell, as far as they are valid; for valid tokens the result of `detokenize`.

    The first header of each name counts; a missing one is L:1/8, M:4/4 or K:Cmaj. A length, a tie or a dotted pair's
    sign that belongs to no note is skipped, and so is the mark of a tuplet that lacks notes. Unpaired endings become
    plain bar lines. Of two adjacent lengths or signs one counts. Without a note there are no events.
    """
    headers, body = _headers(tokens)
    body = _with_whole_tuplets(_with_true_pairs(_with_own_lengths(body)))
    head = [f"{name}:{value}\n" for name, value in headers.items()]
    for attempt in (body, _without_endings(body)):
        try:
            return detokenize([*head, *attempt])
        except TuneError:
            continue
    key = parse_key(headers["K"])
    return Tune(parse_meter(headers["M"]) or Meter(4, 4), key[0] if key else Key(0, 0, "maj"), ())


def _headers(tokens: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The first valid header of each name, or its default, and the remaining tokens."""
    found: dict[str, str] = {}
    body: list[str] = []
    for text in tokens:
        name, colon, value = text.strip().partition(":")
        if not colon or name not in DEFAULTS:
            body.append(text)
        elif name not in found and _is_sound(name, value):
            found[name] = value
    return {name: found.get(name, default) for name, default in DEFAULTS.items()}, body


def _is_sound(name: str, value: str) -> bool:
    if name == "L":
        length = parse_length(value)
        return length is not None and length * WHOLE in UNITS
    return (parse_meter(value) if name == "M" else parse_key(value)) is not None


def _with_own_lengths(tokens: Sequence[str]) -> list[str]:
    """The tokens without lengths that follow no pitch, ties that follow no note, and unknown tokens."""
    out: list[str] = []
    before = ""
    for text in tokens:
        if _PITCH.fullmatch(text):
            kind = "rest" if text == "z" else "pitch"
        elif text and _LENGTH.fullmatch(text):
            length = parse_length(text)
            sound = before in ("pitch", "rest") and length is not None and length <= _LONGEST
            kind = ("sized" if before == "pitch" else "sized rest") if sound else ""
        elif text == "-":
            kind = "tied" if before in ("pitch", "sized") else ""
        else:
            kind = "other" if text in _LINES or text in ("<", ">") or _TUPLET.fullmatch(text) else ""
        if kind:
            out.append(text)
            before = kind
    return out


def _with_true_pairs(tokens: Sequence[str]) -> list[str]:
    """The tokens without a dotted pair's sign that is not between two notes."""
    out: list[str] = []
    for place, text in enumerate(tokens):
        if text in ("<", ">"):
            follows = bool(out) and out[-1] not in _LINES and out[-1][0] not in "(<>"
            goes_on = place + 1 < len(tokens) and _PITCH.fullmatch(tokens[place + 1])
            if not (follows and goes_on):
                continue
        out.append(text)
    return out


def _with_whole_tuplets(tokens: Sequence[str]) -> list[str]:
    """The tokens without the mark of a tuplet that lacks notes before the next bar line or mark."""
    out: list[str] = []
    notes = 0  # that follow before the next line or mark
    for text in reversed(tokens):
        if text in _LINES:
            notes = 0
        elif text[0] == "(":
            if notes < int(text[-1]):
                continue
            notes = 0
        elif _PITCH.fullmatch(text):
            notes += 1
        out.append(text)
    return out[::-1]


def _without_endings(tokens: Sequence[str]) -> list[str]:
    plain = {BAR_TEXT["|1"]: BAR_TEXT["|"], BAR_TEXT[":|2"]: BAR_TEXT[":|"]}
    out = [plain.get(text, text) for text in tokens]
    first = next((place for place, text in enumerate(out) if _PITCH.fullmatch(text)), len(out))
    return [text for place, text in enumerate(out) if place > first or text not in _LINES]
