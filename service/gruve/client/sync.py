"""The client for plain threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from gruve.client.connection import DEFAULT_ADDRESS, KEEPALIVE_S, Attempt, Connections, Stubs
from gruve.client.errors import CallFailed, failure_of
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

CLOSE_WITHIN_S = 2.0
"""How long closing waits for gRPC to let go of a connection."""


class Client:
    """Calls the servers at `addresses`, which serve the same models; may be shared by threads.

    `addresses` is one gRPC target ("host:port", or a name of several servers, such as "dns:///gruve:50051") or a list
    of them, of which the one that answered last is used until it fails. Every method raises `CallFailed` when the call
    did not succeed; connections that are lost and servers that are busy are tried again before, as `reconnect` says,
    and `timeout_s` bounds all of it. `on_reconnect` is called with each retry and when a call went on after one.
    """

    def __init__(
        self,
        addresses: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        reconnect: Reconnect | None = None,
        keepalive_s: float = KEEPALIVE_S,
        on_reconnect: OnReconnect | None = None,
    ) -> None:
        self._connections = Connections(addresses, grpc.insecure_channel, reconnect, keepalive_s, on_reconnect)
        self._closed = threading.Event()

    def generate(
        self,
        prompt: Text | None = None,
        *,
        model: str | None = None,
        session: str | None = None,
        new_session: bool = False,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TokenStream:
        """Continues a prompt with a model, or a session by its id; `new_session` keeps the model's as a new one.

        The stream is unbroken, whatever happens to connections and servers in between. Nothing is sent before it is
        first read.
        """
        resumption = Resumption(
            generate_request(prompt, model, session, new_session, options), allow_gaps="generation_id" in options
        )
        return TokenStream(Attempt(self._connections, timeout_s), resumption, self._closed)

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
    ) -> Conversation:
        """Generates as `generate` does, and lets the reader steer while it reads; see the contract's Converse.

        The server never sends more tokens than the reader has room for: `window` of them, refilled as they are read.
        Without a window it may send `credit` and then what `grant` allows.
        """
        request = generate_request(prompt, model, session, new_session, options)
        return Conversation(Attempt(self._connections, timeout_s), Steering(request, window, credit), self._closed)

    def score(
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
        response: generation_pb2.ScoreResponse = self._call(lambda s: s.generations.Score, request, timeout_s)
        return response

    def create_session(
        self, model: str, *, idle_ttl_s: float | None = None, timeout_s: float | None = None
    ) -> session_pb2.Session:
        """Creates a session."""
        request = create_request(model, idle_ttl_s)
        session: session_pb2.Session = self._call(lambda s: s.sessions.CreateSession, request, timeout_s).session
        return session

    def get_session(
        self, session: str, *, transcript: bool = True, timeout_s: float | None = None
    ) -> session_pb2.GetSessionResponse:
        """Describes a session and, unless told otherwise, reads its whole transcript."""
        request = session_pb2.GetSessionRequest(session_id=session, page_size=None if transcript else 0)
        whole: session_pb2.GetSessionResponse = self._call(lambda s: s.sessions.GetSession, request, timeout_s)
        while transcript and whole.next_page_token:
            request.page_token = whole.next_page_token
            add_page(whole, self._call(lambda s: s.sessions.GetSession, request, timeout_s))
        return whole

    def list_sessions(self, model: str = "", *, timeout_s: float | None = None) -> Iterator[session_pb2.Session]:
        """Lists the sessions of a model, or of all, the latest created first; page by page as they are read."""
        request = session_pb2.ListSessionsRequest(model=model)
        while True:
            page = self._call(lambda s: s.sessions.ListSessions, request, timeout_s)
            yield from page.sessions
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def delete_session(self, session: str, *, timeout_s: float | None = None) -> None:
        """Deletes a session for good."""
        request = session_pb2.DeleteSessionRequest(session_id=session)
        self._call(lambda s: s.sessions.DeleteSession, request, timeout_s, done_before="SESSION_EXPIRED")

    def fork_session(
        self, session: str, seeds: Sequence[int | None] = (None,), *, timeout_s: float | None = None
    ) -> list[session_pb2.Session]:
        """Copies a session once for each of `seeds`, with which the copies go on; None has the server draw one.

        A call that is lost is not made again, for it may have made the copies.
        """
        self.get_session(session, transcript=False, timeout_s=timeout_s)  # finds a server that answers
        request = fork_request(session, seeds)
        return list(self._call(lambda s: s.sessions.ForkSession, request, timeout_s, once=True).sessions)

    def rewind_session(
        self, session: str, to_position: int, *, seed: int | None = None, timeout_s: float | None = None
    ) -> session_pb2.Session:
        """Takes back the tokens of a session from a position on."""
        request = rewind_session_request(session, to_position, seed)
        response = self._call(lambda s: s.sessions.RewindSession, request, timeout_s)
        rewound: session_pb2.Session = response.session
        return rewound

    def export_session(self, session: str, *, timeout_s: float | None = None) -> bytes:
        """Packs a session into bytes that `import_session` takes."""
        request = session_pb2.ExportSessionRequest(session_id=session)
        blob: bytes = self._call(lambda s: s.sessions.ExportSession, request, timeout_s).blob
        return blob

    def import_session(
        self, blob: bytes, *, idle_ttl_s: float | None = None, timeout_s: float | None = None
    ) -> session_pb2.Session:
        """Creates a session from an exported one."""
        request = import_request(blob, idle_ttl_s)
        response = self._call(lambda s: s.sessions.ImportSession, request, timeout_s)
        session: session_pb2.Session = response.session
        return session

    def models(self, *, timeout_s: float | None = None) -> list[model_pb2.Model]:
        """Lists the server's models, broken ones included, in the order of their names."""
        request = model_pb2.ListModelsRequest()
        return list(self._call(lambda s: s.models.ListModels, request, timeout_s).models)

    def tokenize(self, text: str, *, model: str, timeout_s: float | None = None) -> list[int]:
        """Cuts a text into tokens as a prompt would be cut."""
        request = model_pb2.TokenizeRequest(model=model, text=text)
        return list(self._call(lambda s: s.models.Tokenize, request, timeout_s).token_ids)

    def detokenize(self, token_ids: Sequence[int], *, model: str, timeout_s: float | None = None) -> str:
        """Joins tokens into their text."""
        request = model_pb2.DetokenizeRequest(model=model, token_ids=token_ids)
        text: str = self._call(lambda s: s.models.Detokenize, request, timeout_s).text
        return text

    def close(self) -> None:
        """Closes the connections; what is still running ends with CANCELLED."""
        channels = self._connections.close()
        self._closed.set()
        # gRPC waits for every call it has begun, and for ever where Ctrl-C tore one out of its hands.
        closing = [threading.Thread(target=channel.close, daemon=True) for channel in channels]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(CLOSE_WITHIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
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
                response = rpc(attempt.stubs())(request, timeout=attempt.remaining_s())
            except grpc.RpcError as error:
                failure = failure_of(error)
                if attempt.lost and failure.reason == done_before:
                    return None
                if once and failure.connection_lost:
                    raise failure from error
                self._closed.wait(attempt.failed(failure))
            else:
                attempt.succeeded()
                return response


class TokenStream(Iterator[Chunk]):
    """The tokens of one generation as they are made.

    It is read by one thread. `close`, which any thread may call, cancels the generation and ends the iteration; so does
    dropping the stream, or leaving its `with` block.
    """

    def __init__(self, attempt: Attempt, resumption: Resumption, client_closed: threading.Event) -> None:
        self._attempt = attempt
        self._resumption = resumption
        self._client_closed = client_closed
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

    def text(self) -> str:
        """The rest of the stream as one text."""
        return "".join(chunk.text for chunk in self)

    def __next__(self) -> Chunk:
        try:
            while not self._closed and self._resumption.end is None:
                chunk = self._receive()
                if chunk is not None:
                    return chunk
        except CallFailed:
            self.close()
            raise
        self._finish()
        raise StopIteration

    def close(self) -> None:
        """Cancels the generation, unless it has ended."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> Chunk | None:
        """Reads the next message, from a new call if there is none; waits if the call was lost."""
        try:
            if self._call is None:
                self._call = self._open()
            response = next(self._call, None)
        except grpc.RpcError as error:
            self._lost(failure_of(error))
            return None
        if response is None:
            self._lost(cut_short())
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

    def _lost(self, failure: CallFailed) -> None:
        if self._closed:
            return
        self._call = None
        self._client_closed.wait(self._attempt.failed(failure))

    def _finish(self) -> None:
        """Lets the server end the call by itself, so that it does not count as cancelled there."""
        if self._closed or self._call is None:
            return
        try:
            next(self._call, None)
        except grpc.RpcError:
            self._closed = True  # the last message is here; how the connection fared afterwards changes nothing


class Conversation(TokenStream):
    """The tokens of one generation as they are made, and what steers it meanwhile, from any thread.

    Among the chunks are answers to what was said (see `Chunk.answer`), each where it took effect: the next tokens have
    the position that it names, and replace those that were read before with that position or a later one.
    """

    def __init__(self, attempt: Attempt, steering: Steering, client_closed: threading.Event) -> None:
        super().__init__(attempt, steering, client_closed)
        self._steering = steering
        self._steers = threading.Lock()
        self._requests: queue.SimpleQueue[generation_pb2.ConverseRequest | None] | None = None

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
        with self._steers:
            self._steering.grant(tokens)
            self._send()

    def __next__(self) -> Chunk:
        with self._steers:
            self._steering.refill()
            self._send()
        return super().__next__()

    def close(self) -> None:
        """Cancels the generation, unless it has ended."""
        super().close()
        self._hang_up()

    def __del__(self) -> None:
        self._hang_up()

    def _say(self, request: generation_pb2.ConverseRequest) -> int:
        with self._steers:
            control_id = self._steering.say(request)
            self._send()
        return control_id

    def _send(self) -> None:
        """Sends what is to be sent, if there is a call; the next one begins with it otherwise."""
        while self._requests is not None and self._steering.outgoing:
            self._requests.put(self._steering.outgoing.popleft())

    def _open(self) -> Any:
        converse = self._attempt.stubs().generations.Converse
        requests: queue.SimpleQueue[generation_pb2.ConverseRequest | None] = queue.SimpleQueue()
        with self._steers:
            for request in self._steering.first_messages():
                requests.put(request)
            self._requests = requests
        return converse(iter(requests.get, None), timeout=self._attempt.remaining_s())

    def _take(self, response: Any) -> Chunk | None:
        with self._steers:
            chunk = self._steering.take(response)
            self._send()
        return chunk

    def _lost(self, failure: CallFailed) -> None:
        self._hang_up()
        super()._lost(failure)

    def _finish(self) -> None:
        super()._finish()
        self._hang_up()

    def _hang_up(self) -> None:
        """Lets go of the thread in which gRPC waits for what is said next."""
        requests, self._requests = self._requests, None
        if requests is not None:
            requests.put(None)
