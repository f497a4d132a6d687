"""The numbers that a Triton kernel is compiled for. Knows no kernels; imports no Triton.

Kernels take them as named tuples: the compiler and the interpreter both read the fields of a constant argument, and a
helper's list of arguments stays short.
"""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """The sizes of a model; the last four are 0 without pointers."""

    V: int
    H: int
    """Hidden units, padded."""
    K: int = 0
    """Pointers."""
    MATCHES: int = 0
    PLACES: int = 0
    COUNTS: int = 0
    """The rows of each table of matches, of the table of places, and of that of counts."""


class Tile(NamedTuple):
    """How a kernel divides its work.

    It is the same for every batch size, so that bits do not depend on the batch size.
    """

    rows: int
    units: int
    """The outputs of a program: hidden units, or the tokens of the head, a power of two."""
    depth: int
    """The elements of a product's inner dimension loaded at once; divides padded H."""
    warps: int
    stages: int
