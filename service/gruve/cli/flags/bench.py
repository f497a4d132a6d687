"""The types of `gruve bench`'s arguments. Each refuses a malformed value with the form it expects."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gruve.bench.synthetic import Size

PICTURES = ".svg, .png or .pdf"
MAX_LAYERS, MIN_HIDDEN, MAX_HIDDEN = 4, 8, 4_096
"""The bounds of the model format."""


def picture(text: str) -> Path:
    """The path of a plot."""
    path = Path(text)
    if path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise argparse.ArgumentTypeError(f"its name must end in {PICTURES}")
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            "it is a folder" if path.is_dir() else f"there is no folder {str(path.parent)!r}"
        )
    return path


def words(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    found = tuple(word.strip() for word in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError("must be names with commas between, such as native,torch")
    return found


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 with commas between."""
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError("must be whole numbers from 1 with commas between, such as 1,8,64")
    return found


def size(text: str) -> Size:
    """A model's size."""
    from gruve.bench.synthetic import Size

    layers, _, hidden = text.strip().partition("x")
    if not (layers.isdecimal() and hidden.isdecimal()):
        raise argparse.ArgumentTypeError("must be LAYERSxHIDDEN, such as 2x512")
    if not (1 <= int(layers) <= MAX_LAYERS and MIN_HIDDEN <= int(hidden) <= MAX_HIDDEN):
        raise argparse.ArgumentTypeError(f"must have 1 to {MAX_LAYERS} layers of {MIN_HIDDEN} to {MAX_HIDDEN} units")
    return Size(int(layers), int(hidden))


def sizes(text: str) -> tuple[Size, ...]:
    """Sizes of models with commas between."""
    try:
        return tuple(size(word) for word in text.split(","))
    except argparse.ArgumentTypeError as error:
        wanted = str(error).replace(
            "must be LAYERSxHIDDEN, such as 2x512", "must be LAYERSxHIDDEN, with commas between, such as 2x512,2x1024"
        )
        raise argparse.ArgumentTypeError(wanted) from None
