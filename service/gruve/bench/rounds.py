"""The order of the alternatives in the rounds of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def in_turn(alternatives: Iterable[T], i: int) -> list[T]:
    """The alternatives in the order of round `i`, from 0. Each of them begins a round as often as the others."""
    order = list(alternatives)
    first = i % max(1, len(order))
    return order[first:] + order[:first]
