"""The client for asyncio; the same as the sync one, method for method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from gruve.client.connection import DEFAULT_ADDRESS, KEEPALIVE_S, Attempt, Connections, Stubs
from gruve.client.failure import CallFailed, failure_of
from gruve.client.messages import GenerateOptions, Text, add_page, create_request, generate_request, score_request
from gruve.client.resume import Chunk, Reconnect, Resumption, cut_short
from gruve.v1 import generation_pb2, model_pb2, session_pb2


class AsyncClient:
    """Calls the servers at `addresses` from one event loop; see `Client`."""

    def __init__(
        self,
        addresses: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        reconnect: Reconnect | None = None,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        self._connections = Connections(addresses, grpc.aio.insecure_channel, reconnect, keepalive_s)

    def generate(
        self,
        prompt: Text | None = None,
        *,
        model: str | None = None,
        session: str | None = None,
        new_session: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTokenStream:
        """Continues a prompt with a model, or a session by its id; see `Client.generate`."""
        resumption = Resumption(generate_request(prompt, model, session, new_session, options))
        return AsyncTokenStream(Attempt(self._connections, timeout_s), resumption)

    async def score(
        self,
        content: Text,
        *,
        model: str,
        window_tokens: int | None = None,
        logprobs: int | None = None,
        timeout_s: float | None = None,
    ) -> generation_pb2.ScoreResponse:
        """Measures how probable a model finds a text."""
        request = score_request(content, model, window_tokens, logprobs)
        response: generation_pb2.ScoreResponse = await self._call(lambda s: s.generations.Score, request, timeout_s)
        return response

    async def create_session(
        self, model: str, *, idle_ttl_s: float | None = None, timeout_s: float | None = None
    ) -> session_pb2.Session:
        """Creates a session."""
        request = create_request(model, idle_ttl_s)
        response = await self._call(lambda s: s.sessions.CreateSession, request, timeout_s)
        session: session_pb2.Session = response.session
        return session

    async def get_session(
        self, session: str, *, transcript: bool = True, timeout_s: float | None = None
    ) -> session_pb2.GetSessionResponse:
        """Describes a session and, unless told otherwise, reads its whole transcript."""
        request = session_pb2.GetSessionRequest(session_id=session, page_size=None if transcript else 0)
        whole: session_pb2.GetSessionResponse = await self._call(lambda s: s.sessions.GetSession, request, timeout_s)
        while transcript and whole.next_page_token:
            request.page_token = whole.next_page_token
            add_page(whole, await self._call(lambda s: s.sessions.GetSession, request, timeout_s))
        return whole

    async def list_sessions(
        self, model: str = "", *, timeout_s: float | None = None
    ) -> AsyncIterator[session_pb2.Session]:
        """Lists the sessions of a model, or of all, the latest created first; page by page as they are read."""
        request = session_pb2.ListSessionsRequest(model=model)
        while True:
            page = await self._call(lambda s: s.sessions.ListSessions, request, timeout_s)
            for session in page.sessions:
                yield session
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete_session(self, session: str, *, timeout_s: float | None = None) -> None:
        """Deletes a session for good."""
        request = session_pb2.DeleteSessionRequest(session_id=session)
        await self._call(lambda s: s.sessions.DeleteSession, request, timeout_s, done_before="SESSION_EXPIRED")

    async def models(self, *, timeout_s: float | None = None) -> list[model_pb2.Model]:
        """Lists the server's models, broken ones included, in the order of their names."""
        request = model_pb2.ListModelsRequest()
        return list((await self._call(lambda s: s.models.ListModels, request, timeout_s)).models)

    async def tokenize(self, text: str, *, model: str, timeout_s: float | None = None) -> list[int]:
        """Cuts a text into tokens as a prompt would be cut."""
        request = model_pb2.TokenizeRequest(model=model, text=text)
        return list((await self._call(lambda s: s.models.Tokenize, request, timeout_s)).token_ids)

    async def detokenize(self, token_ids: Sequence[int], *, model: str, timeout_s: float | None = None) -> str:
        """Joins tokens into their text."""
        request = model_pb2.DetokenizeRequest(model=model, token_ids=token_ids)
        text: str = (await self._call(lambda s: s.models.Detokenize, request, timeout_s)).text
        return text

    async def close(self) -> None:
        """Closes the connections; what is still running ends with CANCELLED."""
        for channel in self._connections.close():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self, rpc: Callable[[Stubs], Any], request: Any, timeout_s: float | None, done_before: str | None = None
    ) -> Any:
        """Calls an rpc with one answer; the reason `done_before` says that a call that was lost was carried out."""
        attempt = Attempt(self._connections, timeout_s)
        while True:
            try:
                response = await rpc(attempt.stubs())(request, timeout=attempt.remaining_s())
            except (grpc.RpcError, asyncio.CancelledError) as error:
                failure = _failure_of(error)
                if attempt.lost and failure.reason == done_before:
                    return None
                await asyncio.sleep(attempt.failed(failure))
            else:
                attempt.succeeded()
                return response


