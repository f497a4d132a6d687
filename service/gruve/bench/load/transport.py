"""The transports of the load generator: they send a request and collect raw messages, which are parsed afterwards.

There is one for gruve and other servers of its protocol, one for streams over HTTP/1.1, and one for Triton's gRPC
streams. Knows nothing about timing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined] # its stubs lack it

from gruve.v1 import generation_pb2, sampling_pb2, session_pb2

GENERATE = "/gruve.v1.GenerationService/Generate"
DELETE = "/gruve.v1.SessionService/DeleteSession"
LIMIT_BYTES = 1 << 20
CHANNELS = 4
"""The connections of one client process to a gRPC server."""


class Refused(Exception):
    """The server ended the request with an error."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and a number of tokens to generate at temperature 1."""

    model: str
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    session: str = ""
    """The session to continue; empty for a new one."""
    keep: bool = False
    """Whether to keep a session, in systems that have sessions."""


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """A parsed message."""

    tokens: tuple[int, ...]
    session: str = ""


class Transport(Protocol):
    """A connection to one server, shared by the streams of one process."""

    async def open(self) -> None:
        """Connects."""

    def stream(self, request: Request) -> AsyncIterator[bytes]:
        """Sends a request and yields its raw messages; raises `Refused`."""

    def read(self, raw: bytes) -> Message:
        """Parses a message; called after the run."""

    async def delete_session(self, session: str) -> None:
        """Deletes a session."""

    async def close(self) -> None:
        """Disconnects."""


class GruveTransport:
    """gRPC with raw bytes, round-robin over several connections."""

    def __init__(
        self,
        target: str,
        api_key: str = "",
        timeout_s: float | None = None,
        ca: bytes | None = None,
    ) -> None:
        """`api_key` is sent with each call if it is not empty; `timeout_s` is each generation's deadline.

        With `ca`, the certificate of an authority, it connects with TLS.
        """
        self._ca = ca
        self._target = target
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._timeout_s = timeout_s
        self._channels: list[Any] = []
        self._turns: Any = None

    async def open(self) -> None:
        """Opens the channels."""
        self._channels = await _open_channels(self._target, self._ca)
        self._turns = itertools.cycle([channel.unary_stream(GENERATE) for channel in self._channels])

    async def stream(self, request: Request) -> AsyncIterator[bytes]:
        """One Generate call."""
        call = next(self._turns)(generate_request(request), timeout=self._timeout_s, metadata=self._metadata)
        try:
            while (raw := await call.read()) is not EOF:
                yield raw
            code = await call.code()
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code().name) from None
        if code is not grpc.StatusCode.OK:
            raise Refused(code.name)

    def read(self, raw: bytes) -> Message:
        """A GenerateResponse."""
        message = generation_pb2.GenerateResponse.FromString(raw)
        return Message(tuple(message.token_ids), message.start.session_id)

    async def delete_session(self, session: str) -> None:
        """DeleteSession."""
        request = session_pb2.DeleteSessionRequest(session_id=session).SerializeToString()
        await self._channels[0].unary_unary(DELETE)(request, metadata=self._metadata)

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()


