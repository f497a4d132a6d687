"""Opens streams: from a validated request to a stream whose sequence the engine has taken."""

from __future__ import annotations

import time

from gruve.engine.sequence import FinishReason
from gruve.errors import GenerationUnknown
from gruve.receipt.signing import Sign
from gruve.serve.callers.identity import current_identity
from gruve.serve.callers.ledger import Ledger, Reservation
from gruve.serve.calls.reading import end_reading
from gruve.serve.models.host import ModelHost
from gruve.serve.models.hosts import ModelHosts
from gruve.serve.streams.conversation import Conversation
from gruve.serve.streams.stream import Stream
from gruve.serve.validation_generate import ValidatedGenerate
from gruve.sessions.opening import GenerationOpener

_Name = tuple[str, str, str]
"""Owner, session id and generation id."""


class Streams:
    """Opens the streams of one server."""

    def __init__(self, models: ModelHosts, opener: GenerationOpener, ledger: Ledger, sign: Sign | None = None) -> None:
        """`ledger` has what tenants use of their limits; `sign` signs receipts, None leaves them unsigned."""
        self._models = models
        self._opener = opener
        self._ledger = ledger
        self._sign = sign
        self._streams: set[Stream] = set()
        self._steered: dict[_Name, Conversation] = {}
        """The conversations that can be steered; of several with one name, the one that began last."""

    async def open(self, request: ValidatedGenerate) -> Stream:
        """Opens a stream, all of it or nothing.

        Raises `LimitExceeded`, and what `GenerationOpener.open` and `ModelHost.admit` raise.
        """
        reservation = self.reserve()
        try:
            return await self._open(request, reservation)
        except BaseException:
            reservation.close(0, time.monotonic())
            raise

    def reserve(self) -> Reservation:
        """Counts the caller's request against its limits. Raises `LimitExceeded`."""
        identity = current_identity()
        return self._ledger.begin(
            identity.tenant,
            identity.limits,
            time.monotonic(),
            waiting=lambda: sum([host.engine.waiting_of(identity.tenant) for host in self._models.hosts]),
            all_waiting=lambda: sum([host.engine.waiting for host in self._models.hosts]),
        )

    async def _open(self, request: ValidatedGenerate, reservation: Reservation) -> Stream:
        identity = current_identity()
        bounds = self._ledger.session_bounds(identity.limits)
        running = await self._opener.open(request.open, identity.owner, bounds)
        kind = Stream if request.credit is None else Conversation
        try:
            host = running.served
            assert isinstance(host, ModelHost)  # noqa: S101 - a server's models are hosts
            stream = kind(running, host, request, self._forget, self._sign)
            if (admission := running.opened.admission) is not None:
                tokens = len(admission.forced) + max(0, admission.max_tokens - admission.generated)
                reservation.reserve_tokens(tokens, time.monotonic())
            stream.reservation = reservation
            stream.begin()
        except BaseException:
            running.abandon()
            raise
        end_reading()
        if not stream.ended.is_set():
            self._streams.add(stream)
            if isinstance(stream, Conversation):
                self._steered[_name_of(stream)] = stream
        return stream

    def find(self, session_id: str, generation_id: str) -> Conversation:
        """The caller's conversation that streams a generation. Raises `GenerationUnknown`."""
        conversation = self._steered.get((current_identity().owner, session_id, generation_id))
        if conversation is None:
            raise GenerationUnknown(
                f"this server streams no conversation of generation {generation_id[:64]!r} in "
                + (f"session {session_id[:64]!r}" if session_id else "no session")
            )
        return conversation

    def _forget(self, stream: Stream) -> None:
        self._streams.discard(stream)
        if self._steered.get(name := _name_of(stream)) is stream:
            del self._steered[name]

    def hand_over(self) -> None:
        """Ends the streams that wait for their clients; the engine hands over those that it decodes."""
        for stream in list(self._streams):
            stream.end_idle(FinishReason.HANDED_OVER)


def _name_of(stream: Stream) -> _Name:
    return stream.owner, stream.running.session.id, stream.generation.id
