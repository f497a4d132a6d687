"""Conversations with a server, message by message, and the transcript they must have."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

from gruve.v1 import error_pb2, session_pb2
from gruve.v1 import generation_pb2 as g
from serving import PATIENCE_S, Running

R = g.ConverseRequest
PROMPT = "To be"
START = 1 + len(PROMPT)
SEED = {"seed": 5}
LONG = 400


class Talk:
    """One call of Converse.

    `tokens` has the sent tokens that were not taken back, by position; `text` has all sent text.
    """

    def __init__(self, server: Running | None = None, timeout: float | None = PATIENCE_S, stub: Any = None) -> None:
        assert server is not None or stub is not None
        self._requests: queue.Queue[R | None] = queue.Queue()
        self._ids = iter(range(1, 1 << 20))
        self.call = (stub or server.generation).Converse(iter(self._requests.get, None), timeout=timeout)
        self.tokens: dict[int, int] = {}
        self.text = ""
        self.logprobs: list[Any] = []
        self.sent = 0
        self.start: g.GenerationStart | None = None
        self.end: g.GenerationEnd | None = None
        self.answers: dict[int, g.ControlApplied | g.ControlRefused] = {}
        self.sizes: list[int] = []

    def say(self, **fields: Any) -> int:
        """Sends a message and returns its control id."""
        control_id = next(self._ids)
        self._requests.put(R(control_id=control_id, **fields))
        return control_id

    def begin(self, credit: int | None = None, **fields: Any) -> Talk:
        if not {"model", "session_id", "new_session"} & set(fields):
            fields["model"] = "tiny"
        self._requests.put(R(start=g.ConverseStart(generate=g.GenerateRequest(**fields), credit=credit)))
        return self

    def grant(self, tokens: int) -> None:
        self._requests.put(R(grant={"tokens": tokens}))

    def change(self, at: int | None = None, **sampling: Any) -> int:
        return self.say(at_position=at, change_parameters={"sampling": sampling})

    def insert(self, text: str, at: int | None = None) -> int:
        return self.say(at_position=at, insert_prompt={"text": text})

    def hang_up(self) -> None:
        self._requests.put(None)

    def read(self) -> g.ConverseResponse | None:
        """Returns the next message; None at the end of the call."""
        message = next(self.call, None)
        if message is None:
            return None
        kind = message.WhichOneof("message")
        if kind != "tokens":
            answer = getattr(message, kind)
            self.answers[answer.control_id] = answer
            if kind == "control_applied":
                self.tokens = {at: token for at, token in self.tokens.items() if at < answer.position}
            return message
        tokens = message.tokens
        self.start = tokens.start if tokens.HasField("start") else self.start
        self.end = tokens.end if tokens.HasField("end") else None
        self.tokens |= dict(enumerate(tokens.token_ids, tokens.position))
        self.text += tokens.text
        self.logprobs += tokens.logprobs
        self.sent += len(tokens.token_ids)
        self.sizes.append(len(tokens.token_ids))
        return message

    def until(self, tokens: int) -> Talk:
        """Reads until `count` tokens were received in all."""
        while self.sent < tokens:
            assert self.read() is not None, f"the call ended after {self.sent} tokens"
        return self

    def answer(self, control_id: int) -> g.ControlApplied | g.ControlRefused:
        """Reads until a control is answered."""
        while control_id not in self.answers:
            assert self.read() is not None, "the call ended without an answer"
        return self.answers[control_id]

    def position(self, control_id: int) -> int:
        answer = self.answer(control_id)
        assert isinstance(answer, g.ControlApplied), answer
        return answer.position

    def reason(self, control_id: int) -> str:
        answer = self.answer(control_id)
        assert isinstance(answer, g.ControlRefused), answer
        return error_pb2.ErrorReason.Name(answer.reason).removeprefix("ERROR_REASON_")

    def rest(self) -> Talk:
        """Reads to the end of the call."""
        while self.read() is not None:
            pass
        return self

    @property
    def finish(self) -> str:
        return g.FinishReason.Name(self.end.finish_reason).removeprefix("FINISH_REASON_") if self.end else ""

    def __iter__(self) -> Iterator[g.ConverseResponse]:
        while (message := self.read()) is not None:
            yield message


def transcript(server: Running, session_id: str) -> list[int]:
    """Returns all tokens of a session."""
    request = session_pb2.GetSessionRequest(session_id=session_id, page_size=65_536)
    return list(server.sessions.GetSession(request).token_ids)


def grown(server, tokens, end, sampling):
    """A transcript continued to `end` by one request, or to where the model ends it."""
    if end <= len(tokens):
        return tokens
    tail = server.read(model="tiny", tokens={"ids": tokens[1:]}, max_tokens=end - len(tokens), sampling=sampling)
    return tokens + tail.tokens


def plain(server, applied, sampling, max_tokens, encode):
    """The expected transcript: the controls are applied one by one, and each piece is generated by its own request."""
    tokens, inserted = [0, *encode(PROMPT)], {}
    in_force = [(START, dict(sampling))]
    for kind, position, value in applied:
        tokens = grown(server, tokens, position, in_force[-1][1])[:position]
        assert len(tokens) == position, "it took effect beyond the end"
        in_force = [entry for entry in in_force if entry[0] <= position]
        inserted = {at: min(n, position - at) for at, n in inserted.items() if at < position}
        if kind in ("change", "rewind"):
            in_force.append((position, in_force[-1][1] | value))
        elif kind == "insert":
            inserted[position] = len(encode(value))
            tokens = tokens + encode(value)
        elif kind == "stop":
            return tokens
    return grown(server, tokens, START + max_tokens + sum(inserted.values()), in_force[-1][1])


def talk(server, credit=None, **fields):
    return Talk(server).begin(credit, **({"text": PROMPT, "sampling": SEED, "max_tokens": 40} | fields))


def alone(server, **fields):
    return server.read(**({"text": PROMPT, "sampling": SEED, "max_tokens": 40} | fields))