async def _open_channels(target: str, ca: bytes | None = None) -> list[Any]:
    """Opens the channels. Each has a subchannel pool of its own; otherwise they would share one connection."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    if ca is None:
        channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(CHANNELS)]
    else:
        credentials = grpc.ssl_channel_credentials(ca)
        channels = [grpc.aio.secure_channel(target, credentials, options=options) for _ in range(CHANNELS)]
    for channel in channels:
        await channel.channel_ready()
    return channels


def connect(
    target: str, api_key: str = "", timeout_s: float | None = None, ca: bytes | None = None
) -> functools.partial[GruveTransport]:
    """Returns a factory of `GruveTransport`, which can be pickled and sent to a client process."""
    return functools.partial(GruveTransport, target, api_key, timeout_s, ca)


class HttpTransport:
    """POST with a chunked answer over persistent connections. Implements only this part of HTTP/1.1."""

    def __init__(
        self,
        host: str,
        port: int,
        path: str,
        body: Callable[[Request], bytes],
        tokens: Callable[[bytes], tuple[int, ...]],
        content_type: str = "application/json",
    ) -> None:
        """`body` makes the body of a request; `tokens` parses one chunk."""
        self._host, self._port, self._path = host, port, path
        self._body, self._tokens, self._content_type = body, tokens, content_type
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def open(self) -> None:
        """Connections are opened when they are needed."""

    async def stream(self, request: Request) -> AsyncIterator[bytes]:
        """One POST. The connection is reused if the answer ended normally and the server does not close it."""
        reader, writer = await self._connection()
        body = self._body(request)
        head = f"POST {self._path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: {self._content_type}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        try:
            header = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b" 200 " not in header.split(b"\r\n", 1)[0] or b"transfer-encoding: chunked" not in header:
                raise Refused(header.split(b"\r\n", 1)[0].decode(errors="replace"))
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                yield (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        except (OSError, asyncio.IncompleteReadError) as error:
            writer.close()
            raise Refused(type(error).__name__) from None
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))

    def read(self, raw: bytes) -> Message:
        """One chunk."""
        return Message(self._tokens(raw))

    async def delete_session(self, session: str) -> None:
        """Does nothing: there are no sessions."""

    async def close(self) -> None:
        """Closes the idle connections."""
        for _, writer in self._idle:
            writer.close()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        try:
            return await asyncio.open_connection(self._host, self._port, limit=LIMIT_BYTES)
        except OSError as error:
            raise Refused(type(error).__name__) from None


class TritonTransport:
    """Triton's ModelStreamInfer: one gRPC stream for each client, one response for each token.

    The few messages are encoded by hand, because a cheaper client favours the server that it measures.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._channels: list[Any] = []
        self._idle: list[Any] = []
        self._turns: Any = None

    async def open(self) -> None:
        """Opens the channels."""
        self._channels = await _open_channels(self._target)
        method = "/inference.GRPCInferenceService/ModelStreamInfer"
        self._turns = itertools.cycle([channel.stream_stream(method) for channel in self._channels])

    async def stream(self, request: Request) -> AsyncIterator[bytes]:
        """One request. Its stream is reused."""
        call = self._idle.pop() if self._idle else next(self._turns)()
        try:
            await call.write(_infer_request(request))
            for _ in range(request.max_tokens):
                raw = await call.read()
                if raw is EOF or raw[:1] == ERROR_MESSAGE:
                    raise Refused("the stream ended" if raw is EOF else raw[2:200].decode(errors="replace"))
                yield raw
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code().name) from None
        except BaseException:
            call.cancel()
            raise
        self._idle.append(call)

    def read(self, raw: bytes) -> Message:
        """A ModelStreamInferResponse: its last field is the output's bytes, one int32."""
        return Message(struct.unpack("<i", raw[-4:]))

    async def delete_session(self, session: str) -> None:
        """Does nothing: sequences end with their request."""

    async def close(self) -> None:
        """Closes streams and channels."""
        for call in self._idle:
            call.cancel()
        for channel in self._channels:
            await channel.close()


ERROR_MESSAGE = b"\x0a"
"""The tag of ModelStreamInferResponse.error_message; a response begins with another."""


def generate_request(request: Request) -> bytes:
    """The GenerateRequest of a request."""
    message = generation_pb2.GenerateRequest(
        tokens=sampling_pb2.TokenIds(ids=request.prompt) if request.prompt else None, max_tokens=request.max_tokens
    )
    if request.session:
        message.session_id = request.session
        return bytes(message.SerializeToString())
    if request.keep:
        message.new_session.model = request.model
    else:
        message.model = request.model
    message.sampling.temperature = 1.0
    message.sampling.seed = request.seed
    return bytes(message.SerializeToString())


def _infer_request(request: Request) -> bytes:
    """ModelInferRequest: model_name 1, inputs 5 (name 1, datatype 2, shape 3), raw_input_contents 7."""
    values: Sequence[tuple[bytes, Sequence[int]]] = (
        (b"prompt", request.prompt),
        (b"max_tokens", (request.max_tokens,)),
        (b"seed", (request.seed & 0x7FFFFFFF,)),
    )
    inputs = b"".join(
        _field(5, _field(1, name) + _field(2, b"INT32") + _field(3, _varint(1) + _varint(len(value))))
        for name, value in values
    )
    contents = b"".join(_field(7, struct.pack(f"<{len(value)}i", *value)) for _, value in values)
    return _field(1, request.model.encode()) + inputs + contents


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
