"""`/v1/generate`: a generation as server-sent events, which the browser's `EventSource` resumes at the next token.

The id of an event is the position after its tokens. `EventSource` connects again by itself, to any gateway of the same
servers, and sends the last id; the stream goes on from there, because a generation can be repeated from its seed or is
in the record of its session. Where the gateway has drawn the seed, the id carries it behind the position.
"""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gruve.client import AsyncTokenStream, CallFailed, Cancelled, Chunk, GenerateOptions
from gruve.client.messages import Text
from gruve.gateway.errors import InvalidField
from gruve.gateway.fields import Fields, json_fields, text_or_tokens
from gruve.gateway.sampling import MAX_JSON_SEED, take_options
from gruve.gateway.sse import HEADERS, EventResponse, Events, event, event_response

LAST_EVENT_ID = "last-event-id"
END = "end"
"""The id of the last event. A browser that connects again with it is told to stop."""
EVENT_ID = re.compile(r"([0-9]{1,19})(?::([0-9]{1,20}))?")
RETRY_MS = 500
"""How many milliseconds `EventSource` waits before it connects again, unless the server asked for more."""


@dataclass(frozen=True, slots=True)
class EventsRequest:
    """What to generate, and from which position on to send it."""

    prompt: Text | None
    model: str | None
    session_id: str | None
    seed: int | None
    seed_in_ids: bool
    """Whether a client that connects again has to be told the seed."""
    options: GenerateOptions

    def event_id(self, position: int) -> str:
        """The id of an event after which `position` comes next."""
        return f"{position}:{self.seed}" if self.seed_in_ids else str(position)


async def generate(request: Request) -> Response:
    """Streams a generation, or the rest of it."""
    if request.headers.get(LAST_EVENT_ID) == END:
        return Response(status_code=204)  # what makes EventSource stop
    fields = Fields(request.query_params, from_query=True) if request.method == "GET" else await json_fields(request)
    asked = _asked(fields, request.headers.get(LAST_EVENT_ID, ""))
    stream = request.app.state.client.generate(
        asked.prompt, model=asked.model, session_id=asked.session_id, seed=asked.seed, **asked.options
    )
    try:
        return await event_response(request, _events(asked, stream), error_name="failed")
    except CallFailed as failure:
        may_help = failure.retryable or isinstance(failure, Cancelled)
        if asked.options["from_position"] is None or not may_help:
            raise
        return _come_back(failure)


def _come_back(failure: CallFailed) -> Response:
    """Has a client that connected again do so once more: `EventSource` gives up at any status but 200."""
    retry_ms = max(RETRY_MS, math.ceil(1e3 * (failure.retry_after_s or 0.0)))
    return Response(f"retry: {retry_ms}\n\n", media_type=EventResponse.media_type, headers=HEADERS)


def _asked(fields: Fields, last_event_id: str) -> EventsRequest:
    position, drawn = _resumed(last_event_id)
    session_id, generation_id = fields.string("session_id"), fields.string("generation_id")
    model, seed = fields.string("model"), fields.integer("seed")
    prompt = text_or_tokens("prompt", fields.take("prompt"), "a string, or a list of token ids in a JSON body")
    if session_id is not None and generation_id is None:
        why = "is absent; with a session it is needed, so that a client that connects again continues this generation"
        raise InvalidField("generation_id", why)
    if session_id is None and model is None:
        raise InvalidField("model", "is absent, and so is session_id; give one of the two")
    if session_id is not None and model is not None:
        raise InvalidField("model", f"is {model[:100]!r}, and session_id is given too; give one of the two")
    seed_in_ids = seed is None and session_id is None
    if seed_in_ids:
        if position is not None and drawn is None:
            raise InvalidField("seed", f"is absent, and {LAST_EVENT_ID} {last_event_id!r} does not carry it")
        seed = drawn if drawn is not None else secrets.randbelow(MAX_JSON_SEED)
    options = take_options(fields)
    options["max_tokens"] = fields.integer("max_tokens")
    options["from_position"] = position
    if generation_id is not None:
        options["generation_id"] = generation_id
    fields.refuse_rest()
    return EventsRequest(prompt, model, session_id, seed, seed_in_ids, options)


def _resumed(last_event_id: str) -> tuple[int | None, int | None]:
    """The position and the seed of an event id; None for each that it does not have."""
    if not last_event_id:
        return None, None
    found = EVENT_ID.fullmatch(last_event_id)
    if found is None:
        raise InvalidField(LAST_EVENT_ID, f"is {last_event_id[:60]!r}; must be the id of an event")
    return int(found[1]), None if found[2] is None else int(found[2])


async def _events(asked: EventsRequest, stream: AsyncTokenStream) -> Events:
    """The events: `start`, one for each message of tokens, and `end` with the last of them.

    What is known at the same time is sent together.
    """
    async with stream:
        last: Chunk | None = None
        started = False
        async for chunk in stream:
            if stream.ended:  # its text may hold what was withheld, so it is sent with the end or not at all
                last = chunk
                continue
            tokens = event(_tokens(chunk), event_id=asked.event_id(chunk.position + len(chunk.token_ids)))
            yield tokens if started else _start(stream) + tokens
            started = True
        end = event(_end(stream, last), name="end", event_id=END)
        yield end if started else _start(stream) + end


def _start(stream: AsyncTokenStream) -> str:
    """The first event of a connection."""
    start = stream.start
    about = {
        "model": start.model,
        "model_digest": start.model_digest,
        "numerics_id": start.numerics_id,
        "session_id": start.session_id or None,
        "generation_id": start.generation_id,
        "seed": start.sampling.seed,
        "start_position": start.start_position,
        "max_tokens": start.max_tokens,
    }
    return f"retry: {RETRY_MS}\n" + event(about, name="start")


def _tokens(chunk: Chunk) -> dict[str, Any]:
    return {"position": chunk.position, "token_ids": chunk.token_ids, "text": chunk.text}


def _end(stream: AsyncTokenStream, last: Chunk | None) -> dict[str, Any]:
    """The last tokens, why none follows, and the hash of all."""
    end = stream.end
    tokens = {"position": end.next_position, "token_ids": (), "text": ""} if last is None else _tokens(last)
    return {
        **tokens,
        "finish_reason": stream.finish_reason,
        "next_position": end.next_position,
        "prompt_tokens": end.usage.prompt_tokens,
        "generated_tokens": end.usage.generated_tokens,
        "tokens_sha256": end.receipt.tokens_sha256.hex() if end.HasField("receipt") else None,
    }
