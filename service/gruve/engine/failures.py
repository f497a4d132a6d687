"""What is left of a failure: an incident id, under which the log has the trace, and the sequence's last progress."""

from __future__ import annotations

import uuid

from gruve.engine.sequence import Progress, Sequence


def new_incident() -> str:
    """An id to log an exception under and to give to the client, which learns no more of it."""
    return uuid.uuid4().hex[:12]


def failed_progress(sequence: Sequence, incident: str) -> Progress:
    """The last progress of a sequence that failed: its undelivered tokens and the incident, without a state."""
    output = sequence.output
    position = sequence.position + 1 - len(output.tokens)
    return Progress(sequence.id, position, output.tokens, output.forced, incident=incident)
