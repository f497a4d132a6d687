"""Opens streams: from a validated request to a stream whose sequence the engine has taken."""

from __future__ import annotations

from gruve.engine.sequence import FinishReason
from gruve.serve.conversation import Conversation
from gruve.serve.messages import Sign
from gruve.serve.model_host import ModelHosts
from gruve.serve.stream import Stream
from gruve.serve.validation_generate import ValidatedGenerate
from gruve.sessions.opening import GenerationOpener


class Streams:
    """Opens the streams of one server."""

    def __init__(self, models: ModelHosts, opener: GenerationOpener, sign: Sign | None = None) -> None:
        """`sign` signs receipts; None leaves them unsigned."""
        self._models = models
        self._opener = opener
        self._sign = sign
        self._conversations: set[Conversation] = set()

    async def open(self, request: ValidatedGenerate) -> Stream:
        """Opens a stream, all of it or nothing. Raises what `GenerationOpener.open` and `ModelHost.admit` raise."""
        running = await self._opener.open(request.open)
        stream: Stream
        try:
            host = self._models.get(running.session.model)
            if request.credit is None:
                stream = Stream(running, host, request, self._sign)
            else:
                stream = Conversation(running, host, request, self._conversations.discard, self._sign)
            stream.begin()
        except BaseException:
            running.abandon()
            raise
        if isinstance(stream, Conversation) and not stream.ended.is_set():
            self._conversations.add(stream)
        return stream

    def hand_over(self) -> None:
        """Ends the conversations that wait for their clients; the engine hands over the streams that it decodes."""
        for stream in list(self._conversations):
            stream.end_idle(FinishReason.HANDED_OVER)
