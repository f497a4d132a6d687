"""The tokens that a stream has brought, which its receipt must match.

Knows no socket, so both clients share it.
"""

from __future__ import annotations

import array
from collections.abc import Iterable, Sequence

import grpc

from gruve.client.errors import StreamCorrupted
from gruve.receipt.token_hash import TokenHash
from gruve.v1 import generation_pb2


class ReceivedTokens:
    """The tokens of one generation by position, over all the calls that stream it."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, array.array[int]]] = []
        """Runs of consecutive tokens: the position of the first, and the tokens."""
        self.began: int | None = None
        """The position of the first message."""

    def add(self, position: int, tokens: Iterable[int]) -> None:
        """Adds consecutive tokens, none of which is known yet."""
        if self._runs and self._runs[-1][0] + len(self._runs[-1][1]) == position:
            self._runs[-1][1].extend(tokens)
        else:
            self._runs.append((position, array.array("I", tokens)))

    def cut(self, position: int) -> None:
        """Removes the tokens from `position` on: a control has replaced them."""
        while self._runs and self._runs[-1][0] + len(self._runs[-1][1]) > position:
            begin, tokens = self._runs.pop()
            if begin < position:
                self._runs.append((begin, tokens[: position - begin]))

    def generated(self, receipt: generation_pb2.Receipt) -> Sequence[int] | None:
        """The tokens that the receipt is about, without prompts; None unless all of them were received."""
        found = [self._slice(begin, end) for begin, end in _generated_ranges(receipt)]
        return [token for tokens in found for token in tokens or ()] if None not in found else None

    def check(self, receipt: generation_pb2.Receipt) -> None:
        """Raises `StreamCorrupted` if the tokens are not those of the receipt.

        A stream that began after the first generated token cannot be checked, and is not.
        """
        ranges = _generated_ranges(receipt)
        if not ranges or self.began is None or self.began > ranges[0][0]:
            return
        rolling = TokenHash()
        for begin, end in ranges:
            tokens = self._slice(begin, end)
            if tokens is None:
                raise corrupted(f"not all tokens from {begin} to {end - 1} arrived")
            rolling.add(begin, tokens)
        if rolling.digest() != receipt.tokens_sha256:
            raise corrupted(
                f"the tokens from {receipt.start_position} to {receipt.next_position - 1} have the hash "
                f"{rolling.digest().hex()[:16]}; the receipt has {receipt.tokens_sha256.hex()[:16]}"
            )

    def _slice(self, begin: int, end: int) -> array.array[int] | None:
        for position, tokens in self._runs:
            if position <= begin and end <= position + len(tokens):
                return tokens[begin - position : end - position]
        return None


def _generated_ranges(receipt: generation_pb2.Receipt) -> list[tuple[int, int]]:
    """The (begin, end) positions of the generated tokens, between the prompts."""
    ranges, begin = [], receipt.start_position
    for change in receipt.changes:
        if change.inserted:
            ranges.append((begin, change.position))
            begin = change.position + change.inserted
    ranges.append((begin, receipt.next_position))
    return [(begin, end) for begin, end in ranges if begin < end]


def corrupted(what: str) -> StreamCorrupted:
    """The failure of a stream whose tokens are not those that were generated."""
    return StreamCorrupted(grpc.StatusCode.DATA_LOSS, f"tokens were lost, repeated or altered: {what}")
