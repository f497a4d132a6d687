"""Sizes in bytes, as flags take them."""

from __future__ import annotations

import argparse
import re

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
"""The units of sizes, in bytes."""
MAX_BODY = 1 << 30
"""The maximum of --max-body."""


def size(text: str) -> int:
    """The bytes of a size with its unit: `500MiB`, `1.5GiB`."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(KiB|MiB|GiB|TiB)", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError("must be a size above 0 in KiB, MiB, GiB or TiB, such as 500MiB or 2GiB")
    return int(float(found[1]) * UNITS[found[2]])


def size_or_zero(text: str) -> int:
    """The bytes of a size with its unit, or of `0`."""
    return 0 if text == "0" else size(text)


def body_size(text: str) -> int:
    """The bytes of the largest body that is read: a size with its unit, or a number of bytes."""
    try:
        found = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else size(text)
    except argparse.ArgumentTypeError:
        found = 0
    if not 1 <= found <= MAX_BODY:
        raise argparse.ArgumentTypeError("must be 1 to 1GiB, in bytes or with a unit, such as 65536 or 4MiB")
    return found
