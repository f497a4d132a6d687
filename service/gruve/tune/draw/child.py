"""The child process that runs verovio: one request per line on standard input, one answer per line on standard output.

Both are JSON. A request is {"abc", "svg"}; `svg` says whether pages are wanted. An answer is {"found", "pages", "log"},
with one SVG for each page.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from typing import IO, Any, Final
from xml.etree import ElementTree

import verovio

# verovio 6 reads repeats in ABC and passes over first and second endings, which it knows in MEI. So each is marked by a
# chord symbol, which comes out in the MEI where the ending begins.
_ENDING: Final = re.compile(r"(\|)[ \[]?([12])(?=[ \"(\[A-Ga-gz^_=])")
# Header fields that verovio 6 draws nothing of and warns about.
_NOT_DRAWN: Final = ("R:", "N:", "Q:")
_MARK: Final = "ending "
_MEI: Final = "http://www.music-encoding.org/ns/mei"
_LINES_THAT_END: Final = frozenset({"rptend", "rptboth", "dbl", "end"})
_PAGE: Final = {
    "adjustPageHeight": True, "pageHeight": 60_000, "pageWidth": 2_100, "breaks": "line",
    "footer": "none", "header": "auto", "svgViewBox": True,
}  # fmt: skip


def answer(toolkit: Any, request: dict[str, Any], log: IO[bytes]) -> dict[str, Any]:
    """verovio's answer for one tune; `log` is the file that standard error is written to."""
    log.truncate(0)
    log.seek(0)
    pages: list[str] = []
    found = load(toolkit, request["abc"])
    if found:
        numbers = range(1, toolkit.getPageCount() + 1)  # asked for in any case: this is what lays the tune out
        pages = [toolkit.renderToSVG(number) for number in numbers] if request["svg"] else []
    log.seek(0)
    said = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    return {"found": found, "pages": pages, "log": [line for line in said if line]}


def load(toolkit: Any, abc: str) -> bool:
    """Loads ABC with its endings; returns False if there is no tune."""
    toolkit.setOptions({"inputFrom": "abc", "xmlIdSeed": 1})  # the same tune is the same file
    head, key, music = abc.partition("\nK:")
    head = "\n".join(line for line in head.split("\n") if not line.startswith(_NOT_DRAWN))
    marked = _ENDING.sub(rf'\1 "{_MARK}\2"', music)
    if not toolkit.loadData(head + key + marked):
        return False
    if marked == music:
        return True
    mei = with_endings(toolkit.getMEI())
    toolkit.setOptions({"inputFrom": "mei"})
    return bool(toolkit.loadData(mei))


def with_endings(mei: str) -> str:
    """The MEI with the measures of each marked ending wrapped in an ending element, and the marks removed."""
    ElementTree.register_namespace("", _MEI)
    root = ElementTree.fromstring(mei)  # noqa: S314 - verovio's own output
    for section in root.iter(f"{{{_MEI}}}section"):
        ending: ElementTree.Element | None = None
        for child in list(section):
            number = _unmarked(child)
            if number or child.get("left") == "rptstart":
                ending = None
            if number:
                ending = ElementTree.Element(f"{{{_MEI}}}ending", n=number)
                section.insert(list(section).index(child), ending)
            if ending is not None:
                section.remove(child)
                ending.append(child)
                ending = None if child.get("right") in _LINES_THAT_END else ending
    return ElementTree.tostring(root, encoding="unicode")


def _unmarked(measure: ElementTree.Element) -> str:
    """The number of the ending that a measure is marked to begin, or an empty text; removes the mark."""
    for harm in measure.findall(f"{{{_MEI}}}harm"):
        if harm.text and harm.text.startswith(_MARK):
            measure.remove(harm)
            return harm.text.removeprefix(_MARK)
    return ""


def serve() -> None:
    """Answer requests until standard input ends."""
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        toolkit = verovio.toolkit()
        toolkit.setOptions(_PAGE)
        for line in sys.stdin:
            sys.stdout.write(json.dumps(answer(toolkit, json.loads(line), log)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    serve()
