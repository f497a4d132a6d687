"""One conversation over all the calls that carry it: credit, controls and positions, kept for the next call.

Knows no socket and no clock, so both clients share it, and it can be tested without either.

After a lost call the session's record is consistent, but it may lack the last controls: those without an answer, and
those whose answer came from a server that died before its store had them. A new call therefore catches up first. It
rewinds to the earliest position that such a control may have changed, repeats the answered controls from there on, and
pauses at the reader's position. Then it repeats the unanswered controls. Without a session it repeats all answered
controls. The reader already has the tokens sent while it catches up, or a control has removed them; they are dropped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from gruve.client.messages import check_tokens
from gruve.client.resume import Answer, Chunk, Resumption, ends_the_call_alone, protocol_violation
from gruve.v1 import error_pb2, generation_pb2, sampling_pb2

WINDOW = 256
CATCHING_UP = 64
"""The credit of a new call while it catches up, in tokens."""
UNKNOWN = 0
"""The control id of the pause until the start of the generation is known."""
OWN = 1 << 63
"""Control ids from here on belong to messages that the client sends by itself."""


@dataclass(slots=True)
class _SentMessage:
    """A control as the reader sent it."""

    request: generation_pb2.ConverseRequest
    answered: int = 0
    """Where it took effect."""

    @property
    def kind(self) -> str:
        return self.request.WhichOneof("message") or ""

    def cut(self, position: int) -> None:
        """Removes the part of an inserted prompt from a position on."""
        if self.kind == "insert_prompt":
            del self.request.insert_prompt.tokens.ids[position - self.answered :]

    @property
    def named(self) -> int | None:
        """The position in the control itself, if it has one."""
        if self.kind == "rewind":
            return self.request.rewind.to_position
        return self.request.at_position if self.request.HasField("at_position") else None


class Steering(Resumption):
    """The state of one conversation. The messages to send are in `outgoing`."""

    def __init__(
        self, request: generation_pb2.GenerateRequest, window: int | None = WINDOW, credit: int | None = None
    ) -> None:
        """A `window` is refilled as the reader reads; without one, `credit` is granted first and `grant` adds to it.

        Raises `InvalidRequest` for a `window` below 1 or a `credit` below 0.
        """
        if window is not None:
            check_tokens("window", window, 1)
        if credit is not None:
            check_tokens("credit", credit, 0)
        super().__init__(request, allow_gaps=True)
        self.outgoing: deque[generation_pb2.ConverseRequest] = deque()
        self._window = window
        self._credit = window if window is not None else WINDOW if credit is None else credit
        """Tokens that the reader has granted and not yet received."""
        self._granted = 0
        """Tokens that the server may still send in this call."""
        self._read = 0
        """Tokens that were read and are not yet granted again."""
        self._ids = 0
        self._own_ids = OWN
        self._answered: list[_SentMessage] = []
        """The controls that took effect and are still in force, in order."""
        self._not_durable: list[int] = []
        """The positions of answered controls that are not yet known to be durable."""
        self._unanswered: deque[_SentMessage] = deque()
        self._received: list[range] = []
        """The positions of tokens that the reader has."""
        self._called = False
        self._paused = self._stopped = False
        self.must_call_again = False
        """Whether the reader has to lose its call and make another one."""
        self._caught_up_from = 0
        """The position to which the last catch-up of a session has rewound."""
        self._catch_up_id: int | None = None
        """The control id of the pause whose answer ends the catch-up; None outside of one."""

    def send(self, request: generation_pb2.ConverseRequest) -> int:
        """Queues a control and returns its id."""
        self._ids += 1
        request.control_id = self._ids
        if self._stopped:
            return self._ids
        self._unanswered.append(_SentMessage(request))
        if self._catch_up_id is None:
            self.outgoing.append(request)
        return self._ids

    def grant(self, tokens: int) -> None:
        """Grants the server more tokens. Raises `InvalidRequest` for fewer than 1."""
        check_tokens("tokens", tokens, 1)
        self._credit += tokens
        self._return_credit()

    def refill(self) -> None:
        """Grants again what the reader has read, at least half a window at a time."""
        if self._window is not None and 2 * self._read >= self._window:
            read, self._read = self._read, 0
            self.grant(read)

    def first_messages(self) -> list[generation_pb2.ConverseRequest]:
        """The first messages of a new call."""
        self.outgoing.clear()
        self._catch_up_id, self.must_call_again = None, False
        catches_up = self._called and bool(
            (self._unanswered and not self._stopped)
            or self._paused
            or self._not_durable
            or ((self._answered or self._stopped) and self._request.HasField("model"))
        )
        self._called = True
        self._credit += self._read if self._window is not None else 0
        self._read = 0
        # Without credit the generation cannot end before the pause takes effect.
        self._granted = 0 if catches_up else self._credit
        generate = self.next_request()
        if catches_up and self._position is None:
            self._catch_up_id = UNKNOWN
        elif catches_up:
            generate.from_position = self._catch_up()
        elif not self._stopped:
            self.outgoing.extend(said.request for said in self._unanswered)
        start = generation_pb2.ConverseStart(generate=generate, credit=0 if catches_up else self._credit)
        messages = [generation_pb2.ConverseRequest(start=start), *self.outgoing]
        self.outgoing.clear()
        return messages

    def take(self, response: generation_pb2.ConverseResponse) -> Chunk | None:
        """Takes a message; see `receive`."""
        kind = response.WhichOneof("message")
        if kind == "tokens":
            return self._take_tokens(response.tokens)
        if kind == "control_applied":
            applied = response.control_applied
            if applied.HasField("control"):
                return self._take_foreign(applied)
            return self._take_answer(Answer(applied.control_id, applied.position), applied.inserted)
        if kind == "control_refused":
            refused = response.control_refused
            reason = error_pb2.ErrorReason.Name(refused.reason).removeprefix("ERROR_REASON_")
            return self._take_answer(Answer(refused.control_id, None, reason, refused.message))
        raise protocol_violation("a message is empty")

    def _take_tokens(self, response: generation_pb2.GenerateResponse) -> Chunk | None:
        tokens = len(response.token_ids)
        self._granted -= tokens
        if self._granted < 0:  # another client has granted them
            self._credit, self._granted = self._credit - self._granted, 0
        before = self._position is not None and response.position < self._position
        if self._catch_up_id is None and not before:
            chunk = self.receive(response)
            kept = response.durable_position if response.HasField("durable_position") else response.position
            self._not_durable = [position for position in self._not_durable if position > kept]
            if tokens and self._received and self._received[-1].stop == response.position:
                self._received[-1] = range(self._received[-1].start, response.position + tokens)
            elif tokens:
                self._received.append(range(response.position, response.position + tokens))
            self._credit -= tokens
            self._read += tokens
            return chunk
        if self._expects_start:
            self.begin(response)
        if self._catch_up_id == UNKNOWN:
            if (
                not self._request.echo
            ):  # the position of the message comes after prompts that a lost call may have inserted
                self._position = max(response.start.start_position, self._request.from_position)
            self._catch_up()
        self._return_credit()
        if response.HasField("end") and not ends_the_call_alone(response.end):
            return self._take_end(response.end)
        return None

    def _take_end(self, end: generation_pb2.GenerationEnd) -> Chunk | None:
        """Takes the end of a generation that a lost call finished, by itself or by an unanswered `stop`."""
        self.finish(end)
        stop = next((said for said in self._unanswered if said.kind == "stop"), None)
        if stop is None or end.finish_reason != generation_pb2.FINISH_REASON_CANCELLED:
            return None
        self._unanswered.remove(stop)
        self._record(stop, end.next_position)
        return Chunk(end.next_position, (), "", answer=Answer(stop.request.control_id, end.next_position))

    def _take_answer(self, answer: Answer, inserted: sampling_pb2.TokenIds | None = None) -> Chunk | None:
        if answer.control_id == self._catch_up_id:
            self._resume(answer)
        if answer.control_id >= OWN:
            return None
        said = next((said for said in self._unanswered if said.request.control_id == answer.control_id), None)
        if said is None:
            raise protocol_violation(f"control {answer.control_id} was answered, but no answer is due")
        self._unanswered.remove(said)
        if answer.position is not None:
            if inserted is not None and said.kind == "insert_prompt":
                said.request.insert_prompt.tokens.CopyFrom(
                    inserted
                )  # tokens instead of text, so that a rewind can keep a part
            self._record(said, answer.position)
        return Chunk(self._position or 0, (), "", answer=answer)

    def _take_foreign(self, applied: generation_pb2.ControlApplied) -> Chunk:
        """Takes the answer to a control that another client sent by `Control`.

        If it falls before the reader's position while a new call catches up, the positions that this call was given to
        catch up to are no longer right, and yet another call has to.
        """
        said = _SentMessage(applied.control)
        if said.kind == "insert_prompt":
            said.request.insert_prompt.tokens.CopyFrom(applied.inserted)
        if self._catch_up_id is not None and applied.position < (self._position or 0):
            self.must_call_again = True
            self._not_durable.append(self._caught_up_from)
        self._record(said, applied.position)
        return Chunk(applied.position, (), "", answer=Answer(0, applied.position))

    def _record(self, said: _SentMessage, position: int) -> None:
        """Records a control that took effect, and drops the controls and tokens that it removed."""
        said.answered = self._position = position
        self.received.cut(position)
        # A rewind removes a prompt that begins at its position. Other controls can be answered there before the
        # prompt is decoded.
        last = position - (said.kind == "rewind")
        self.inserted = {at: tokens for at, tokens in self.inserted.items() if at <= last}
        if said.kind == "insert_prompt":
            self.inserted[position] = tuple(said.request.insert_prompt.tokens.ids)
        while self._received and self._received[-1].stop > position:
            cut = self._received.pop()
            if cut.start < position:
                self._received.append(range(cut.start, position))
        if said.kind == "resume":
            self._paused = False
            return
        if said.kind != "pause" and self._request.HasField("session_id"):
            self._not_durable.append(position)
        self._answered = [
            other
            for other in self._answered
            if other.answered < position
            or (other.answered == position and (said.kind != "rewind" or other.kind != "insert_prompt"))
        ]
        if said.kind == "pause":
            self._paused = True
        elif said.kind == "stop":
            self._stopped, self._paused = True, False
        elif said.kind == "rewind":
            for other in self._answered:
                other.cut(position)
            if said.request.rewind.HasField("seed"):
                change = generation_pb2.ChangeParameters(sampling={"seed": said.request.rewind.seed})
                again = generation_pb2.ConverseRequest(change_parameters=change)
                self._answered.append(_SentMessage(again, position))
        else:
            self._answered.append(said)

    def _catch_up(self) -> int:
        """Queues the messages that bring a new call to the reader's position; returns its `from_position`."""
        start, stands, again = self.start, self._position or 0, self._answered
        first = min([stands, *(said.answered for said in again)])
        if not self._request.HasField("model"):
            named = [said.named for said in self._unanswered if said.named is not None]
            first = min([stands, *named, *self._not_durable])
            # One token is left to generate: it cannot be sent without credit, so the generation does not end at once.
            drawn = [r for r in self._received if r.start < first]
            first = max(
                min(drawn[-1].stop, first) - 1 if drawn else 0, start.start_position if start is not None else 0
            )
            self._caught_up_from = first
            self.outgoing.append(self._own(rewind=generation_pb2.Rewind(to_position=first)))
            again = [
                s
                for s in again
                if s.answered > first
                or (s.answered == first and (s.kind == "insert_prompt" or s.answered in self._not_durable))
            ]
        for said in again:
            message = generation_pb2.ConverseRequest()
            message.CopyFrom(said.request)
            message.control_id, message.at_position = self._next_own(), said.answered
            self.outgoing.append(message)
        pause = self._own(at_position=stands, pause=generation_pb2.Pause())
        self._catch_up_id = pause.control_id
        self.outgoing.append(pause)
        self._return_credit()
        return min(first, stands)

    def _resume(self, answer: Answer) -> None:
        """Repeats the unanswered controls, once the new call has reached the reader's position or has ended."""
        self._catch_up_id = None
        if answer.position is not None:
            self._position = answer.position
            if self._stopped:  # the server answers no control after a stop
                self.outgoing.append(self._own(stop=generation_pb2.Stop()))
                return
        # The record may have some of the controls at this very position, so no token may be generated before all of
        # them are repeated: a resume is sent as late as its order with the pauses allows.
        resumes = [] if self._paused or answer.position is None else [self._own(resume=generation_pb2.Resume())]
        for said in self._unanswered:
            if said.kind == "resume":
                resumes.append(said.request)
                continue
            if said.kind == "pause":
                self.outgoing.extend(resumes)
                resumes.clear()
            self.outgoing.append(said.request)
        self.outgoing.extend(resumes)
        self._return_credit()

    def _return_credit(self) -> None:
        """Grants the server the reader's credit, or enough tokens to catch up."""
        wanted = max(self._credit, CATCHING_UP) if self._catch_up_id is not None else self._credit
        if wanted > self._granted:
            self.outgoing.append(_grant_message(wanted - self._granted))
            self._granted = wanted

    def _own(self, **fields: object) -> generation_pb2.ConverseRequest:
        return generation_pb2.ConverseRequest(control_id=self._next_own(), **fields)  # type: ignore[arg-type] # any of it

    def _next_own(self) -> int:
        self._own_ids += 1
        return self._own_ids


def _grant_message(tokens: int) -> generation_pb2.ConverseRequest:
    return generation_pb2.ConverseRequest(grant=generation_pb2.Grant(tokens=tokens))
