"""`/v1/completions`: continues prompts, at once or as a stream, and measures them with `max_tokens` 0."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gruve.client import AsyncClient
from gruve.client.messages import Text
from gruve.gateway.errors import InvalidField
from gruve.gateway.fields import json_fields
from gruve.gateway.forms import json_response
from gruve.gateway.openai.answer import Choice, Envelope, counted, usage_of
from gruve.gateway.openai.logprobs import LogprobsOfChoice, TokenTexts
from gruve.gateway.openai.merge import merged
from gruve.gateway.openai.request import CompletionRequest, completion_request
from gruve.gateway.sse import Events, event, event_response, while_connected
from gruve.v1 import generation_pb2


async def completions(request: Request) -> Response:
    """Answers a request. A client that goes away cancels what is generated for it."""
    asked = completion_request(await json_fields(request))
    client, texts = request.app.state.client, request.app.state.texts
    if asked.max_tokens == 0:
        async with while_connected(request.receive):
            return json_response(await _measured(asked, client, texts))
    if asked.session_id is not None:
        await _check_model(asked.session_id, asked.model, client)
    choices = _begin(asked, client)
    if asked.stream:
        return await event_response(request, _events(asked, choices, texts))
    async with while_connected(request.receive):
        return json_response(await _whole(asked, choices, texts))


async def _check_model(session_id: str, model: str, client: AsyncClient) -> None:
    """Refuses a model that is not the session's, before anything is generated. Raises `InvalidField`.

    A server takes no model with a session, so it could not refuse it.
    """
    kept = (await client.get_session(session_id, transcript=False)).session
    if model == kept.model:
        return
    named = await client.get_model(model)
    if (named.name, named.digest) != (kept.model, kept.model_digest):
        raise InvalidField("model", f"is {model[:100]!r}; the session is one of {kept.model!r}")


def _begin(asked: CompletionRequest, client: AsyncClient) -> list[Choice]:
    """The generations, which are sent when they are first read."""
    found: list[Choice] = []
    for number, prompt in enumerate(asked.prompts):
        for answer in range(asked.n):
            logprobs = None if asked.logprobs is None else LogprobsOfChoice()
            found.append(Choice(len(found), number, _generate(asked, client, prompt, answer), logprobs))
    return found


def _generate(asked: CompletionRequest, client: AsyncClient, prompt: Text | None, answer: int) -> Any:
    options = {**asked.options, "max_tokens": asked.max_tokens, "echo": asked.echo, "logprobs": asked.logprobs}
    if asked.generation_id is not None:
        options["generation_id"] = asked.generation_id
    return client.generate(
        prompt,
        model=None if asked.session_id is not None else asked.model,
        session_id=asked.session_id,
        new_session=asked.new_session,
        seed=asked.seed_of(answer),
        **options,  # type: ignore[arg-type] # a TypedDict with three of its fields replaced
    )


async def _events(asked: CompletionRequest, choices: list[Choice], texts: TokenTexts) -> Events:
    """The events of a stream: parts, the end of each choice, the usage if it is wanted, and OpenAI's last line.

    What is known at the same time is sent together.
    """
    envelope, running = Envelope(asked.model), len(choices)
    last = ""
    async with contextlib.aclosing(merged(choices)) as chunks:
        async for choice, chunk in chunks:
            _identify(envelope, choice)
            parts = "".join([event(envelope.around([part])) for part in await choice.parts(chunk, texts)])
            running -= choice.stream.ended
            if running:
                yield parts
            else:
                last = parts
    if asked.include_usage:
        last += event(envelope.around([], usage_of(choices)))
    yield last + "data: [DONE]\n\n"


async def _whole(asked: CompletionRequest, choices: list[Choice], texts: TokenTexts) -> dict[str, Any]:
    """The answer in one object: the parts of a stream, joined."""
    envelope = Envelope(asked.model)
    parts: list[list[dict[str, Any]]] = [[] for _ in choices]
    async with contextlib.aclosing(merged(choices)) as chunks:
        async for choice, chunk in chunks:
            _identify(envelope, choice)
            parts[choice.index] += await choice.parts(chunk, texts)
    return envelope.around([_joined(of_one) for of_one in parts], usage_of(choices))


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One choice from its parts, of which the last one is its end."""
    logprobs: dict[str, list[Any]] | None = None
    for part in (part["logprobs"] for part in parts if part["logprobs"] is not None):
        if logprobs is None:
            logprobs = {name: [] for name in part}
        for name, values in part.items():
            logprobs[name] += values
    return {**parts[-1], "text": "".join(part["text"] for part in parts), "logprobs": logprobs}


def _identify(envelope: Envelope, choice: Choice) -> None:
    if envelope.fingerprint is None and choice.stream.started:
        envelope.identify(choice.stream.start.model_digest, choice.stream.start.numerics_id)


async def _measured(asked: CompletionRequest, client: AsyncClient, texts: TokenTexts) -> dict[str, Any]:
    """The prompts with the probabilities of their tokens."""
    envelope = Envelope(asked.model)
    scored = await asyncio.gather(
        *(client.score(prompt or "", model=asked.model, logprobs=asked.logprobs or 0) for prompt in asked.prompts)
    )
    envelope.identify(scored[0].model_digest, scored[0].numerics_id)
    choices = [
        await _measured_choice(index, asked, prompt or "", score, texts)
        for index, (prompt, score) in enumerate(zip(asked.prompts, scored, strict=True))
    ]
    return envelope.around(choices, counted(sum(score.token_count for score in scored), 0))


async def _measured_choice(
    index: int, asked: CompletionRequest, prompt: Text, score: generation_pb2.ScoreResponse, texts: TokenTexts
) -> dict[str, Any]:
    known = await texts.of(asked.model, score.model_digest, score.token_ids)
    logprobs = None if asked.logprobs is None else LogprobsOfChoice().part(score.token_ids, score.logprobs, known)
    text = prompt if isinstance(prompt, str) else "".join(known[token] for token in score.token_ids)
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": "length",
        "gruve": {"nats": score.nats},
    }
