"""Log-probabilities in the form of OpenAI's completions, and the texts of tokens that it needs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from gruve.client import AsyncClient
from gruve.v1 import sampling_pb2

CALLS = 64
"""Calls that are made at a time."""
DIGEST_DIGITS = 32


class TokenTexts:
    """The texts of tokens by model. A server is asked once for each token; a digest's texts never change."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._known: dict[str, dict[int, str]] = {}

    async def of(self, model: str, digest: str, tokens: Iterable[int]) -> dict[int, str]:
        """The texts of at least these tokens."""
        known = self._known.setdefault(digest, {})
        exact = f"{model.partition('@')[0]}@sha256:{digest[:DIGEST_DIGITS]}"

        async def ask(token: int) -> None:
            known[token] = await self._client.detokenize([token], model=exact)

        missing = iter(sorted(set(tokens) - known.keys()))
        while batch := list(itertools.islice(missing, CALLS)):
            await asyncio.gather(*map(ask, batch))
        return known


class LogprobsOfChoice:
    """Builds the log-probabilities of one answer, part by part, with offsets that go on."""

    def __init__(self) -> None:
        self._offset = 0

    def part(
        self, tokens: Sequence[int], entries: Sequence[sampling_pb2.TokenLogprobs], texts: dict[int, str]
    ) -> dict[str, Any]:
        """The next tokens. `top_logprobs` has the alternatives asked for and the token itself.

        Unlike OpenAI's, the first token of a prompt has a log-probability, because the start token stands before it.
        """
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(texts[token])
        return {
            "tokens": [texts[token] for token in tokens],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [_top(entry, texts[token]) for token, entry in zip(tokens, entries, strict=True)],
            "text_offset": offsets,
        }


def _top(entry: sampling_pb2.TokenLogprobs, text: str) -> dict[str, float]:
    top: dict[str, float] = {}
    for alternative in entry.alternatives:
        top.setdefault(alternative.text, alternative.logprob)  # the most probable of tokens with the same text
    top.setdefault(text, entry.logprob)
    return top
