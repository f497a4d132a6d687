"""Draws tunes as notation with verovio.

verovio is a C++ library that writes warnings to the process's standard error and may crash on unexpected input. It
therefore runs in a child process (`child.py`). Its standard error becomes the log, and a crash becomes one line of it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gruve.errors import TuneError
from gruve.tune.parse import parse_tune

_VIEW: Final = re.compile(r'viewBox="0 0 (\d+) (\d+)"')
_SVG_TAG: Final = re.compile(r"<svg\b[^>]*>")
_BACKGROUND: Final = '<rect width="100%" height="100%" fill="white"/>'
_TITLE: Final = re.compile(r"(?m)^T:.*")
_PERCENT: Final = "\U000f0025"
"""Stands for the `\\%` of a title, which verovio 6 takes for a comment."""

MAX_ABC_CHARACTERS: Final = 262_144
TUNES_PER_PROCESS: Final = 200
SECONDS_TO_START: Final = 60
SECONDS_PER_TUNE: Final = 2


@dataclass(frozen=True, slots=True)
class Drawing:
    """A tune as one tall SVG page, black on white; `log` has verovio's warnings."""

    svg: str
    log: tuple[str, ...]


def draw(abc: str) -> Drawing:
    """Draws one tune; raises TuneError if the text is not a tune or verovio cannot draw it."""
    parse_tune(abc)
    (engraving,) = _engraved([abc], svg=True)
    if not engraving.svg:
        raise TuneError("verovio could not draw the tune: " + "; ".join(engraving.log))
    return Drawing(_on_white(engraving.svg), engraving.log)


def engraving_warnings(tunes: Sequence[str]) -> list[tuple[str, ...]]:
    """The lines that verovio logs while it reads and lays out each tune in ABC; a clean tune has none."""
    return [engraving.log for engraving in _engraved(tunes, svg=False)]


@dataclass(frozen=True, slots=True)
class _Engraving:
    svg: str
    log: tuple[str, ...]


def _engraved(tunes: Sequence[str], *, svg: bool) -> list[_Engraving]:
    for abc in tunes:
        if len(abc) > MAX_ABC_CHARACTERS:
            raise TuneError(f"the ABC has {len(abc)} characters; at most {MAX_ABC_CHARACTERS} are drawn")
    engravings: list[_Engraving] = []
    while len(engravings) < len(tunes):
        some = tunes[len(engravings) : len(engravings) + TUNES_PER_PROCESS]
        engravings += _run_child([json.dumps({"abc": _marked(abc), "svg": svg}) for abc in some])
    return engravings


def _run_child(requests: list[str]) -> Iterator[_Engraving]:
    """The child's answers to the requests, up to and including the first one that crashed or hung it."""
    try:
        run = subprocess.run(
            [sys.executable, "-m", "gruve.tune.draw.child"],
            cwd=Path(__file__).parents[3],
            input="\n".join(requests).encode(),
            capture_output=True,
            check=False,
            timeout=SECONDS_TO_START + SECONDS_PER_TUNE * len(requests),
        )
        output, end = run.stdout, f"verovio ended with exit status {run.returncode}"
    except subprocess.TimeoutExpired as late:
        output, end = late.stdout or b"", f"verovio took longer than {late.timeout:.0f} s"
    lines = output.splitlines()
    for line in lines:
        answer = json.loads(line)
        none = () if answer["found"] else ("verovio found no tune",)
        yield _Engraving(_stacked(answer["pages"]).replace(_PERCENT, "%"), (*answer["log"], *none))
    if len(lines) < len(requests):
        yield _Engraving("", (end,))


def _marked(abc: str) -> str:
    return _TITLE.sub(lambda title: title[0].replace(r"\%", _PERCENT), abc)


def _on_white(svg: str) -> str:
    """The picture with a white background, because black notes on a transparent one cannot be read on a dark page.

    A style with `prefers-color-scheme` would follow the reader's system, which may differ from the page.
    """
    return _SVG_TAG.sub(lambda tag: tag[0] + _BACKGROUND, svg, count=1)


def _stacked(pages: Sequence[str]) -> str:
    """Pages stacked into one picture; verovio begins a new page when a tune is longer than its tallest page."""
    sizes = [found for page in pages if (found := _VIEW.search(page))]
    if len(pages) < 2 or len(sizes) < len(pages):
        return "".join(pages[:1])
    stack, height = [], 0
    for page, size in zip(pages, sizes, strict=True):
        stack.append(page.replace("<svg ", f'<svg y="{height}" width="{size[1]}" height="{size[2]}" ', 1))
        height += int(size[2])
    width = max(int(size[1]) for size in sizes)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">' + "".join(stack) + "</svg>"
