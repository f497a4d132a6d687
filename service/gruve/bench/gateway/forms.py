"""The forms of a request and of its answer over HTTP: Connect, OpenAI's completions, and server-sent events."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gruve.bench.load.transport import GENERATE, HttpTransport, Request, generate_request
from gruve.v1 import generation_pb2

END_OF_STREAM = 2
"""The flag of Connect's last envelope, which has the status of the call."""
HEAD_BYTES = 5
"""Connect's envelope: one byte of flags, four of length, and the message."""


def connect_form(port: int) -> functools.partial[HttpTransport]:
    """Connect with binary messages: those of gRPC, each in an envelope."""
    return _transport(port, GENERATE, connect_body, connect_tokens, "application/connect+proto")


def openai_form(port: int, ids: Mapping[str, int], **fields: int) -> functools.partial[HttpTransport]:
    """OpenAI's completions as a stream. They have no token ids, so `ids` maps the text of each token to its id."""
    body = functools.partial(openai_body, fields)
    return _transport(port, "/v1/completions", body, functools.partial(openai_tokens, ids))


def events_form(port: int) -> functools.partial[HttpTransport]:
    """Server-sent events."""
    return _transport(port, "/v1/generate", events_body, events_tokens)


def _transport(
    port: int,
    path: str,
    body: Callable[[Request], bytes],
    tokens: Callable[[bytes], tuple[int, ...]],
    content_type: str = "application/json",
) -> functools.partial[HttpTransport]:
    """A factory of transports, which can be pickled."""
    return functools.partial(HttpTransport, "127.0.0.1", port, path, body, tokens, content_type)


def connect_body(request: Request) -> bytes:
    """One envelope."""
    message = generate_request(request)
    return b"\0" + len(message).to_bytes(4, "big") + message


def connect_tokens(chunk: bytes) -> tuple[int, ...]:
    """The tokens of the envelopes of a chunk."""
    found: list[int] = []
    while chunk:
        flags, end = chunk[0], HEAD_BYTES + int.from_bytes(chunk[1:HEAD_BYTES], "big")
        if not flags & END_OF_STREAM:
            found += generation_pb2.GenerateResponse.FromString(chunk[HEAD_BYTES:end]).token_ids
        chunk = chunk[end:]
    return tuple(found)


def openai_body(fields: Mapping[str, int], request: Request) -> bytes:
    """A request of a stream, with more fields."""
    return json.dumps({**_fields(request), **fields, "stream": True}).encode()


def openai_tokens(ids: Mapping[str, int], chunk: bytes) -> tuple[int, ...]:
    """The tokens of the characters in the events of a chunk."""
    choices = (choice for event in _events(chunk) for choice in event["choices"])
    return tuple(ids[character] for choice in choices for character in choice["text"])


def events_body(request: Request) -> bytes:
    """A request of events."""
    return json.dumps(_fields(request)).encode()


def events_tokens(chunk: bytes) -> tuple[int, ...]:
    """The tokens of the events of a chunk."""
    return tuple(token for event in _events(chunk) for token in event.get("token_ids", ()))


def _fields(request: Request) -> dict[str, Any]:
    return {
        "model": request.model,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": 1.0,
        "seed": request.seed,
    }


def _events(chunk: bytes) -> Iterator[dict[str, Any]]:
    """The data of the events, without OpenAI's last line."""
    for line in chunk.split(b"\n"):
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))
