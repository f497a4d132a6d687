"""The rolling hash of a receipt: SHA-256 over (position, token)."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Callable, Sequence

ENTRY = struct.Struct("<QI")
"""One entry: the position in 8 bytes and the token in 4, both little-endian."""
HASH_AT_ONCE = 4_096
"""How many entries are encoded at once, which bounds the memory."""
Encode = Callable[[int, Sequence[int]], bytes]
"""From the position of the first of consecutive tokens, and the tokens, to their entries."""


def encode_entries(position: int, tokens: Sequence[int]) -> bytes:
    """The entries of consecutive tokens from `position` on, as they are hashed."""
    return b"".join(map(ENTRY.pack, itertools.count(position), tokens))


class TokenHash:
    """The rolling SHA-256 over (position, token) of a part of a transcript."""

    def __init__(self, encode: Encode = encode_entries) -> None:
        """`encode` replaces the plain `encode_entries` where a faster one is at hand."""
        self.position = 0
        """The position after the last token."""
        self._encode = encode
        self._sha256 = hashlib.sha256()

    def add(self, position: int, tokens: Sequence[int]) -> None:
        """Adds consecutive tokens from `position` on."""
        for at in range(0, len(tokens), HASH_AT_ONCE):
            self._sha256.update(self._encode(position + at, tokens[at : at + HASH_AT_ONCE]))
        self.position = position + len(tokens)

    def copy(self) -> TokenHash:
        """A hash of the same tokens, to which others can be added."""
        copied = TokenHash(self._encode)
        copied.position, copied._sha256 = self.position, self._sha256.copy()
        return copied

    def digest(self) -> bytes:
        """The hash of what was added: 32 bytes."""
        return self._sha256.digest()