def _failure_of(error: grpc.RpcError | asyncio.CancelledError) -> CallFailed:
    """What `failure_of` says; raises the error again if it is the task that is being cancelled.

    gRPC raises `CancelledError` as well where a call alone was cancelled: by this client, or by a proxy.
    """
    if isinstance(error, grpc.RpcError):
        return failure_of(error)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise error
    return CallFailed(grpc.StatusCode.CANCELLED, "the call was cancelled")


class AsyncTokenStream(AsyncIterator[Chunk]):
    """The tokens of one generation as they are made; see `TokenStream`.

    Cancelling the task that reads it cancels the generation.
    """

    def __init__(self, attempt: Attempt, resumption: Resumption) -> None:
        self._attempt = attempt
        self._resumption = resumption
        self._call: Any = None
        self._closed = False

    @property
    def start(self) -> generation_pb2.GenerationStart | None:
        """What was accepted, the seed and the session included; None before the first chunk."""
        return self._resumption.start

    @property
    def end(self) -> generation_pb2.GenerationEnd | None:
        """How the generation ended, and its usage; None before the last chunk."""
        return self._resumption.end

    @property
    def finish_reason(self) -> str:
        """Why the generation ended: "STOP", "LENGTH", "END_OF_SEQUENCE" or "CANCELLED"; empty before it has."""
        return self._resumption.finish_reason

    async def text(self) -> str:
        """The rest of the stream as one text."""
        return "".join([chunk.text async for chunk in self])

    async def __anext__(self) -> Chunk:
        try:
            while not self._closed and self._resumption.end is None:
                chunk = await self._receive()
                if chunk is not None:
                    return chunk
        except (CallFailed, asyncio.CancelledError):
            self.close()
            raise
        await self._finish()
        raise StopAsyncIteration

    def close(self) -> None:
        """Cancels the generation, unless it has ended."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _receive(self) -> Chunk | None:
        """Reads the next message, from a new call if there is none; waits if the call was lost."""
        try:
            if self._call is None:
                generate = self._attempt.stubs().generations.Generate
                self._call = generate(self._resumption.next_request(), timeout=self._attempt.remaining_s())
            response = await self._call.read()
        except (grpc.RpcError, asyncio.CancelledError) as error:
            await self._lost(_failure_of(error))
            return None
        if not isinstance(response, generation_pb2.GenerateResponse):
            await self._lost(cut_short())
            return None
        first = self._resumption.start is None
        chunk = self._resumption.receive(response)
        if first or chunk is not None:
            self._attempt.succeeded()
        return chunk

    async def _lost(self, failure: CallFailed) -> None:
        if self._closed:
            return
        self._call = None
        await asyncio.sleep(self._attempt.failed(failure))

    async def _finish(self) -> None:
        """Lets the server end the call by itself, so that it does not count as cancelled there."""
        if self._closed or self._call is None:
            return
        try:
            await self._call.read()
        except grpc.RpcError:
            self._closed = True  # the last message is here; how the connection fared afterwards changes nothing
