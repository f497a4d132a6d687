"""What a conversation remembers, so that it goes on unbroken when a call of it was lost: credit, controls, positions.

Knows no socket and no clock, as `resume` does not: the sync and the async client share it.

What a session's record has of a lost call is true, but nobody knows how much of what was last said it has. So where
controls are unanswered, or answered by a server that may have died before its store had them, the new call first takes
back everything from the earliest position that one of them may have touched, says again what had been answered from
there on, and pauses where the reader stands. Only then the unanswered ones are said again. Without a session everything
that was answered is said again. Tokens on the way there are the reader's already, or void; they are dropped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from gruve.client.resume import Answer, Chunk, Resumption, ends_the_call_alone, protocol_violation
from gruve.v1 import error_pb2, generation_pb2, sampling_pb2

WINDOW = 256
CATCHING_UP = 64
"""Tokens that may be on their way while a new call catches up."""
UNKNOWN = 0
"""Stands for the pause as long as it is not known where the generation starts."""
OWN = 1 << 63
"""From here on control ids are those of messages that the reader knows nothing of."""


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
        """Leaves of an inserted prompt what stands before a position."""
        if self.kind == "insert_prompt":
            del self.request.insert_prompt.tokens.ids[position - self.answered :]

    @property
    def named(self) -> int | None:
        """The position that it names itself."""
        if self.kind == "rewind":
            return self.request.rewind.to_position
        return self.request.at_position if self.request.HasField("at_position") else None


class Steering(Resumption):
    """One conversation over all the calls that carry it. What is to be sent is put into `outgoing`."""

    def __init__(
        self, request: generation_pb2.GenerateRequest, window: int | None = WINDOW, credit: int | None = None
    ) -> None:
        """A `window` is refilled as the reader reads; without one, `credit` is granted and then what `grant` says."""
        super().__init__(request, allow_gaps=True)
        self.outgoing: deque[generation_pb2.ConverseRequest] = deque()
        self._window = window
        self._credit = window if window is not None else WINDOW if credit is None else credit
        """Tokens that the reader has granted and not yet received."""
        self._granted = 0
        """Tokens that the server may still send in this call, as far as is known."""
        self._read = 0
        """Tokens that were read and not yet granted again."""
        self._ids = 0
        self._own_ids = OWN
        self._answered: list[_SentMessage] = []
        """What took effect and is still in force, in order."""
        self._unsure: list[int] = []
        """Where controls took effect of which no message has said yet that they would outlive their server."""
        self._unanswered: deque[_SentMessage] = deque()
        self._received: list[range] = []
        """The positions of tokens that the reader has."""
        self._called = False
        self._paused = self._stopped = False
        self._catches_up: int | None = None
        """The control id of the pause whose answer ends the catching up; None when there is none."""

    def send(self, request: generation_pb2.ConverseRequest) -> int:
        """Takes a control and returns its id."""
        self._ids += 1
        request.control_id = self._ids
        if self._stopped:
            return self._ids
        self._unanswered.append(_SentMessage(request))
        if self._catches_up is None:
            self.outgoing.append(request)
        return self._ids

    def grant(self, tokens: int) -> None:
        """Lets the server send more."""
        self._credit += tokens
        self._return_credit()

    def refill(self) -> None:
        """The reader comes back for more: what it was given before is granted again, half a window at a time."""
        if self._window is not None and 2 * self._read >= self._window:
            read, self._read = self._read, 0
            self.grant(read)

    def first_messages(self) -> list[generation_pb2.ConverseRequest]:
        """What a new call begins with."""
        self.outgoing.clear()
        self._catches_up = None
        catches_up = self._called and bool(
            (self._unanswered and not self._stopped)
            or self._paused
            or self._unsure
            or ((self._answered or self._stopped) and self._request.HasField("model"))
        )
        self._called = True
        self._credit += self._read if self._window is not None else 0
        self._read = 0
        # On the way nothing is sent, and so nothing ends, before the pause is heard of.
        self._granted = 0 if catches_up else self._credit
        generate = self.next_request()
        if catches_up and self._position is None:
            self._catches_up = UNKNOWN
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
            return self._take_answer(Answer(applied.control_id, applied.position), applied.inserted)
        if kind == "control_refused":
            refused = response.control_refused
            reason = error_pb2.ErrorReason.Name(refused.reason).removeprefix("ERROR_REASON_")
            return self._take_answer(Answer(refused.control_id, None, reason, refused.message))
        raise protocol_violation("a message says nothing")

    def _take_tokens(self, response: generation_pb2.GenerateResponse) -> Chunk | None:
        tokens = len(response.token_ids)
        self._granted -= tokens
        before = self._position is not None and response.position < self._position
        if self._catches_up is None and not before:
            chunk = self.receive(response)
            kept = response.durable_position if response.HasField("durable_position") else response.position
            self._unsure = [position for position in self._unsure if position > kept]
            if tokens and self._received and self._received[-1].stop == response.position:
                self._received[-1] = range(self._received[-1].start, response.position + tokens)
            elif tokens:
                self._received.append(range(response.position, response.position + tokens))
            self._credit -= tokens
            self._read += tokens
            return chunk
        if self._expects_start:
            self.begin(response)
        if self._catches_up == UNKNOWN:
            if not self._request.echo:  # the message's own position lies behind what a lost call may have inserted
                self._position = max(response.start.start_position, self._request.from_position)
            self._catch_up()
        self._return_credit()
        if response.HasField("end") and not ends_the_call_alone(response.end):
            return self._take_end(response.end)
        return None

    def _take_end(self, end: generation_pb2.GenerationEnd) -> Chunk | None:
        """Takes the end of a generation that a lost call has finished: by an unanswered `stop`, unless by itself."""
        self.end = end
        stop = next((said for said in self._unanswered if said.kind == "stop"), None)
        if stop is None or end.finish_reason != generation_pb2.FINISH_REASON_CANCELLED:
            return None
        self._unanswered.remove(stop)
        self._note(stop, end.next_position)
        return Chunk(end.next_position, (), "", answer=Answer(stop.request.control_id, end.next_position))

    def _take_answer(self, answer: Answer, inserted: sampling_pb2.TokenIds | None = None) -> Chunk | None:
        if answer.control_id == self._catches_up:
            self._resume(answer)
        if answer.control_id >= OWN:
            return None
        said = next((said for said in self._unanswered if said.request.control_id == answer.control_id), None)
        if said is None:
            raise protocol_violation(f"control {answer.control_id} was answered and is not waiting for an answer")
        self._unanswered.remove(said)
        if answer.position is not None:
            if inserted is not None and said.kind == "insert_prompt":
                said.request.insert_prompt.tokens.CopyFrom(inserted)  # in place of a text, of which a part may stay
            self._note(said, answer.position)
        return Chunk(self._position or 0, (), "", answer=answer)

    def _note(self, said: _SentMessage, position: int) -> None:
        """A control has taken effect: what it took back is no longer in force."""
        said.answered = self._position = position
        while self._received and self._received[-1].stop > position:
            cut = self._received.pop()
            if cut.start < position:
                self._received.append(range(cut.start, position))
        if said.kind == "resume":
            self._paused = False
            return
        if said.kind != "pause" and self._request.HasField("session_id"):
            self._unsure.append(position)
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
        """Says what brings a new call to where the reader stands; returns the position from which it is to send."""
        start, stands, again = self.start, self._position or 0, self._answered
        first = min([stands, *(said.answered for said in again)])
        if not self._request.HasField("model"):
            named = [said.named for said in self._unanswered if said.named is not None]
            first = min([stands, *named, *self._unsure])
            # A token of the generation, which cannot be sent without credit, keeps it from ending at once.
            drawn = [r for r in self._received if r.start < first]
            first = max(
                min(drawn[-1].stop, first) - 1 if drawn else 0, start.start_position if start is not None else 0
            )
            self.outgoing.append(self._own(rewind=generation_pb2.Rewind(to_position=first)))
            again = [
                s
                for s in again
                if s.answered > first
                or (s.answered == first and (s.kind == "insert_prompt" or s.answered in self._unsure))
            ]
        for said in again:
            message = generation_pb2.ConverseRequest()
            message.CopyFrom(said.request)
            message.control_id, message.at_position = self._next_own(), said.answered
            self.outgoing.append(message)
        pause = self._own(at_position=stands, pause=generation_pb2.Pause())
        self._catches_up = pause.control_id
        self.outgoing.append(pause)
        self._return_credit()
        return min(first, stands)

    def _resume(self, answer: Answer) -> None:
        """The new call stands where the reader does, or has ended before: says again what is unanswered."""
        self._catches_up = None
        if answer.position is not None:
            self._position = answer.position
            if self._stopped:  # what was said after that is not answered any more
                self.outgoing.append(self._own(stop=generation_pb2.Stop()))
                return
        # Nothing may be generated before all is said again, for of what was at this very position the record may have
        # some: so whatever lets the generation go on comes as late as its order with what holds it allows.
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
        """Has the server know what it may send: what the reader has granted, and enough to catch up before."""
        wanted = max(self._credit, CATCHING_UP) if self._catches_up is not None else self._credit
        if wanted > self._granted:
            self.outgoing.append(_granting(wanted - self._granted))
            self._granted = wanted

    def _own(self, **fields: object) -> generation_pb2.ConverseRequest:
        return generation_pb2.ConverseRequest(control_id=self._next_own(), **fields)  # type: ignore[arg-type] # any of it

    def _next_own(self) -> int:
        self._own_ids += 1
        return self._own_ids


def _granting(tokens: int) -> generation_pb2.ConverseRequest:
    return generation_pb2.ConverseRequest(grant=generation_pb2.Grant(tokens=tokens))
