"""The server interceptor: identifies callers, refuses malformed requests, turns errors into statuses, and counts gRPC's
standard metrics.

A stack trace goes to the log under an incident's id, never to a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from gruve.errors import Draining, GruveError, InvalidRequest, LimitExceeded, PermissionDenied, Unauthenticated
from gruve.serve.callers.access import Access
from gruve.serve.callers.identity import anonymous, current_identity, set_identity
from gruve.serve.calls import open_calls
from gruve.serve.calls.accept_loop import EndStatus
from gruve.serve.calls.access_log import EndTrace, LogCall, TraceCall, UnreadCalls, begin_call, line
from gruve.serve.calls.reading import Reading, TurnTimes, current_reading, end_reading, set_reading
from gruve.serve.calls.refusals import BURST, PER_SECOND, Refusals
from gruve.serve.calls.status import internal_error, shorten, status_code, trailer
from gruve.serve.metrics import Metrics, RpcMetrics
from gruve.v1 import generation_pb2, model_pb2, session_pb2

OWN_SERVICES = "/gruve.v1."
FILES = (generation_pb2, session_pb2, model_pb2)
"""The modules whose services are gruve's own."""
STEERS = "gruve.v1.GenerationService/Control"
"""Belongs to a stream that is open already, so a server that drains takes it."""
BEGIN = frozenset(
    f"/gruve.v1.GenerationService/{name}" for name in ("Generate", "Converse", "StartConversation", "Score")
)
"""The methods whose requests can be refused unread."""
_TOO_MANY = LimitExceeded(
    f"{BURST} requests of the tenant were refused at once, or more than {PER_SECOND} a second; this one was not read",
    "refusals", BURST, 1.0,
)  # fmt: skip
UNREAD_CODE = status_code(_TOO_MANY)
OVERDUE = EndStatus(
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "the deadline would come before the request was read", ()
)
UNREAD = EndStatus(UNREAD_CODE.value[0], str(_TOO_MANY), (trailer(_TOO_MANY),))


@dataclasses.dataclass(frozen=True, slots=True)
class _Malformed:
    """A request whose bytes could not be parsed."""

    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Rpc:
    """One method of the server."""

    method: str
    metrics: RpcMetrics


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in its stubs alone
    """Checks the credentials of every call, and wraps the methods of gruve's own services; refuses their calls once
    `draining` is set.
    """

    def __init__(
        self,
        metrics: Metrics,
        access: Access | None = None,
        log_call: LogCall | None = None,
        trace_call: TraceCall | None = None,
    ) -> None:
        """Without `access` nobody is authenticated. `log_call` writes the access log, and `trace_call` traces calls."""
        self._access = access
        self._rpcs = {
            f"/{service.full_name}/{method.name}": _Rpc(
                f"{service.full_name}/{method.name}", metrics.rpc(_kind(method), service.full_name, method.name)
            )
            for file in FILES
            for service in file.DESCRIPTOR.services_by_name.values()
            for method in service.methods
        }
        """gruve's own methods. Their series exist before the first call, so that no scrape misses its status."""
        self._wrapped: dict[str, Any] = {}
        """The wrapped handlers by method."""
        self._open = 0
        self._log_call = log_call
        self._unread = None if log_call is None else UnreadCalls(log_call)
        self._trace_call = trace_call
        self._refusals = Refusals()
        self._turns = TurnTimes()
        self.draining = False
        self.quiet = asyncio.Event()
        """Set while no call is open."""
        self.quiet.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the method's wrapped handler, or one that refuses the call.

        The credentials are checked here, before the request is read. gRPC calls this in the task that serves the rpc,
        so the identity is set for the method.
        """
        if (reading := current_reading()) is not None:
            self._turns.record((now_s := time.monotonic()) - reading.accepted_s, now_s)
        method = handler_call_details.method
        handler = self._wrapped.get(method)
        if handler is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            if method.startswith(OWN_SERVICES):
                handler = self._wrap(handler, method)
            elif method in open_calls.METHODS:
                handler = open_calls.bounded(handler)
            self._wrapped[method] = handler
        if self._access is None:
            return handler
        try:
            identity = self._access.check(method, handler_call_details.invocation_metadata)
        except (Unauthenticated, PermissionDenied) as error:
            return self._refuse(method, error)
        if identity is not None:
            set_identity(identity)
        return handler

    def refuse_unread(self, method: str, context: Any, others: int = 0) -> EndStatus | None:
        """The status of a call whose deadline comes before its request can be read, or whose tenant's requests were
        refused too often lately.

        None leaves the call to its method. A call that is refused here is counted, also in the access log. A call that
        needs no credentials is refused while too many `others` of its method are open, and not counted.
        """
        if method not in BEGIN or self.draining:
            return open_calls.refuse_beyond(method, others)
        left_s, now_s = context.time_remaining(), time.monotonic()
        overdue = left_s is not None and left_s <= self._turns.least_left_s(now_s)
        tenant = "" if overdue else self._remembered_tenant(method, context)
        if not overdue and not (tenant and self._refusals.are_too_many(tenant, now_s)):
            counts = bool(tenant) and self._refusals.begin_reading(tenant, now_s)
            set_reading(Reading(now_s, self._refusals, tenant if counts else ""))
            return None
        code = grpc.StatusCode.DEADLINE_EXCEEDED if overdue else UNREAD_CODE
        rpc = self._rpcs[method]
        rpc.metrics.started.inc()
        rpc.metrics.observe_end(code.name, 0, 0, 0.0)
        if self._unread is not None:
            self._unread.add(rpc.method, code.name, tenant)
        return OVERDUE if overdue else UNREAD

    def write_unread(self) -> None:
        """Writes what the access log does not have yet of the calls that were refused unread."""
        if self._unread is not None:
            self._unread.write()

    def _remembered_tenant(self, method: str, context: Any) -> str:
        """The call's tenant; "" if no tenant had requests refused lately. Wrong credentials are not refused here."""
        if not self._refusals:
            return ""
        try:
            identity = self._access.check(method, context.invocation_metadata() or ()) if self._access else None
        except (Unauthenticated, PermissionDenied):
            return ""
        return (identity or anonymous(context.peer())).tenant

    def _refuse(self, method: str, error: GruveError) -> Any:
        """A handler that ends a call of any kind with an error, without reading a request."""

        async def refuse(_: Any, context: Any) -> None:
            set_identity(anonymous(context.peer()))  # for the access log
            rpc = self._rpcs.get(method)
            if rpc is None:
                await _abort(context, error)
                return
            async with _Call(self, rpc, context):
                raise error

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _wrap(self, handler: Any, method: str) -> Any:
        rpc = self._rpcs[method]
        deserializer = _safe(handler.request_deserializer)
        if handler.response_streaming:
            streaming = handler.request_streaming
            wrapped = self._stream(handler.stream_stream if streaming else handler.unary_stream, rpc, streaming)
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(wrapped, deserializer, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary, rpc), deserializer, handler.response_serializer
        )

    def _unary(self, behavior: Callable[..., Any], rpc: _Rpc) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> Any:
            async with _Call(self, rpc, context) as this:
                this.check(request, begun=rpc.method == STEERS)
                response = await behavior(request, context)
                this.sent += 1
                return response

        return call

    def _stream(self, behavior: Callable[..., Any], rpc: _Rpc, streaming: bool) -> Callable[..., Any]:
        # A coroutine that writes instead of a generator: a call that is cancelled during a write must reach the
        # method's `finally` at once, and a generator that gRPC drops is closed only by the garbage collector.
        async def call(request: Any, context: Any) -> None:
            async with _Call(self, rpc, context) as this:
                if streaming:
                    request = this.each(request)
                else:
                    this.check(request)
                async with contextlib.aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        try:
                            await context.write(response)
                        except grpc.aio.BaseError as error:  # gRPC would log that its client is gone
                            raise asyncio.CancelledError from error
                        this.sent += 1

        return call

    def observe(self, call: _Call, code: str) -> None:
        """Counts a call that has ended."""
        self._open -= 1
        if not self._open:
            self.quiet.set()
        now_s = time.monotonic()
        seconds = now_s - call.started_s
        if code == UNREAD_CODE.name:
            end_reading()  # it counts as refused now, and would count as being read, too, until its task ends
            self._refusals.add(current_identity().tenant, now_s)
        call.rpc.metrics.observe_end(code, call.received, call.sent, seconds)
        if call.end_trace is not None:
            call.end_trace(code)
        if self._log_call is not None:
            self._log_call(line(call.rpc.method, code, call.facts, seconds, call.metadata()))

    def begin(self, call: _Call) -> None:
        """Counts a call that begins; without authentication, its identity is where it comes from."""
        self._open += 1
        self.quiet.clear()
        call.rpc.metrics.started.inc()
        if self._access is None:
            set_identity(anonymous(call.context.peer()))
        if self._trace_call is not None:
            call.end_trace = self._trace_call(call.rpc.method, call.metadata(), call.facts)


