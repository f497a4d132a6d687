"""Connect and gRPC-Web for every rpc of gruve.v1 that a browser can make, passed on to the servers as gRPC.

Messages, statuses and details are the server's own, unchanged. `connectrpc` has the protocols; here are the methods,
read from the protocol's descriptors, and the calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import Headers, RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import message_factory
from grpc_status import rpc_status
from protobuf.wkt import Any as PackedAny
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

from gruve.client.aio.transport import Transport
from gruve.client.connection import KEEPALIVE_S, Connections
from gruve.client.credentials import Access
from gruve.client.errors import CallFailed, Cancelled, failure_of
from gruve.gateway.caller import caller_metadata
from gruve.gateway.config import GatewayConfig
from gruve.gateway.errors import NO_SERVER, SHUTTING_DOWN, ConnectionClosing, Refused, log_lost, retry_after
from gruve.gateway.forms import error_response
from gruve.v1 import generation_pb2, model_pb2, session_pb2

SERVICES = {
    "generations": generation_pb2.DESCRIPTOR.services_by_name["GenerationService"],
    "sessions": session_pb2.DESCRIPTOR.services_by_name["SessionService"],
    "models": model_pb2.DESCRIPTOR.services_by_name["ModelService"],
}
"""The services by the name of their stub in `gruve.client.connection.Stubs`."""
AnyContext = RequestContext[Any, Any]
CHANNEL_OPTIONS = (("grpc.http2.bdp_probe", 0),)
"""gRPC takes at most 64 KiB of a stream that its client does not read; with windows that grow it takes megabytes."""
ELSEWHERE = "GENERATION_UNKNOWN"
"""The reason with which a server refuses to steer a generation that it does not stream."""
NOT_SENT = "connections to all backends failing"
"""How gRPC's message begins for a call that was not sent, because no connection to its server could be made."""


class Servers:
    """The servers that calls are passed on to: the one that answered last, until its connection is lost."""

    def __init__(self, config: GatewayConfig) -> None:
        self._transport = Transport()
        access = Access(config.credentials, caller_metadata, ())
        self._connections = Connections(
            config.servers, self._transport.connect, None, KEEPALIVE_S, None, access, CHANNEL_OPTIONS
        )

    async def aclose(self) -> None:
        """Closes the connections. Calls that still run end."""
        await self._transport.close(self._connections.close())

    async def unary(self, service: str, method: str, request: Any, context: AnyContext) -> Any:
        """Makes a call with one response. Raises `ConnectError`."""
        for index, last in self._attempts():
            try:
                rpc = self._rpc(index, service, method)
                return await rpc(request, timeout=_timeout_s(context), metadata=caller_metadata())
            except asyncio.CancelledError as error:
                if not self._connections.closed:
                    raise
                raise ConnectError(Code.UNAVAILABLE, SHUTTING_DOWN) from error
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error)
                self._prefer_next(index, failure)
                if last or not may_go_elsewhere(failure):
                    raise connect_error(error, context.response_headers) from error
        raise AssertionError("there is a last attempt")

    async def stream(self, service: str, method: str, request: Any, context: AnyContext) -> AsyncIterator[Any]:
        """Makes a call with a stream of responses; ending the iteration cancels it. Raises `ConnectError`."""
        for index, last in self._attempts():
            rpc = self._rpc(index, service, method)
            call = rpc(request, timeout=_timeout_s(context), metadata=caller_metadata())
            try:
                async for response in call:
                    yield response
                return
            except asyncio.CancelledError as error:
                if not self._connections.closed:
                    raise
                raise ConnectError(Code.UNAVAILABLE, SHUTTING_DOWN) from error
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error)
                self._prefer_next(index, failure)
                if last or not may_go_elsewhere(failure):
                    raise connect_error(error, context.response_headers) from error
            finally:
                call.cancel()

    def _attempts(self) -> list[tuple[int, bool]]:
        """The servers in the order in which one call asks them, and whether each is the last one."""
        first, count = self._connections.preferred, len(self._connections.addresses)
        return [((first + number) % count, number + 1 == count) for number in range(count)]

    def _rpc(self, index: int, service: str, method: str) -> Callable[..., Any]:
        try:
            stubs = self._connections.stubs(index)
        except Cancelled as error:
            raise ConnectError(Code.UNAVAILABLE, SHUTTING_DOWN) from error
        rpc: Callable[..., Any] = getattr(getattr(stubs, service), method)
        return rpc

    def _prefer_next(self, index: int, failure: CallFailed) -> None:
        """Makes later calls begin at the next server, if this one has lost its connection or lacks the generation."""
        connections = self._connections
        if failure.connection_lost:
            connections.lost(index)
        # Of several calls that fail at the same time, only the first one moves on: the others would move back.
        if (failure.connection_lost or failure.reason == ELSEWHERE) and connections.preferred == index:
            connections.preferred = (index + 1) % len(connections.addresses)


