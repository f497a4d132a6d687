"""Completes the first and last bars of a tune's parts by adding or shortening rests."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal

from gruve.tune.bars import play_order, segments
from gruve.tune.score import Bar, Event, Note, Tuplet

_MAX_TRIALS: Final = 32
Edge = tuple[Literal["start", "end"], int]
"""One end of a segment, which may gain or lose a rest."""


def completed(events: tuple[Event, ...], bar: int) -> tuple[Event, ...]:
    """The events with rests added or shortened at the edges of parts, so that each end fits every start after it.

    An end and the start that follows it must fill a bar: rest(end) + rest(start) = the length that the two lack. Edges
    that follow one another form chains, each with one unknown; the solution with the fewest rests is taken. An existing
    rest may be shortened, a note never. The last bar is filled so that it completes the pick-up. Events that cannot be
    completed in this way are returned unchanged.
    """
    parts = segments(events)
    order = play_order(parts)
    gaps: dict[tuple[int, int], int] = {}
    for place, (end, start) in enumerate(pairwise(order)):
        own, inner = parts[end].ticks, parts[start].ticks
        if parts[end].after == "|" or (place == 0 and own < bar == inner):
            continue
        if parts[end].after == "|1" and own == bar and parts[start].after != "|":
            continue  # an ending of one bar: it begins in time, and its own end is dealt with as an end
        if inner > bar or own > bar or (inner < bar and parts[start].after != "|"):
            return events
        gaps[end, start] = bar - own - (inner if inner < bar else 0)
    rests = _solved(gaps, _rests_at_edges(events))
    if rests is None or not order:
        return events
    last = order[-1]
    if parts[last].ticks < bar and not any(end == last for end, _ in gaps):
        pickups = {parts[start].ticks + rests.get(("start", start), 0) for _, start in gaps} | {parts[order[0]].ticks}
        if bar - parts[last].ticks not in pickups:
            rests["end", last] = bar - parts[last].ticks
    return _with_rests(events, bar, rests)


def _rests_at_edges(events: tuple[Event, ...]) -> dict[Edge, int]:
    """The ticks of the rests at the start and end of each segment."""
    edges: dict[Edge, int] = {}
    for number, inside in enumerate(_insides(events)):
        # In a tuplet, or alone, a rest is left as it is.
        if len(inside) > 1 and not any(isinstance(event, Tuplet) for event in inside):
            first, last = inside[0], inside[-1]
            if isinstance(first, Note) and first.pitch is None:
                edges["start", number] = first.ticks
            if isinstance(last, Note) and last.pitch is None:
                edges["end", number] = last.ticks
    return edges


def _insides(events: tuple[Event, ...]) -> list[list[Event]]:
    """The events of each segment, numbered as `segments` does."""
    insides: list[list[Event]] = [[]]
    for place, event in enumerate(events):
        if not isinstance(event, Bar):
            insides[-1].append(event)
        elif place:
            insides.append([])
    return insides


@dataclass(frozen=True, slots=True)
class _Term:
    """The length of a rest in a chain: `sign` times the unknown, plus `constant`."""

    sign: int
    constant: int


def _solved(gaps: Mapping[tuple[int, int], int], edges: Mapping[Edge, int]) -> dict[Edge, int] | None:
    """The change of each rest in ticks (negative: shortened) that fills every bar, or None if there is no solution."""
    near: dict[Edge, list[tuple[Edge, int]]] = defaultdict(list)
    for (end, start), gap in gaps.items():
        near["end", end].append((("start", start), gap))
        near["start", start].append((("end", end), gap))
    found: dict[Edge, int] = {}
    for root in near:
        if root in found:
            continue
        chain = _chain(root, near)
        rests = _fewest(chain, edges) if chain is not None else None
        if rests is None:
            return None
        found.update(rests)
    return found


def _chain(root: Edge, near: Mapping[Edge, list[tuple[Edge, int]]]) -> dict[Edge, _Term] | None:
    """Every edge that depends on the root's rest, or None if they contradict each other."""
    chain = {root: _Term(1, 0)}
    todo = [root]
    while todo:
        edge = todo.pop()
        for other, gap in near[edge]:
            term = _Term(-chain[edge].sign, gap - chain[edge].constant)
            if other not in chain:
                chain[other] = term
                todo.append(other)
            elif chain[other] != term:
                return None
    return chain


def _fewest(chain: Mapping[Edge, _Term], edges: Mapping[Edge, int]) -> dict[Edge, int] | None:
    """The solution of a chain with the fewest and shortest rests, or None if every solution would shorten a note."""
    best: tuple[tuple[int, int], dict[Edge, int]] | None = None
    zeros = Counter(-term.sign * term.constant for term in chain.values())
    for unknown, _ in zeros.most_common(_MAX_TRIALS):
        rests = {edge: term.sign * unknown + term.constant for edge, term in chain.items()}
        if all(rest >= -edges.get(edge, 0) for edge, rest in rests.items()):
            cost = (sum(rest != 0 for rest in rests.values()), sum(map(abs, rests.values())))
            if best is None or cost < best[0]:
                best = (cost, rests)
    return best[1] if best else None


def _with_rests(events: tuple[Event, ...], bar: int, rests: Mapping[Edge, int]) -> tuple[Event, ...]:
    """The events with the rests at the edges of segments lengthened or shortened."""
    parts = segments(events)
    out: list[Event] = []
    insides = iter(enumerate(_insides(events)))
    lines = [event for event in events if isinstance(event, Bar)]
    if events and isinstance(events[0], Bar):
        out.append(lines.pop(0))
    for number, inside in insides:
        ticks = parts[number].ticks if number < len(parts) else 0
        out += _changed(inside, ticks == bar, rests.get(("start", number), 0), rests.get(("end", number), 0))
        out += lines[number : number + 1]
    return tuple(out)


def _changed(inside: list[Event], full: bool, at_start: int, at_end: int) -> list[Event]:
    changed = list(inside)
    if at_start > 0:
        changed[:0] = [Note(None, at_start), Bar("|")] if full else [Note(None, at_start)]
    elif at_start < 0:
        changed[:1] = _shortened(changed[0], at_start)
    if at_end > 0:
        changed.append(Note(None, at_end))
    elif at_end < 0:
        changed[-1:] = _shortened(changed[-1], at_end)
    return changed


def _shortened(rest: Event, by: int) -> list[Event]:
    return [replace(rest, ticks=rest.ticks + by)] if isinstance(rest, Note) and rest.ticks + by > 0 else []
