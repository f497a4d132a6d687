"""Finds variants of one tune and splits a corpus so that they stay together.

Independent of books. The split depends only on the tunes: the same tunes give the same split everywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from gruve.tune.score import Note, Tune
from gruve.tune.tokens import join

Part = Literal["train", "validation", "test"]

RUN: Final = 8
"""Notes of the runs by which melodies are compared."""
MAX_TUNES_OF_A_RUN: Final = 40
SAME_TUNE: Final = 0.5
_TITLE_NOISE: Final = re.compile(
    r"\b(the|a|an|jig|reel|hornpipe|strathspey|clog|march|air|waltz|slip|single|double|quick|quickstep|step|setting|"
    r"\d+(st|nd|rd|th|d)?|first|second|third|version|minuet|gavotte|favou?rite|untitled|no)\b"
)
_SHORTEST_TITLE: Final = 6  # letters; what is shorter names nothing


def split_by_variant(tunes: Sequence[tuple[Tune, Sequence[str]]]) -> list[Part]:
    """The part of the split of each tune, given with its tokens; variants get the same part.

    Two tunes are variants if their titles are equal (ignoring case, articles and the kind of dance) or if at least half
    of the eight-note runs of the shorter tune are also in the other. Variants of variants are variants. The SHA-256 of
    a group's music determines its part: of 20 groups about 18 are for training, 1 for validation, 1 for testing.
    """
    groups = variant_groups([tune for tune, _ in tunes])
    least: dict[int, str] = {}
    for group, (_, tokens) in zip(groups, tunes, strict=True):
        digest = hashlib.sha256(join(tokens).encode()).hexdigest()
        least[group] = min(digest, least.get(group, digest))
    return [_part(least[group]) for group in groups]


def _part(digest: str) -> Part:
    # Hashed once more, because the least of several digests is no even draw.
    place = int(hashlib.sha256(digest.encode()).hexdigest(), 16) % 20
    return "test" if place == 19 else "validation" if place == 18 else "train"


def variant_groups(tunes: Sequence[Tune]) -> list[int]:
    """For each tune, the index of the tune that represents its group."""
    leader = list(range(len(tunes)))

    def find(one: int) -> int:
        while leader[one] != one:
            leader[one] = leader[leader[one]]
            one = leader[one]
        return one

    titles: dict[str, int] = {}
    for number, tune in enumerate(tunes):
        title = plain_title(tune.title)
        if len(title) >= _SHORTEST_TITLE:
            leader[find(number)] = find(titles.setdefault(title, number))
    for one, other in _alike([_runs(tune) for tune in tunes]):
        leader[find(one)] = find(other)
    return [find(number) for number in range(len(tunes))]


def plain_title(title: str) -> str:
    """The significant letters of a title, for comparison."""
    title = re.sub(r"[\[({][^\])}]*[\])}]", "", title.lower())
    title = re.sub(r"^([^,]*), (the|a|an)\b", r"\2 \1", title).replace("'", "")
    return re.sub(r"[^a-z0-9]", "", _TITLE_NOISE.sub("", title))


def _runs(tune: Tune) -> set[tuple[int, ...]]:
    letters = [event.pitch.letter for event in tune.events if isinstance(event, Note) and event.pitch]
    return {tuple(letters[n : n + RUN]) for n in range(len(letters) - RUN + 1)}


def _alike(runs: Sequence[set[tuple[int, ...]]]) -> Iterator[tuple[int, int]]:
    where: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, own in enumerate(runs):
        for run in own:
            where[run].append(number)
    shared: Counter[tuple[int, int]] = Counter()
    for numbers in where.values():
        # What very many have, a run up the scale, says nothing of kinship and would cost quadratic time.
        if len(numbers) <= MAX_TUNES_OF_A_RUN:
            shared.update((one, other) for n, one in enumerate(numbers) for other in numbers[n + 1 :])
    for (one, other), count in shared.items():
        if count >= SAME_TUNE * min(len(runs[one]), len(runs[other])):
            yield one, other
