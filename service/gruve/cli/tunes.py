"""Writes a generated tune to files: as ABC notation, drawn, or to play."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.terminal import Failure
from gruve.errors import TuneError, UnknownCharacter

if TYPE_CHECKING:
    from gruve.tune.score import Tune

KINDS = (".abc", ".svg", ".mid")


def write_tune_files(
    text: str, paths: Sequence[Path], note: Callable[[str], None], *, key: str | None = None, title: str = ""
) -> None:
    """Writes a tune to each path in the form that its ending names; raises `Failure` if the text is no tune.

    A tune that breaks the rules of notation, as a model's may, is read as far as it makes sense. `note` gets a line
    about that, and one for each file.
    """
    from gruve.tune.draw import draw
    from gruve.tune.write import write_tune

    abc = write_tune(_transposed(_tune(text, note), key), title=title)
    drawing = draw(abc) if any(path.suffix != ".abc" for path in paths) else None
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if drawing is None or path.suffix == ".abc":
            path.write_text(abc, encoding="utf-8")
        elif path.suffix == ".svg":
            path.write_text(drawing.svg, encoding="utf-8")
        else:
            path.write_bytes(drawing.midi)
        note(f"wrote {path}")


def _tune(text: str, note: Callable[[str], None]) -> Tune:
    from gruve.tune.parse import parse_tune
    from gruve.tune.recover import recovered
    from gruve.tune.tokens import split

    try:
        return parse_tune(f"X:1\n{text.rstrip()}\n")
    except TuneError as error:
        wrong = error
    try:
        tune = recovered(split(text))
    except UnknownCharacter:
        tune = None
    if tune is None or not tune.events:
        raise Failure(f"no file was written, the text is no tune in ABC notation: {wrong}")
    note(f"the notation was repaired: {wrong}")
    return tune


def _transposed(tune: Tune, key: str | None) -> Tune:
    from gruve.tune.keys import parse_key
    from gruve.tune.transpose import to_key

    if not key:
        return tune
    found = parse_key(key)
    if found is None:
        raise Failure(f"--key is {key!r}; must be a key such as G, Bb or F#", exit_code=2)
    return to_key(tune, found[0])
