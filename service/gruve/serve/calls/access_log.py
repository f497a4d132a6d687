"""What is recorded of a call, and the line of the access log that says it.

No prompt, text, key or whole session id is ever in a line.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import dataclasses
import re
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from gruve.serve.callers.identity import current_identity

Metadata = Iterable[tuple[str, Any]]
LogCall = Callable[[dict[str, Any]], None]
"""Takes the fields of one line."""
SESSION_CHARACTERS = 8
"""How much of a session id is logged: enough to find lines of one session, useless to open it."""
SUMMARY_S = 1.0
"""How long calls that were refused unread are counted for one line."""
REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")


@dataclasses.dataclass(slots=True)
class CallFacts:
    """What a method reports about the call that it serves."""

    model: str = ""
    session_id: str = ""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    """Those that the generation has by the end of the call."""
    queue_s: float | None = None
    first_token_s: float | None = None
    """From the arrival of the request to its first message with tokens."""
    finish_reason: str = ""
    """The reason with which the sequence ended; empty while it runs, and if it failed."""
    admitted_s: float | None = None
    """When the engine got the sequence. These four are monotonic times, None for what has not happened."""
    slot_s: float | None = None
    """When it got its first slot."""
    decoded_s: float | None = None
    """When its first token was decoded."""
    sent_s: float | None = None
    """When the first message with tokens was ready to be sent."""
    exemplar: dict[str, str] | None = None
    """The ids of the call's trace, for histograms; None if nobody exports it."""


EndTrace = Callable[[str], None]
"""Ends the trace of a call, with the name of its status."""
TraceCall = Callable[[str, Metadata, CallFacts], EndTrace]
"""Begins the trace of a call: its method, its metadata and its facts, which may change until it ends."""
_current: contextvars.ContextVar[CallFacts] = contextvars.ContextVar("call_facts")


def begin_call() -> CallFacts:
    """New facts for the call that this task serves."""
    facts = CallFacts()
    _current.set(facts)
    return facts


def current_call() -> CallFacts:
    """The facts of the call that this task serves; outside of one, facts that nobody reads."""
    return _current.get(None) or CallFacts()


def line(method: str, code: str, facts: CallFacts, seconds: float, metadata: Metadata) -> dict[str, Any]:
    """The fields of a call's line, in their order. Times are in seconds; what a call does not have is left out."""
    identity = current_identity()
    fields = {
        "method": method,
        "code": code,
        "tenant": identity.tenant,
        "key": identity.key_name or None,
        "model": facts.model or None,
        "session": facts.session_id[:SESSION_CHARACTERS] or None,
        "prompt_tokens": facts.prompt_tokens if facts.model else None,
        "generated_tokens": facts.generated_tokens if facts.model else None,
        "queue_s": _rounded(facts.queue_s),
        "first_token_s": _rounded(facts.first_token_s),
        "duration_s": _rounded(seconds),
        "request_id": _request_id(metadata),
    }
    return {name: value for name, value in fields.items() if value is not None}


class UnreadCalls:
    """Writes one line a second for the calls of each method, code and tenant that were refused unread.

    A line for each would cost more than the refusal does.
    """

    def __init__(self, log_call: LogCall) -> None:
        self._log_call = log_call
        self._counts: collections.Counter[tuple[str, str, str]] = collections.Counter()

    def add(self, method: str, code: str, tenant: str) -> None:
        """Counts a call, on the event loop. `tenant` is "" where it is not known."""
        if not self._counts:
            asyncio.get_running_loop().call_later(SUMMARY_S, self.write)
        self._counts[method, code, tenant] += 1

    def write(self) -> None:
        """Writes the lines of what was counted since the last ones."""
        for (method, code, tenant), calls in self._counts.items():
            whose = {"tenant": tenant} if tenant else {}
            self._log_call({"method": method, "code": code, **whose, "unread": calls})
        self._counts.clear()


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _request_id(metadata: Metadata) -> str:
    """The client's `x-request-id`, if it is one that can be logged; otherwise a new id."""
    given = next((value for key, value in metadata if key == REQUEST_ID_KEY), "")
    return given if isinstance(given, str) and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
