"""The streams of the client for asyncio: one generation, and one that its reader steers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, Unpack

from gruve.client.aio.transport import Lock, Outbox, Transport
from gruve.client.connection import Attempt
from gruve.client.errors import CallFailed
from gruve.client.messages import (
    SamplingOptions,
    Text,
    change_request,
    insert_request,
    lists_options,
    rewind_request,
    steer_request,
)
from gruve.client.resume import Chunk, Resumption, cut_short
from gruve.client.steering import Steering
from gruve.receipt.file import ReceiptFile
from gruve.v1 import generation_pb2


class AsyncTokenStream(AsyncIterator[Chunk]):
    """The chunks of one generation, as the server sends them.

    One task reads it. Leaving the `async with` block, dropping the stream, or calling `cancel` or `aclose`,
    cancels the generation. So does an exception while it is read, the reader's cancellation included.
    """

    def __init__(self, transport: Transport, attempt: Attempt, resumption: Resumption) -> None:
        self._transport = transport
        self._attempt = attempt
        self._resumption = resumption
        self._call: Any = None
        self._closed = False
        self._reading = False

    def __del__(self) -> None:
        if self._call is not None and self._resumption.end is None:
            self._transport.drop(self)

    @property
    def started(self) -> bool:
        """Whether the server has begun to answer, so that `start` can be read."""
        return self._resumption.start is not None

    @property
    def ended(self) -> bool:
        """Whether the generation was read to its end, so that `end` can be read; False after `cancel` or a failure."""
        return self._resumption.end is not None

    @property
    def start(self) -> generation_pb2.GenerationStart:
        """The server's report of what it generates, with seed and session; `RuntimeError` before the first chunk."""
        if self._resumption.start is None:
            raise RuntimeError("the stream has no `start` before its first chunk was read; `started` tells")
        return self._resumption.start

    @property
    def end(self) -> generation_pb2.GenerationEnd:
        """How the generation ended, with its usage; `RuntimeError` before the last chunk."""
        if self._resumption.end is None:
            raise RuntimeError("the stream has no `end` before its last chunk was read; `ended` tells")
        return self._resumption.end

    @property
    def finish_reason(self) -> str:
        """Why the generation ended: "stop", "length", "end_of_sequence" or "cancelled"; empty before the end."""
        return self._resumption.finish_reason

    @property
    def waiting(self) -> bool:
        """Whether no call is open: before the first chunk is read, and until a lost connection is replaced."""
        return self._call is None

    def receipt(self, *, token_ids: bool = True) -> ReceiptFile:
        """The receipt, which `gruve verify` checks, with the generated tokens if wanted.

        A file holds the JSON of its `to_json`. The tokens are missing if the stream has not brought all of them. Raises
        `RuntimeError` before the last chunk, and `Unimplemented` if the server is so old that it sends no receipts.
        """
        return self._resumption.receipt_file(self.end, token_ids=token_ids)

    async def text(self) -> str:
        """Reads the rest of the stream and returns its text."""
        return "".join([chunk.text async for chunk in self])

    async def __anext__(self) -> Chunk:
        if self._reading:
            raise RuntimeError("this stream is being read already, and two readers would each get a part of it")
        self._reading = True
        try:
            while not self._closed and self._resumption.end is None:
                chunk = await self._receive()
                if chunk is not None:
                    return chunk
        except BaseException:
            self.cancel()
            raise
        finally:
            self._reading = False
        await self._finish()
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Cancels the generation, unless it has ended. A loop that reads it ends, and `ended` stays False."""
        self._closed = True
        if self._call is not None and not self._attempt.inherited:
            self._call.cancel()

    async def aclose(self) -> None:
        """The same as `cancel`, by the name that `contextlib.aclosing` calls."""
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _receive(self) -> Chunk | None:
        """Reads the next message, from a new call if there is none. If the call was lost, waits and returns None."""
        try:
            if self._call is None:
                self._transport.check_caller()
                self._call = self._open()
                if self._closed:  # by another thread meanwhile
                    self._call.cancel()
            else:
                self._attempt.check_process()
            response = await self._transport.read(self._call)
        except CallFailed as failure:
            await self._lost(failure)
            return None
        if response is None:
            await self._lost(cut_short())
            return None
        first = self._resumption.start is None
        chunk = self._take(response)
        if first or chunk is not None:
            self._attempt.succeeded()
        return chunk

    def _open(self) -> Any:
        """Starts the call that continues the generation."""
        generate, metadata = self._attempt.stubs().generations.Generate, self._attempt.metadata()
        request = self._resumption.next_request()
        return self._transport.open(generate, request, self._attempt.remaining_s(), metadata)

    def _take(self, response: Any) -> Chunk | None:
        return self._resumption.receive(response)

    async def _lost(self, failure: CallFailed) -> None:
        if self._closed:
            return
        self._call = None
        await self._transport.sleep(self._attempt.failed(failure))

    async def _finish(self) -> None:
        """Reads the call to its end, so that the server does not count it as cancelled."""
        if self._closed or self._call is None:
            return
        try:
            await self._transport.read(self._call)
        except CallFailed:
            self._closed = True  # the last message is here; the connection's fate changes nothing


class AsyncConversation(AsyncTokenStream):
    """The chunks of one generation, which its reader steers meanwhile.

    Each method that steers sends a control and returns its id. The result of the control comes among the chunks (see
    `Chunk.answer`) where it took effect: the next tokens have the position that it names, and replace tokens read
    before with that position or a later one.
    """

    def __init__(self, transport: Transport, attempt: Attempt, steering: Steering) -> None:
        super().__init__(transport, attempt, steering)
        self._steering = steering
        self._lock = Lock()
        self._outbox: Outbox | None = None

    @lists_options(SamplingOptions)
    def change(self, *, at_position: int | None = None, **sampling: Unpack[SamplingOptions]) -> int:
        """Changes the sampling, from the next token that is not yet sent, or from a position on."""
        return self._send(change_request(sampling, at_position))

    def insert(self, prompt: Text, *, at_position: int | None = None) -> int:
        """Makes the model read a text before it generates more."""
        return self._send(insert_request(prompt, at_position))

    def pause(self, *, at_position: int | None = None) -> int:
        """Stops the generation until `resume`."""
        return self._send(steer_request("pause", at_position))

    def resume(self) -> int:
        """Continues a paused generation."""
        return self._send(steer_request("resume", None))

    def rewind(self, to_position: int, *, seed: int | None = None) -> int:
        """Removes the tokens from a position on and generates from there; with the same seed, the same tokens."""
        return self._send(rewind_request(to_position, seed))

    def stop(self, *, at_position: int | None = None) -> int:
        """Ends the generation."""
        return self._send(steer_request("stop", at_position))

    def grant(self, tokens: int) -> None:
        """Allows the server to send more tokens, in a conversation without a window."""
        with self._lock:
            self._steering.grant(tokens)
            self._flush()

    async def __anext__(self) -> Chunk:
        with self._lock:
            self._steering.refill()
            self._flush()
        return await super().__anext__()

    def cancel(self) -> None:
        """Cancels the generation, unless it has ended. A loop that reads it ends, and `ended` stays False."""
        super().cancel()
        self._close_outbox()

    def _send(self, request: generation_pb2.ConverseRequest) -> int:
        with self._lock:
            control_id = self._steering.send(request)
            self._flush()
        return control_id

    def _flush(self) -> None:
        """Sends the outgoing messages; without a call they wait for the next one."""
        while self._outbox is not None and self._steering.outgoing:
            self._outbox.put(self._steering.outgoing.popleft())

    def _open(self) -> Any:
        converse, metadata = self._attempt.stubs().generations.Converse, self._attempt.metadata()
        outbox = Outbox()
        with self._lock:
            for request in self._steering.first_messages():
                outbox.put(request)
            self._outbox = outbox
        return self._transport.open(converse, outbox.messages(), self._attempt.remaining_s(), metadata)

    def _take(self, response: Any) -> Chunk | None:
        with self._lock:
            chunk = self._steering.take(response)
            again = self._steering.must_call_again
            if not again:
                self._flush()
        if again:
            self._call.cancel()
            self._call = None
            self._close_outbox()
        return chunk

    async def _lost(self, failure: CallFailed) -> None:
        self._close_outbox()
        await super()._lost(failure)

    async def _finish(self) -> None:
        await super()._finish()
        self._close_outbox()

    def _close_outbox(self) -> None:
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            outbox.close()
