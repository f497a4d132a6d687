"""Words a stream in a line: for the note at its end, for the one after Ctrl-C, and for a title."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gruve.client import TokenStream
    from gruve.v1.generation_pb2 import GenerationStart


def summary(stream: TokenStream, seconds: float) -> str:
    """A stream that has ended, in a line."""
    if not stream.ended:
        return "nothing was generated"
    start = stream.start
    counted = f"{stream.end.usage.generated_tokens} tokens in {took(seconds)}"
    return " · ".join([*_what(start), counted, stream.finish_reason, *_session(start)])


def took(seconds: float) -> str:
    """A duration: `27 ms`, `1.5 s`."""
    return f"{seconds * 1e3:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def cancelled(stream: TokenStream) -> str:
    """A stream that Ctrl-C ended, in a line: with its seed and its session if the server had begun it."""
    begun = [*_what(stream.start), *_session(stream.start)] if stream.started else []
    return " · ".join(["cancelled", *begun])


def default_title(stream: TokenStream) -> str:
    """The title of a tune that has none."""
    return f"{stream.start.model}, seed {stream.start.sampling.seed}" if stream.started else ""


def _what(start: GenerationStart) -> Iterator[str]:
    yield start.model
    yield f"seed {start.sampling.seed}"
    if start.sampling.HasField("temperature") and start.sampling.temperature != 1:
        yield f"temperature {start.sampling.temperature:g}"


def _session(start: GenerationStart) -> list[str]:
    return [f"session {start.session_id}"] if start.session_id else []
