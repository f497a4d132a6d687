"""The gRPC server: its options, its services and its port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from gruve.certificates import Certificates
from gruve.errors import CannotListen
from gruve.ports import explain_listen_failure
from gruve.serve.calls.accept_loop import make_server
from gruve.serve.calls.interceptor import Interceptor
from gruve.serve.tls import grpc_credentials

MAX_REQUEST_BYTES = 1 << 20
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # With it, two servers on one port would share its connections without an error.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class GrpcServer:
    """A gRPC server on one port."""

    def __init__(
        self,
        host: str,
        port: int,
        interceptor: Interceptor,
        add_services: Callable[[grpc.aio.Server], None],
        certificates: Certificates | None = None,
    ) -> None:
        """`port` 0 takes any free one; `add_services` is called with the server before it starts.

        With `certificates` the port takes TLS alone.
        """
        self._host = host
        self._port = port
        self._interceptor = interceptor
        self._add_services = add_services
        self._certificates = certificates
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Starts the server and returns its port. Raises `CannotListen`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        address = f"{host}:{self._port}"
        server = make_server([self._interceptor], OPTIONS, self._interceptor.refuse_unread)
        self._add_services(server)
        try:
            if self._certificates is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, grpc_credentials(self._certificates))
        except RuntimeError as error:
            why = await asyncio.to_thread(explain_listen_failure, self._host, self._port)
            raise CannotListen(f"cannot listen on {address}: {why}") from error
        self._server = server  # first: the start may be cancelled, and `stop` has to end it all the same
        await server.start()
        return int(port)

    async def stop(self, grace_s: float) -> None:
        """Accepts nothing more, and ends the calls that are left after `grace_s`."""
        if self._server is not None:
            await self._server.stop(grace=grace_s)
