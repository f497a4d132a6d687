"""Several kinds of pointers over a vocabulary of 14 tokens, and transcripts whose tokens repeat at their distances."""

from __future__ import annotations

import dataclasses

import numpy as np

from nets import pointers_of

V = 14
POINTERS = {
    "all": pointers_of(V),
    "followers": pointers_of(V, bars=(), places=0, counts=0, matches=0, followers=(1, 3, 8)),
    "bars": pointers_of(V, bars=(1, 2, 4, 16), followers=(), matches=5, places=40, counts=9),
    "transposed": pointers_of(V, bars=(1,), followers=(2,), transposed=(1, 2, 3), matches=5),
    "transposed-alone": pointers_of(V, bars=(), followers=(), places=0, counts=0, matches=0, transposed=(1, 2)),
    "no-start": dataclasses.replace(pointers_of(V, matches=3), start_token=-1),
}


def tune(length: int, seed: int = 1) -> list[int]:
    """Tokens that repeat earlier ones at the distances of the pointers, with bar lines among them."""
    rng = np.random.default_rng(seed)
    tokens = [0]
    while len(tokens) < length:
        if len(tokens) > 40 and rng.random() < 0.3:
            at = int(rng.integers(1, len(tokens) - 20))
            tokens += [token for token in tokens[at : at + 20] if token]
        tokens += [*rng.integers(2, V - 2, 4).tolist(), V - 1 if rng.random() < 0.8 else V - 2]
    return tokens[:length]
