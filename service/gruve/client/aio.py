"""The client for asyncio; the same as the sync one, method for method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from gruve.client.connection import DEFAULT_ADDRESS, KEEPALIVE_S, Attempt, Connections, Stubs
from gruve.client.errors import CallFailed, ConnectionLost, failure_of
from gruve.client.messages import (
    GenerateOptions,
    SamplingOptions,
    Text,
    add_page,
    change_request,
    create_request,
    fork_request,
    generate_request,
    import_request,
    insert_request,
    rewind_request,
    rewind_session_request,
    score_request,
    steer_request,
)
from gruve.client.resume import Chunk, Resumption, cut_short
from gruve.client.retry import OnReconnect, Reconnect
from gruve.client.steering import WINDOW, Steering
from gruve.v1 import generation_pb2, model_pb2, session_pb2


class AsyncClient:
    """Calls the servers at `addresses` from one event loop; see `Client`."""

    def __init__(
        self,
        addresses: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        reconnect: Reconnect | None = None,
        keepalive_s: float = KEEPALIVE_S,
        on_reconnect: OnReconnect | None = None,
    ) -> None:
        self._connections = Connections(addresses, grpc.aio.insecure_channel, reconnect, keepalive_s, on_reconnect)

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
        resumption = Resumption(
            generate_request(prompt, model, session, new_session, options), allow_gaps="generation_id" in options
        )
        return AsyncTokenStream(Attempt(self._connections, timeout_s), resumption)

    def converse(
        self,
        prompt: Text | None = None,
        *,
        model: str | None = None,
        session: str | None = None,
        new_session: bool = False,
        window: int | None = WINDOW,
        credit: int | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncConversation:
        """Generates and lets the reader steer while it reads; see `Client.converse`."""
        request = generate_request(prompt, model, session, new_session, options)
        return AsyncConversation(Attempt(self._connections, timeout_s), Steering(request, window, credit))

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

    async def fork_session(
        self, session: str, seeds: Sequence[int | None] = (None,), *, timeout_s: float | None = None
    ) -> list[session_pb2.Session]:
        """Copies a session once for each of `seeds`, with which the copies go on; None has the server draw one.

        A call that is lost is not made again, for it may have made the copies.
        """
        await self.get_session(session, transcript=False, timeout_s=timeout_s)  # finds a server that answers
        request = fork_request(session, seeds)
        return list((await self._call(lambda s: s.sessions.ForkSession, request, timeout_s, once=True)).sessions)

    async def rewind_session(
        self, session: str, to_position: int, *, seed: int | None = None, timeout_s: float | None = None
    ) -> session_pb2.Session:
        """Takes back the tokens of a session from a position on."""
        request = rewind_session_request(session, to_position, seed)
        response = await self._call(lambda s: s.sessions.RewindSession, request, timeout_s)
        rewound: session_pb2.Session = response.session
        return rewound

    async def export_session(self, session: str, *, timeout_s: float | None = None) -> bytes:
        """Packs a session into bytes that `import_session` takes."""
        request = session_pb2.ExportSessionRequest(session_id=session)
        blob: bytes = (await self._call(lambda s: s.sessions.ExportSession, request, timeout_s)).blob
        return blob

    async def import_session(
        self, blob: bytes, *, idle_ttl_s: float | None = None, timeout_s: float | None = None
    ) -> session_pb2.Session:
        """Creates a session from an exported one."""
        request = import_request(blob, idle_ttl_s)
        response = await self._call(lambda s: s.sessions.ImportSession, request, timeout_s)
        session: session_pb2.Session = response.session
        return session

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
        self,
        rpc: Callable[[Stubs], Any],
        request: Any,
        timeout_s: float | None,
        done_before: str | None = None,
        *,
        once: bool = False,
    ) -> Any:
        """Calls an rpc with one answer; the reason `done_before` says that a call that was lost was carried out.

        `once` says that it may not be carried out twice, so that a call whose outcome nobody knows is not made again.
        """
        attempt = Attempt(self._connections, timeout_s)
        while True:
            try:
                response = await rpc(attempt.stubs())(request, timeout=attempt.remaining_s())
            except (grpc.RpcError, asyncio.CancelledError) as error:
                failure = _failure_of(error)
                if attempt.lost and failure.reason == done_before:
                    return None
                if once and failure.connection_lost:
                    raise failure from error
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
    return ConnectionLost(grpc.StatusCode.CANCELLED, "the call was cancelled")


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
                self._call = self._open()
            response = await self._call.read()
        except (grpc.RpcError, asyncio.CancelledError) as error:
            await self._lost(_failure_of(error))
            return None
        if not isinstance(response, generation_pb2.GenerateResponse | generation_pb2.ConverseResponse):
            await self._lost(cut_short())
            return None
        first = self._resumption.start is None
        chunk = self._take(response)
        if first or chunk is not None:
            self._attempt.succeeded()
        return chunk

    def _open(self) -> Any:
        """The call that goes on where the one before was lost."""
        generate = self._attempt.stubs().generations.Generate
        return generate(self._resumption.next_request(), timeout=self._attempt.remaining_s())

    def _take(self, response: Any) -> Chunk | None:
        return self._resumption.receive(response)

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


class AsyncConversation(AsyncTokenStream):
    """The tokens of one generation as they are made, and what steers it meanwhile; see `Conversation`."""

    def __init__(self, attempt: Attempt, steering: Steering) -> None:
        super().__init__(attempt, steering)
        self._steering = steering
        self._requests: asyncio.Queue[generation_pb2.ConverseRequest | None] | None = None

    def change(self, *, at_position: int | None = None, **sampling: Unpack[SamplingOptions]) -> int:
        """Changes how tokens are chosen, from the next token on that was not yet sent, or from a position on.

        Returns the control's id, as the other methods do that steer; the stream says by it what became of the control.
        """
        return self._say(change_request(sampling, at_position))

    def insert(self, prompt: Text, *, at_position: int | None = None) -> int:
        """Has the model read something before it goes on."""
        return self._say(insert_request(prompt, at_position))

    def pause(self, *, at_position: int | None = None) -> int:
        """Holds the generation until `resume`."""
        return self._say(steer_request("pause", at_position))

    def resume(self) -> int:
        """Lets a paused generation go on."""
        return self._say(steer_request("resume", None))

    def rewind(self, to_position: int, *, seed: int | None = None) -> int:
        """Takes back the tokens from a position on and generates others there, with the same seed the same ones."""
        return self._say(rewind_request(to_position, seed))

    def stop(self, *, at_position: int | None = None) -> int:
        """Finishes the generation."""
        return self._say(steer_request("stop", at_position))

    def grant(self, tokens: int) -> None:
        """Lets the server send more tokens; only without a window."""
        self._steering.grant(tokens)
        self._send()

    async def __anext__(self) -> Chunk:
        self._steering.refill()
        self._send()
        return await super().__anext__()

    def close(self) -> None:
        """Cancels the generation, unless it has ended."""
        super().close()
        self._hang_up()

    def _say(self, request: generation_pb2.ConverseRequest) -> int:
        control_id = self._steering.say(request)
        self._send()
        return control_id

    def _send(self) -> None:
        """Sends what is to be sent, if there is a call; the next one begins with it otherwise."""
        while self._requests is not None and self._steering.outgoing:
            self._requests.put_nowait(self._steering.outgoing.popleft())

    def _open(self) -> Any:
        converse = self._attempt.stubs().generations.Converse
        self._requests = asyncio.Queue()
        for request in self._steering.first_messages():
            self._requests.put_nowait(request)
        return converse(_said(self._requests), timeout=self._attempt.remaining_s())

    def _take(self, response: Any) -> Chunk | None:
        chunk = self._steering.take(response)
        self._send()
        return chunk

    async def _lost(self, failure: CallFailed) -> None:
        self._hang_up()
        await super()._lost(failure)

    async def _finish(self) -> None:
        await super()._finish()
        self._hang_up()

    def _hang_up(self) -> None:
        """Lets go of the task in which gRPC waits for what is said next."""
        requests, self._requests = self._requests, None
        if requests is not None:
            requests.put_nowait(None)


async def _said(
    requests: asyncio.Queue[generation_pb2.ConverseRequest | None],
) -> AsyncIterator[generation_pb2.ConverseRequest]:
    while (request := await requests.get()) is not None:
        yield request
