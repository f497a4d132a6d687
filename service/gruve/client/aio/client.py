"""The client for asyncio: one method for each thing that a server can do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack, overload

from gruve.client.aio.calls import Calls
from gruve.client.aio.control import AsyncControl
from gruve.client.aio.stream import AsyncConversation, AsyncTokenStream
from gruve.client.aio.transport import Transport
from gruve.client.completions import Prompts, arranged, completion_requests
from gruve.client.connection import (
    DEFAULT_ADDRESS,
    KEEPALIVE_S,
    Attempt,
    ChannelOptions,
    ClientOptions,
    Connections,
)
from gruve.client.credentials import Access, Credentials, GivenMetadata
from gruve.client.environment import Environment
from gruve.client.messages import (
    CompletionOptions,
    GenerateOptions,
    Text,
    add_page,
    create_request,
    fork_request,
    generate_request,
    import_request,
    lists_options,
    request_of,
    rewind_session_request,
    score_request,
)
from gruve.client.resume import Resumption
from gruve.client.retry import OnReconnect, Reconnect
from gruve.client.steering import WINDOW, Steering
from gruve.v1 import generation_pb2, model_pb2, session_pb2


class AsyncClient:
    """A client of the servers at `addresses`, which serve the same models. It belongs to one event loop.

    `addresses` is one gRPC target ("host:port", or a name of several servers, such as "dns:///gruve:50051") or a list
    of targets; the one that answered last is used until it fails. `reconnect` is the retry policy: a call is made again
    if its connection is lost or the server asks for a retry. `on_reconnect` receives a `Reconnecting` event before each
    retry and a `Reconnected` event after it. `keepalive_s` is the silence after which a connection is pinged, at least
    10, because servers close connections that ping more often.

    `credentials` is a `Tls` or gRPC's own; without it the connections are not encrypted. A `Tls` is read again if its
    files have changed when a connection is lost. `metadata` is sent with each call, such as
    `{"authorization": "Bearer gruve_..."}`; a function is called for each call, for tokens that expire. Names are in
    lower case and values are printable ASCII, anything else is a `ValueError`.
    `interceptors` are gRPC's, for this kind of client; `channel_options` are gRPC's channel arguments.

    Every method takes `timeout_s`, which bounds its retries as well, and raises a subclass of `CallFailed`.
    """

    def __init__(
        self,
        addresses: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        reconnect: Reconnect | None = None,
        keepalive_s: float = KEEPALIVE_S,
        on_reconnect: OnReconnect | None = None,
        credentials: Credentials | None = None,
        metadata: GivenMetadata | Callable[[], GivenMetadata] = (),
        interceptors: Sequence[Any] = (),
        channel_options: ChannelOptions = (),
    ) -> None:
        self._transport = Transport()
        access = Access(credentials, metadata, interceptors)
        self._connections = Connections(
            addresses, self._transport.connect, reconnect, keepalive_s, on_reconnect, access, channel_options
        )
        self._calls = Calls(self._transport, self._connections)

    @classmethod
    def from_env(cls, **options: Unpack[ClientOptions]) -> Self:
        """A client as the environment describes it, by the variables that the commands read as well.

        GRUVE_ADDRESS (one, or several with commas between), GRUVE_TLS=1, GRUVE_CA, GRUVE_CERT and GRUVE_CERT_KEY,
        GRUVE_API_KEY or GRUVE_API_KEY_FILE, GRUVE_TENANT. Without them it connects to localhost:50051. Raises
        `ValueError` for a value that cannot be used, and `OSError` for a file that cannot be read. A key in a file is
        read once, here.
        """
        given = Environment.read()
        return cls(given.addresses, credentials=given.credentials, metadata=given.metadata, **options)

    @overload
    async def complete(
        self,
        prompt: str | None = None,
        *,
        model: str,
        n: None = None,
        timeout_s: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> str: ...

    @overload
    async def complete(
        self,
        prompt: str | None = None,
        *,
        model: str,
        n: int,
        timeout_s: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> list[str]: ...

    @overload
    async def complete(
        self,
        prompt: Prompts,
        *,
        model: str,
        n: None = None,
        timeout_s: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> list[str]: ...

    @overload
    async def complete(
        self,
        prompt: Prompts,
        *,
        model: str,
        n: int,
        timeout_s: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> list[list[str]]: ...

    @lists_options(CompletionOptions)
    async def complete(
        self,
        prompt: str | Prompts | None = None,
        *,
        model: str,
        n: int | None = None,
        timeout_s: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> str | list[str] | list[list[str]]:
        """Generates the text that follows a prompt, and returns it when it is finished.

        With `n` it returns a list of that many texts. For a list of prompts it returns a list with the text of each,
        or with `n` a list of lists. They are generated at the same time, at most 64 at once. If one fails, the others
        are cancelled and its exception is raised. `timeout_s` bounds all of them together. A generation that the server
        refuses for now, because of a limit, waits for its turn as long as the others make progress.

        `seed` is the seed of the first text of each prompt, `seed + 1` that of the second one, and so on (modulo
        2^64), so that each text is the one that `seed + i` gives alone. Without it the server draws each seed.
        """
        whole = Attempt(self._connections, timeout_s)
        streams = (
            AsyncTokenStream(
                self._transport, whole.beside(), Resumption(generate_request(text, model, None, False, own))
            )
            for text, own in completion_requests(prompt, n, options)
        )
        return arranged(await self._transport.texts(streams), prompt, n)

    @lists_options(GenerateOptions)
    def generate(
        self,
        prompt: Text | None = None,
        *,
        model: str | None = None,
        session_id: str | None = None,
        new_session: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTokenStream:
        """Generates tokens after a prompt: with a model, in a new session of it, or in the session of an id.

        Give `model` or `session_id`. With `new_session` the server keeps the model's generation as a session. The
        options are those of `GenerateOptions`. The stream continues without a gap after lost connections and server
        restarts. Nothing is sent before it is first read.
        """
        resumption = Resumption(
            generate_request(prompt, model, session_id, new_session, options), allow_gaps="generation_id" in options
        )
        return AsyncTokenStream(self._transport, Attempt(self._connections, timeout_s), resumption)

    @lists_options(GenerateOptions)
    def converse(
        self,
        prompt: Text | None = None,
        *,
        model: str | None = None,
        session_id: str | None = None,
        new_session: bool = False,
        window: int | None = WINDOW,
        credit: int | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncConversation:
        """Generates as `generate` does, and lets the reader steer meanwhile; see the protocol's Converse.

        The server never sends more tokens than the reader has room for: `window` of them, from 1 to 65,536, refilled as
        they are read. With `window=None` it sends at most `credit` tokens and those that `grant` adds.
        """
        request = generate_request(prompt, model, session_id, new_session, options)
        return AsyncConversation(
            self._transport, Attempt(self._connections, timeout_s), Steering(request, window, credit)
        )

    def control(
        self, generation_id: str, *, session_id: str | None = None, timeout_s: float | None = None
    ) -> AsyncControl:
        """Steers a generation that a conversation streams, whichever client reads it.

        Generation and session are those that `start` of the conversation reports. With several addresses, each is asked
        until one streams the generation. `timeout_s` bounds each call.
        """
        return AsyncControl(self._calls.control, generation_id, session_id or "", timeout_s)

    async def score(
        self,
        content: Text,
        *,
        model: str,
        window_tokens: int | None = None,
        logprobs: int | None = None,
        timeout_s: float | None = None,
    ) -> generation_pb2.ScoreResponse:
        """Measures the log probability of a text under a model."""
        request = score_request(content, model, window_tokens, logprobs)
        response: generation_pb2.ScoreResponse = await self._calls.call(
            lambda s: s.generations.Score, request, timeout_s
        )
        return response

    async def create_session(
        self, model: str, *, idle_ttl_s: float | None = None, timeout_s: float | None = None
    ) -> session_pb2.Session:
        """Creates a session."""
        request = create_request(model, idle_ttl_s)
        response = await self._calls.call(lambda s: s.sessions.CreateSession, request, timeout_s)
        session: session_pb2.Session = response.session
        return session

    async def get_session(
        self, session_id: str, *, transcript: bool = True, timeout_s: float | None = None
    ) -> session_pb2.GetSessionResponse:
        """Describes a session and reads its transcript; without `transcript` only the description."""
        request = request_of(session_pb2.GetSessionRequest, session_id=session_id, page_size=None if transcript else 0)
        whole: session_pb2.GetSessionResponse = await self._calls.call(
            lambda s: s.sessions.GetSession, request, timeout_s
        )
        while transcript and whole.next_page_token:
            request.page_token = whole.next_page_token
            add_page(whole, await self._calls.call(lambda s: s.sessions.GetSession, request, timeout_s))
        return whole

    async def list_sessions(
        self, model: str = "", *, timeout_s: float | None = None
    ) -> AsyncIterator[session_pb2.Session]:
        """Lists the sessions of a model, or of all models, the newest first. Reads one page at a time."""
        request = request_of(session_pb2.ListSessionsRequest, model=model)
        while True:
            page = await self._calls.call(lambda s: s.sessions.ListSessions, request, timeout_s)
            for session in page.sessions:
                yield session
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete_session(self, session_id: str, *, timeout_s: float | None = None) -> None:
        """Deletes a session. It cannot be restored."""
        request = request_of(session_pb2.DeleteSessionRequest, session_id=session_id)
        await self._calls.call(lambda s: s.sessions.DeleteSession, request, timeout_s, done_before="SESSION_EXPIRED")

    async def fork_session(
        self, session_id: str, seeds: Sequence[int | None] = (None,), *, timeout_s: float | None = None
    ) -> list[session_pb2.Session]:
        """Copies a session once for each of `seeds`, from which the copies continue; the server draws a seed for None.

        A lost call is not made again, because the server may have made the copies.
        """
        request = fork_request(session_id, seeds)
        # Finds a server that answers before the call that cannot be repeated.
        await self.get_session(session_id, transcript=False, timeout_s=timeout_s)
        return list((await self._calls.call(lambda s: s.sessions.ForkSession, request, timeout_s, once=True)).sessions)

    async def rewind_session(
        self, session_id: str, to_position: int, *, seed: int | None = None, timeout_s: float | None = None
    ) -> session_pb2.Session:
        """Removes the tokens of a session from a position on."""
        request = rewind_session_request(session_id, to_position, seed)
        response = await self._calls.call(lambda s: s.sessions.RewindSession, request, timeout_s)
        rewound: session_pb2.Session = response.session
        return rewound

    async def export_session(self, session_id: str, *, timeout_s: float | None = None) -> bytes:
        """Packs a session into bytes that `import_session` takes."""
        request = request_of(session_pb2.ExportSessionRequest, session_id=session_id)
        blob: bytes = (await self._calls.call(lambda s: s.sessions.ExportSession, request, timeout_s)).blob
        return blob

    async def import_session(
        self, blob: bytes, *, idle_ttl_s: float | None = None, timeout_s: float | None = None
    ) -> session_pb2.Session:
        """Creates a session from an exported one."""
        request = import_request(blob, idle_ttl_s)
        response = await self._calls.call(lambda s: s.sessions.ImportSession, request, timeout_s)
        session: session_pb2.Session = response.session
        return session

    async def models(self, *, timeout_s: float | None = None) -> list[model_pb2.Model]:
        """Lists the server's models in the order of their names, including those that failed their checks."""
        request = model_pb2.ListModelsRequest()
        models: list[model_pb2.Model] = []
        while True:
            page = await self._calls.call(lambda s: s.models.ListModels, request, timeout_s)
            models += page.models
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    async def get_model(self, name: str, *, timeout_s: float | None = None) -> model_pb2.Model:
        """Describes a model, or with `name@2` or `name@sha256:...` a version of it; a broken one with the reason."""
        request = request_of(model_pb2.GetModelRequest, name=name)
        model: model_pb2.Model = (await self._calls.call(lambda s: s.models.GetModel, request, timeout_s)).model
        return model

    async def reload_model(self, name: str, *, timeout_s: float | None = None) -> model_pb2.Model:
        """Has the server read a model's files again and serve what they hold now; describes the result.

        Raises `ReloadRefused` if the files cannot be loaded; then the server serves what it served before.
        """
        request = request_of(model_pb2.ReloadModelRequest, name=name)
        model: model_pb2.Model = (await self._calls.call(lambda s: s.models.ReloadModel, request, timeout_s)).model
        return model

    async def tokenize(self, text: str, *, model: str, timeout_s: float | None = None) -> list[int]:
        """Tokenizes a text as a prompt would be."""
        request = request_of(model_pb2.TokenizeRequest, model=model, text=text)
        return list((await self._calls.call(lambda s: s.models.Tokenize, request, timeout_s)).token_ids)

    async def detokenize(self, token_ids: Sequence[int], *, model: str, timeout_s: float | None = None) -> str:
        """Returns the text of tokens."""
        request = request_of(model_pb2.DetokenizeRequest, model=model, token_ids=token_ids)
        text: str = (await self._calls.call(lambda s: s.models.Detokenize, request, timeout_s)).text
        return text

    async def close(self) -> None:
        """Closes the connections. Calls that still run raise `Cancelled`."""
        await self._transport.close(self._connections.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
