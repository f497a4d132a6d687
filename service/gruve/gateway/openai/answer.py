"""The objects of an answer to `/v1/completions`: choices, usage and identification."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gruve.client import AsyncTokenStream, Chunk
from gruve.gateway.openai.logprobs import LogprobsOfChoice, TokenTexts


@dataclass(slots=True)
class Choice:
    """One answer to one prompt, while it is generated."""

    index: int
    prompt: int
    """The number of the prompt, from 0."""
    stream: AsyncTokenStream
    logprobs: LogprobsOfChoice | None = None

    async def parts(self, chunk: Chunk | None, texts: TokenTexts) -> list[dict[str, Any]]:
        """The choice objects that a chunk adds: its text if there is one, and the end if it is the last."""
        found = [] if chunk is None else [await self._part(chunk, texts)]
        return [*found, self._end()] if self.stream.ended else found

    async def _part(self, chunk: Chunk, texts: TokenTexts) -> dict[str, Any]:
        logprobs = None
        if self.logprobs is not None:
            start = self.stream.start
            known = await texts.of(start.model, start.model_digest, chunk.token_ids)
            logprobs = self.logprobs.part(chunk.token_ids, chunk.logprobs, known)
        return self._object(chunk.text, logprobs, None)

    def _end(self) -> dict[str, Any]:
        """The last choice object: the finish reason, and in `gruve` what a client needs to repeat or continue."""
        start, end = self.stream.start, self.stream.end
        reason = self.stream.finish_reason
        found = self._object("", None, "length" if reason == "length" else "stop")  # OpenAI has no other words
        found["gruve"] = {
            "finish_reason": reason,
            "seed": start.sampling.seed,
            "generation_id": start.generation_id,
            "session_id": start.session_id or None,
            "next_position": end.next_position,
            "tokens_sha256": end.receipt.tokens_sha256.hex() if end.HasField("receipt") else None,
        }
        return found

    def _object(self, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


@dataclass(slots=True)
class Envelope:
    """The fields that all objects of one answer share."""

    model: str
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    fingerprint: str | None = None

    def identify(self, digest: str, numerics_id: str) -> None:
        """Sets the fingerprint from the model's digest and its numerics."""
        self.fingerprint = f"{digest[:16]}-{numerics_id}"

    def around(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        """An object with these choices."""
        found = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        return found if usage is None else {**found, "usage": usage}


def usage_of(choices: Iterable[Choice]) -> dict[str, int]:
    """The tokens of all answers; a prompt with several answers counts once."""
    prompts: dict[int, int] = {}
    completion = 0
    for choice in choices:
        if choice.stream.ended:
            prompts[choice.prompt] = choice.stream.end.usage.prompt_tokens
            completion += choice.stream.end.usage.generated_tokens
    return counted(sum(prompts.values()), completion)


def counted(prompt: int, completion: int) -> dict[str, int]:
    """Usage in OpenAI's form."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
