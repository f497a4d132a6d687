"""One generation over all the calls that stream it: the request of each call, and the chunks that its messages make.

Knows no socket and no clock, so both clients share it, and it can be tested without either.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from gruve.client.errors import CallFailed, ConnectionLost, ModelChanged, NumericsChanged, ServerFault, Unimplemented
from gruve.client.received import ReceivedTokens, corrupted
from gruve.receipt.file import ReceiptFile
from gruve.receipt.json_form import finish_reason_name, receipt_json
from gruve.v1 import generation_pb2, sampling_pb2


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a control: a position if it was applied, an `ErrorReason` and a sentence if it was refused."""

    control_id: int
    """The id that the method returned which sent it; 0 for a control that another client has sent."""
    position: int | None
    """Where it took effect. Tokens read before with this position or a later one are no longer part of the text."""
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that arrived together. `position` is that of the first of them, or of the next token if there are none."""

    position: int
    token_ids: tuple[int, ...]
    text: str
    """The text that these tokens complete. The texts of all chunks, joined, are the text of the generation."""
    logprobs: tuple[sampling_pb2.TokenLogprobs, ...] = ()
    """One for each token if `logprobs` was given, otherwise none."""
    answer: Answer | None = None
    """The result of a control, in a conversation; such a chunk has no tokens."""


class Resumption:
    """One generation over all the calls that stream it."""

    def __init__(self, request: generation_pb2.GenerateRequest, *, allow_gaps: bool = False) -> None:
        """`allow_gaps` accepts positions that jump ahead, over inserted prompts that are not sent without `echo`."""
        self.start: generation_pb2.GenerationStart | None = None
        """What the first call reported: the session, the seed and all parameters in force."""
        self.end: generation_pb2.GenerationEnd | None = None
        """How the generation ended; None before that."""
        self.received = ReceivedTokens()
        self.inserted: dict[int, tuple[int, ...]] = {}
        """The prompts that controls have inserted, by position."""
        self._request = request
        self._position: int | None = None
        self._expects_start = True
        self._allow_gaps = allow_gaps and not request.echo

    def receipt_file(self, end: generation_pb2.GenerationEnd, *, token_ids: bool = True) -> ReceiptFile:
        """The receipt of the end with its signature and, if wanted and known, the tokens."""
        if not end.HasField("receipt"):
            raise Unimplemented(
                grpc.StatusCode.UNIMPLEMENTED, "the server sends no receipts; it is older than this client"
            )
        receipt = end.receipt
        generated = self.received.generated(receipt) if token_ids else None
        tokens = None if generated is None else tuple(generated)
        places = [(change.position, change.inserted) for change in receipt.changes if change.inserted]
        inserted = tuple(self.inserted[at][:size] for at, size in places if at in self.inserted)
        return ReceiptFile(
            receipt_json(receipt), receipt.signature, tokens, inserted if len(inserted) == len(places) else ()
        )

    @property
    def finish_reason(self) -> str:
        """The name of the `FinishReason` in lower case, without the prefix; empty before the end."""
        return "" if self.end is None else finish_reason_name(self.end.finish_reason)

    def next_request(self) -> generation_pb2.GenerateRequest:
        """The request of the next call: the original one, with the reported seed, from the next position on."""
        request = generation_pb2.GenerateRequest()
        request.CopyFrom(self._request)
        if self._position is not None:
            request.from_position = self._position
        self._expects_start = True
        return request

    def receive(self, response: generation_pb2.GenerateResponse) -> Chunk | None:
        """Takes a message and returns the tokens and text that it adds, None if it adds neither.

        Raises `StreamCorrupted` if the message does not continue the messages before, or if it is the last one and its
        receipt is not that of the tokens received.
        """
        if self._expects_start:
            self.begin(response)
        position, expected = response.position, self._position or 0
        if position < expected or (position > expected and not self._allow_gaps):
            raise corrupted(f"position {position} was sent where {expected} comes next")
        self._position = position + len(response.token_ids)
        if response.token_ids:
            self.received.add(position, response.token_ids)
        if response.HasField("end") and not ends_the_call_alone(response.end):
            self.finish(response.end)
        if not (response.token_ids or response.text):
            return None
        return Chunk(position, tuple(response.token_ids), response.text, tuple(response.logprobs))

    def finish(self, end: generation_pb2.GenerationEnd) -> None:
        """Takes the end of the generation. Raises `StreamCorrupted` if its receipt is of other tokens."""
        if end.HasField("receipt"):  # an older server has none
            self.received.check(end.receipt)
        self.end = end

    def begin(self, response: generation_pb2.GenerateResponse) -> None:
        """Takes the start of the generation from the first message of a call."""
        if not response.HasField("start"):
            raise protocol_violation("the first message has no `start`")
        self._expects_start = False
        if self.start is None:
            self.start = response.start
            self._position = self.received.began = response.position
            self._request.generation_id = response.start.generation_id
            self._request.sampling.seed = response.start.sampling.seed
            if response.start.session_id:
                self._request.session_id = response.start.session_id
        elif self._request.HasField("model"):
            # No server keeps this sequence. The new call computes it again, which must give the same tokens.
            self._check_same_model(response.start)

    def _check_same_model(self, start: generation_pb2.GenerationStart) -> None:
        began = self.start or start
        if began.model_digest != start.model_digest:
            raise ModelChanged(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the stream began with model_digest {began.model_digest!r}; the server now has {start.model_digest!r}",
                reason="MODEL_CHANGED",
            )
        if began.numerics_id != start.numerics_id:
            raise NumericsChanged(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the stream began with numerics_id {began.numerics_id!r}; the server now has {start.numerics_id!r}",
                reason="NUMERICS_CHANGED",
            )


def cut_short() -> CallFailed:
    """The failure of a call that ended with status OK before its generation did."""
    return ConnectionLost(grpc.StatusCode.UNAVAILABLE, "the stream ended before its last message")


def ends_the_call_alone(end: generation_pb2.GenerationEnd) -> bool:
    """Whether the generation continues in another call."""
    return end.finish_reason in (generation_pb2.FINISH_REASON_DEADLINE, generation_pb2.FINISH_REASON_HANDED_OVER)


def protocol_violation(what: str) -> CallFailed:
    """The failure of a call whose server did what the protocol forbids."""
    return ServerFault(grpc.StatusCode.INTERNAL, f"the server broke the protocol: {what}", reason="INTERNAL")
