"""Reads any ABC text as the beginning of a tune: its tokens transposed to C, and how to transpose back."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from gruve.errors import UnknownCharacter
from gruve.tune.keys import parse_key
from gruve.tune.lexer import with_line_feeds
from gruve.tune.parse import COMMON_MODE, parse_any_tune
from gruve.tune.raw import Finding, Findings
from gruve.tune.score import WHOLE, Key, Note, Tempo, Tune
from gruve.tune.tempo import rhythm_meter
from gruve.tune.tokens import split, tokenize
from gruve.tune.transpose import moved_by, root_c_interval, to_key

_FIELD: Final = re.compile(r"(?:^|\[)([LMK]):[ \t]*([^\]\n%]*)", re.MULTILINE)
_TUNE: Final = re.compile(r"(?<=\n)(?=X:)")
"""Where a tune begins after another one."""
_HEADER: Final = re.compile(r"[A-Za-z]:")
_FINAL: Final = re.compile(r"\|\]\s*$")


@dataclass(frozen=True, slots=True)
class Beginning:
    """A beginning that a model can read, and what the finished tune keeps from it.

    `key` is the beginning's key, or None if it names none. `back` is the interval from C back to that key, in staff
    steps and semitones. It is None if the beginning has no note; the octave is then free.
    """

    text: str
    key: Key | None = None
    back: tuple[int, int] | None = None
    title: str = ""
    rhythm: str = ""
    tempo: Tempo | None = None
    findings: tuple[Finding, ...] = ()

    def finish(self, tune: Tune) -> Tune:
        """Transpose a tune generated on C to the beginning's key and octave, and add its title, rhythm and tempo."""
        tune = replace(tune, title=self.title, rhythm=self.rhythm, tempo=self.tempo)
        if self.key is None:
            return tune
        key = replace(self.key, mode=tune.key.mode)
        return to_key(tune, key) if self.back is None else moved_by(tune, key, *self.back)


def read_beginning(text: str) -> Beginning:
    """Reads a tune or a part of one, in any key, with any headers in any order.

    Text in a model's own form is used unchanged: L:, M: and K: in this order, or the first of them, on C. A missing
    `L:` is derived from the meter, a missing `M:` from `R:`. Music without a meter is read as 4/4, without a key as C
    major. A text of headers alone is cut before the first missing header. Of several tunes the first is read. Raises
    TuneError if the meter changes.
    """
    text = with_line_feeds(text.removeprefix("\ufeff"))
    if _is_model_text(text):
        return Beginning(text, key=_key(text), back=(0, 0))
    found = Findings()
    tunes = _TUNE.split(text)
    if len(tunes) > 1:
        found.warn(0, 0, f"{len(tunes)} tunes; only the first is read")
        text = tunes[0]
    read = parse_any_tune(_FINAL.sub("||", text), found, open_end=True).tune
    given = {name: value.strip() for name, value in reversed(_FIELD.findall(text))}
    has_music = any(isinstance(event, Note) for event in read.events)
    meter = None if read.free_meter or "M" not in given else read.meter
    if meter is None:
        meter = rhythm_meter(read.rhythm)
        read = replace(read, meter=meter or read.meter, free_meter=False)
        if has_music and meter is None:
            found.warn(0, 0, "no meter; it is taken for 4/4")
    key = _key(text)
    take_over = Beginning("", key, None, read.title, read.rhythm, read.tempo, tuple(found.all()))
    if not has_music:
        return replace(take_over, text=_headers(read, meter is not None, key, given))
    steps, semitones = root_c_interval(read)
    on_c = moved_by(read, Key(0, 0, read.key.mode), steps, semitones)
    return replace(take_over, text="".join(tokenize(on_c)), key=read.key, back=(-steps, -semitones))


def _is_model_text(text: str) -> bool:
    """Whether a text already has the form of a model's own text: headers first, on C."""
    try:
        tokens = split(text)
    except UnknownCharacter:
        return False
    names = [token[0] for token in tokens if _HEADER.match(token)]
    in_front = [token[0] for token in tokens[: len(names)]]
    return (
        bool(names)
        and names == in_front == ["L", "M", "K"][: len(names)]
        and (len(names) == 3 or len(names) == len(tokens))
        and all(token.startswith("K:C") and token[3:4] not in "#b" for token in tokens[2:3])
    )


def _key(text: str) -> Key | None:
    """The key that the first `K:` names, in its common mode."""
    fields = [value for name, value in _FIELD.findall(text) if name == "K"]
    parsed = parse_key(fields[0]) if fields else None
    return replace(parsed[0], mode=COMMON_MODE.get(parsed[0].mode, parsed[0].mode)) if parsed else None


def _headers(tune: Tune, has_meter: bool, key: Key | None, given: dict[str, str]) -> str:
    """The header tokens up to the first header that is missing."""
    unit = given.get("L", "")
    if unit not in ("1/8", "1/16"):
        unit = ("1/16" if tune.meter.ticks * 4 < WHOLE * 3 else "1/8") if has_meter else ""
    if not unit:
        return ""
    meter = f"M:{tune.meter.beats}/{tune.meter.unit}\n" if has_meter else ""
    mode = f"K:C{key.mode}\n" if has_meter and key else ""
    return f"L:{unit}\n{meter}{mode}"