class _Call:
    """One call: counts it, and turns the error it raises into its status."""

    def __init__(self, interceptor: Interceptor, rpc: _Rpc, context: Any) -> None:
        self.rpc = rpc
        self.started_s = time.monotonic()
        self.received = 1
        self.sent = 0
        self.facts = begin_call()
        self.end_trace: EndTrace | None = None
        self._interceptor = interceptor
        self.context = context

    def check(self, request: Any, *, begun: bool = False) -> None:
        """Raises `InvalidRequest` for a malformed request, and `Draining` unless the call has `begun` already."""
        if self._interceptor.draining and not begun:
            raise Draining("the server is shutting down and takes no new requests")
        if isinstance(request, _Malformed):
            raise InvalidRequest(f"the request's {request.size} bytes are not the message that {self.rpc.method} takes")

    async def each(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Checks the requests of a stream; draining refuses a call at its first request only."""
        self.received = 0
        async for request in requests:
            self.received += 1
            self.check(request, begun=self.received > 1)
            yield request

    def metadata(self) -> tuple[tuple[str, Any], ...]:
        """The metadata that came with the call."""
        return tuple(self.context.invocation_metadata() or ())

    async def __aenter__(self) -> _Call:
        self._interceptor.begin(self)
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        code = "OK"
        try:
            if isinstance(error, GruveError):
                code = status_code(error).name
                await _abort(self.context, error)
            elif isinstance(error, grpc.aio.AbortError):
                code = self.context.code().name
            elif isinstance(error, asyncio.CancelledError | grpc.aio.BaseError):  # the client is gone
                code = "CANCELLED"
            elif error is not None:
                code = "INTERNAL"
                await _abort(self.context, internal_error(error, method=self.rpc.method))
        finally:
            self._interceptor.observe(self, code)


def _kind(method: Any) -> str:
    """The label `grpc_type` of a method, from its descriptor."""
    kinds = ("unary", "client_stream", "server_stream", "bidi_stream")
    return kinds[2 * method.server_streaming + method.client_streaming]


async def _abort(context: Any, error: GruveError) -> None:
    await context.abort(status_code(error), shorten(str(error)), (trailer(error),))


def _safe(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A deserializer that returns `_Malformed` instead of raising: gRPC would answer INTERNAL for a client's fault."""

    def parse(data: bytes) -> Any:
        try:
            return deserializer(data)
        except Exception:  # noqa: BLE001 - protobuf has no single exception for malformed bytes
            return _Malformed(len(data))

    return parse
