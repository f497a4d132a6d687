"""Decides what follows when a call was lost: whether to call again, where, when, and from which position.

Knows no socket and no clock, so the sync and the async client share it, and it can be tested without either.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import grpc

from gruve.client.failure import CallFailed
from gruve.v1 import generation_pb2, sampling_pb2


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How often a call that was lost is made again, and after how long.

    The time grows twofold from `backoff_s` to `backoff_max_s`, less up to a half by chance, and is never shorter than
    the server asks for. With several addresses each is tried once before there is any wait.
    """

    max_reconnects: int = 20
    """Calls in a row, for each address, that bring nothing new: about a minute, in which a server is started anew."""
    first_reconnects: int = 3
    """The same as long as no server has ever answered: the address may be wrong."""
    backoff_s: float = 0.1
    backoff_max_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a control. Applied, it has a position; refused, the contract's reason and a sentence."""

    control_id: int
    position: int | None
    """Where it took effect. Tokens that were read with this position or a later one are no longer part of the text."""
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that arrived together. `position` is that of the first of them, or of the next token if there are none."""

    position: int
    token_ids: tuple[int, ...]
    text: str
    """The text that has become certain; joined over all chunks it is the text of the generation."""
    logprobs: tuple[sampling_pb2.TokenLogprobs, ...] = ()
    """One for each token if they were asked for, otherwise none."""
    answer: Answer | None = None
    """In a conversation: what became of a control; then there are no tokens."""


class Attempts:
    """Counts the calls in a row that brought nothing new."""

    def __init__(self, policy: Reconnect, addresses: int, answered: bool) -> None:
        self._policy = policy
        self._addresses = addresses
        self._answered = answered
        self._failed = 0

    def succeeded(self) -> None:
        """Begins the count anew."""
        self._answered = True
        self._failed = 0

    def failed(self, failure: CallFailed) -> float:
        """How many seconds to wait before the next call; raises `failure` if there is to be none."""
        self._answered = self._answered or bool(failure.reason)
        reconnects = self._policy.max_reconnects if self._answered else self._policy.first_reconnects
        if not failure.passing or self._failed >= reconnects * self._addresses:
            raise failure
        self._failed += 1
        rounds, tried = divmod(self._failed, self._addresses)
        if tried:
            return 0.0
        backoff_s = min(self._policy.backoff_s * 2.0 ** (rounds - 1), self._policy.backoff_max_s)
        chance = random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients out, keeps no secret
        return max(backoff_s * chance, failure.retry_after_s or 0.0)


class Resumption:
    """One generation over all the calls that stream it."""

    def __init__(self, request: generation_pb2.GenerateRequest, *, may_skip: bool = False) -> None:
        """`may_skip` says that prompts may have been inserted, which are not sent where there is no echo."""
        self.start: generation_pb2.GenerationStart | None = None
        """What the first call was told: its session, the seed, all parameters in force."""
        self.end: generation_pb2.GenerationEnd | None = None
        """How the generation ended; None until then."""
        self._request = request
        self._position: int | None = None
        self._expects_start = True
        self._may_skip = may_skip and not request.echo

    @property
    def finish_reason(self) -> str:
        """Why the generation ended, without the contract's prefix; empty before it has."""
        if self.end is None:
            return ""
        return generation_pb2.FinishReason.Name(self.end.finish_reason).removeprefix("FINISH_REASON_")

    def next_request(self) -> generation_pb2.GenerateRequest:
        """The request of the next call: the whole one, with the seed that was reported, from the next position on."""
        request = generation_pb2.GenerateRequest()
        request.CopyFrom(self._request)
        if self._position is not None:
            request.from_position = self._position
        self._expects_start = True
        return request

    def receive(self, response: generation_pb2.GenerateResponse) -> Chunk | None:
        """Takes a message; returns the tokens and text that it adds, None if it adds neither.

        Raises `CallFailed` if it does not continue what was received before.
        """
        if self._expects_start:
            self.begin(response)
        position, expected = response.position, self._position or 0
        if position < expected or (position > expected and not self._may_skip):
            raise broken(f"position {position} was sent where {expected} comes next")
        self._position = position + len(response.token_ids)
        if response.HasField("end") and not ends_the_call_alone(response.end):
            self.end = response.end
        if not (response.token_ids or response.text):
            return None
        return Chunk(position, tuple(response.token_ids), response.text, tuple(response.logprobs))

    def begin(self, response: generation_pb2.GenerateResponse) -> None:
        """Takes what the first message of a call says of the generation."""
        if not response.HasField("start"):
            raise broken("the first message does not say what was accepted")
        self._expects_start = False
        if self.start is None:
            self.start = response.start
            self._position = response.position
            self._request.generation_id = response.start.generation_id
            self._request.sampling.seed = response.start.sampling.seed
            if response.start.session_id:
                self._request.session_id = response.start.session_id
        elif self._request.HasField("model"):
            # Nobody keeps this sequence, so the new call computes it all again, and must do so in the same way.
            for name, reason in (("model_digest", "MODEL_CHANGED"), ("numerics_id", "NUMERICS_CHANGED")):
                before, now = getattr(self.start, name), getattr(response.start, name)
                if before != now:
                    raise CallFailed(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        f"the stream began with {name} {before!r}; the server that would go on has {now!r}",
                        reason=reason,
                    )


def cut_short() -> CallFailed:
    """What it is when a call ends in order before its generation does."""
    return CallFailed(grpc.StatusCode.UNAVAILABLE, "the stream ended before its last message")


def ends_the_call_alone(end: generation_pb2.GenerationEnd) -> bool:
    """Whether the generation goes on in another call."""
    return end.finish_reason in (generation_pb2.FINISH_REASON_DEADLINE, generation_pb2.FINISH_REASON_HANDED_OVER)


def broken(why: str) -> CallFailed:
    """What it is when a server does what the contract forbids."""
    return CallFailed(grpc.StatusCode.INTERNAL, f"the server broke the contract: {why}", reason="INTERNAL")