def may_go_elsewhere(failure: CallFailed) -> bool:
    """Whether a failed call may be made at the next server.

    It may if it was not sent, and if it steers a generation that another server may stream. A call that was lost on its
    way is the caller's to repeat, because the server may have carried it out.
    """
    return failure.reason == ELSEWHERE or failure.message.startswith(NOT_SENT)


def connect_error(error: grpc.aio.AioRpcError, headers: Headers) -> ConnectError:
    """The status of a call, with its details, as Connect has it.

    If the server asked for a retry, `headers`, those of the answer, get `Retry-After`.
    """
    code, failure = Code(error.code().name.lower().replace("cancelled", "canceled")), failure_of(error)
    headers.update(retry_after(failure))
    if failure.connection_lost:
        log_lost(failure)
        return ConnectError(Code.UNAVAILABLE, NO_SERVER)
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type] # it reads the same as a grpc.Call
    except ValueError:
        status = None
    packed = status.details if status is not None else ()
    details = [ErrorDetail(PackedAny(type_url=each.type_url, value=each.value)) for each in packed]
    return ConnectError(code, error.details() or "", details)


class RpcApp(ConnectASGIApplication[Servers]):
    """The application of all services. Bodies that it cannot take are refused in Connect's form."""

    def __init__(self, servers: Servers, max_body_bytes: int) -> None:
        super().__init__(
            service=servers,
            endpoints=endpoints,
            read_max_bytes=max_body_bytes,
            codecs=(google_protobuf_binary_codec(), google_protobuf_json_codec(ignore_unknown_fields=False)),
        )

    @property
    def path(self) -> str:
        """Where the application is mounted."""
        return "/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        content_type = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
        if content_type.startswith("application/grpc") and not content_type.startswith("application/grpc-web"):
            why = "gRPC itself needs HTTP/2; call a server directly, or use gRPC-Web or Connect"
            await error_response(Refused(415, "GRPC_NEEDS_HTTP2", why))(scope, receive, send)
            return
        closing = False

        async def receive_body() -> Message:
            nonlocal closing
            try:
                return await receive()
            except ConnectionClosing as refused:
                closing = True
                code = Code.RESOURCE_EXHAUSTED if refused.status == 413 else Code.INVALID_ARGUMENT
                raise ConnectError(code, refused.message) from refused

        async def send_closing(message: Message) -> None:
            if closing and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await super().__call__(scope, receive_body, send_closing)


def endpoints(servers: Servers) -> Mapping[str, Any]:
    """The endpoint of every method, except for those that read a stream: HTTP/1.1 has none in both directions."""
    found: dict[str, Any] = {}
    for stub, service in SERVICES.items():
        for method in service.methods:
            if method.client_streaming:
                continue
            described: MethodInfo[Any, Any] = MethodInfo(
                name=method.name,
                service_name=service.full_name,
                input=message_factory.GetMessageClass(method.input_type),
                output=message_factory.GetMessageClass(method.output_type),
                stream_type=StreamType.SERVER_STREAM if method.server_streaming else StreamType.UNARY,
                idempotency_level=IdempotencyLevel.UNKNOWN,
            )
            path = f"/{service.full_name}/{method.name}"
            if method.server_streaming:
                found[path] = Endpoint.server_stream(described, _streaming(servers, stub, method.name))
            else:
                found[path] = Endpoint.unary(described, _unary(servers, stub, method.name))
    return found


def _unary(servers: Servers, service: str, method: str) -> Callable[[Any, AnyContext], Awaitable[Any]]:
    async def call(request: Any, context: AnyContext) -> Any:
        return await servers.unary(service, method, request, context)

    return call


def _streaming(servers: Servers, service: str, method: str) -> Callable[[Any, AnyContext], AsyncIterator[Any]]:
    def call(request: Any, context: AnyContext) -> AsyncIterator[Any]:
        return servers.stream(service, method, request, context)

    return call


def _timeout_s(context: AnyContext) -> float | None:
    return None if context.timeout_ms is None else max(0.0, context.timeout_ms / 1000.0)


def routes(servers: Servers, config: GatewayConfig) -> list[BaseRoute]:
    """The routes of all services."""
    return [Route("/gruve.v1.{method:path}", RpcApp(servers, config.max_body_bytes))]
