"""The controls of a conversation: those that have arrived, those that wait for their positions, and their answers.

Knows where controls may take effect; nothing of what they do.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Callable

from gruve.errors import (
    GenerationUnknown,
    GruveError,
    InvalidField,
    LimitExceeded,
    PositionMismatch,
    TranscriptFull,
)
from gruve.serve.calls.status import shorten
from gruve.serve.validation_converse import Control
from gruve.v1 import generation_pb2, sampling_pb2

MAX_UNANSWERED = 64
"""Controls that are read before their answers are sent."""
MAX_WAITING = 1_024
"""Controls that may wait for their positions."""


class ControlQueue:
    """The controls of one conversation."""

    def __init__(self, max_transcript: int, on_answer: Callable[[], None]) -> None:
        """`on_answer` is called after each answer that is to be sent."""
        self.arrived: deque[Control] = deque()
        """Controls that were read and have no position yet."""
        self.answers: deque[generation_pb2.ConverseResponse] = deque()
        """Answers that are yet to be sent."""
        self._max_transcript = max_transcript
        self._on_answer = on_answer
        self._waiting: list[tuple[int, int, Control]] = []
        """Controls by position, then by arrival."""
        self._order = itertools.count()

    @property
    def is_full(self) -> bool:
        """Whether no more controls are read until some are answered."""
        return len(self.arrived) + len(self.answers) >= MAX_UNANSWERED

    def check_room(self) -> None:
        """Raises `LimitExceeded` if no more controls are read until some are answered."""
        if self.is_full:
            unanswered = len(self.arrived) + len(self.answers)
            raise LimitExceeded(
                f"{unanswered} controls of the generation are unanswered; the limit controls is {MAX_UNANSWERED}",
                "controls",
                MAX_UNANSWERED,
                1.0,
            )

    @property
    def next_position(self) -> int | None:
        """The position of the first control that waits; None if none does."""
        return self._waiting[0][0] if self._waiting else None

    @property
    def next_kind(self) -> str | None:
        """What the first control that waits does; None if none does."""
        return self._waiting[0][2].kind if self._waiting else None

    def check(self, control: Control, here: int, start: int) -> int:
        """The position at which a control takes effect.

        `here` is the position of the next token to send, `start` that of the generation's first token. Raises
        `PositionMismatch`, `TranscriptFull` or `InvalidField`, which refuse the control.
        """
        field = "rewind.to_position" if control.kind == "rewind" else "at_position"
        if control.at is not None and control.at < start:
            raise PositionMismatch(f"{field} is {control.at}; the generation starts at {start}")
        if control.kind == "rewind" and control.at is not None and control.at > here:
            raise PositionMismatch(f"{field} is {control.at}; the next token is that of {here}")
        prompt_tokens = sum(len(waiting.prompt) for *_, waiting in self._waiting) + len(control.prompt)
        if prompt_tokens >= self._max_transcript:
            raise TranscriptFull(
                f"the prompts that wait for their positions would have {prompt_tokens} tokens; "
                f"at most {self._max_transcript - 1}"
            )
        if len(self._waiting) >= MAX_WAITING:
            raise InvalidField(field, f"{MAX_WAITING} controls wait for their positions already")
        return here if control.at is None else control.at

    def add(self, position: int, control: Control) -> None:
        """Lets a control wait for its position."""
        bisect.insort(self._waiting, (position, next(self._order), control))

    def take_pauses(self) -> list[Control]:
        """Removes the pauses that named no position and wait for the end of an inserted prompt."""
        pauses = [control for *_, control in self._waiting if control.kind == "pause" and control.at is None]
        self._waiting = [waiting for waiting in self._waiting if waiting[2] not in pauses]
        return pauses

    def pop(self) -> tuple[int, int, Control]:
        """Removes the first control that waits; returns its position, its place in the order of arrival, and it."""
        return self._waiting.pop(0)

    def postpone(self, position: int, order: int, control: Control) -> None:
        """Lets a control that was removed wait for a later position."""
        bisect.insort(self._waiting, (position, order, control))

    def refuse_waiting(self, end: int) -> None:
        """Refuses the controls that still wait when the generation has ended at `end`."""
        for position, _, control in self._waiting:
            self.refuse(control, PositionMismatch(f"at_position is {position}; the generation ended at {end}"))
        self._waiting.clear()

    def answer(self, control: Control, position: int) -> None:
        """Answers a control that has taken effect at `position`."""
        inserted = sampling_pb2.TokenIds(ids=control.prompt) if control.prompt else None
        applied = generation_pb2.ControlApplied(control_id=control.id, position=position, inserted=inserted)
        if control.reply is not None and not control.reply.done():
            control.reply.set_result(applied)
        response = generation_pb2.ConverseResponse(control_applied=applied)
        if control.message is not None:
            response.control_applied.control.CopyFrom(control.message)
        self.answers.append(response)
        self._on_answer()

    def refuse(self, control: Control, error: GruveError) -> None:
        """Answers a control that is refused."""
        if control.reply is None:
            self.refuse_message(control.id, error)
        elif not control.reply.done():
            control.reply.set_exception(error)

    def close(self, generation_id: str) -> None:
        """Refuses the controls that came by `Control` and have not taken effect: the stream has ended."""
        for control in (*self.arrived, *(waiting for *_, waiting in self._waiting)):
            if control.reply is not None:
                self.refuse(control, GenerationUnknown(f"the stream of generation {generation_id!r} has ended"))

    def refuse_message(self, control_id: int, error: GruveError) -> None:
        """Answers a message of the stream's client that holds no valid control."""
        refused = generation_pb2.ControlRefused(
            control_id=control_id, reason=f"ERROR_REASON_{error.reason}", message=shorten(str(error))
        )
        self.answers.append(generation_pb2.ConverseResponse(control_refused=refused))
        self._on_answer()
