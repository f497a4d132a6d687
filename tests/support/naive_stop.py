"""Stop strings by brute force, for comparison."""

from __future__ import annotations

import itertools


def naive_stop(texts, stops, min_tokens):
    """(tokens until the stop, the text before it, the stop): the one completed first, then the longest."""
    text, ends = "".join(texts), list(itertools.accumulate(map(len, texts)))
    for at in range(1, len(text) + 1):
        drawn = next(i for i, end in enumerate(ends) if end >= at) + 1
        complete = [stop for stop in stops if text[:at].endswith(stop)]
        if complete and drawn >= min_tokens:
            longest = max(complete, key=len)
            return drawn, text[: at - len(longest)], longest
    return None
