"""The gRPC server: its options, its services and its port. It is started again if it ends by itself.

grpcio ends the loop of an asyncio server that accepts calls when a call's `:path` is not UTF-8 (seen with 1.85.1), so
any client could end all service for good. Another server then takes the port within `WATCH_S`. The calls of the one
that ended go on to their ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import grpc

from gruve.errors import CannotListen
from gruve.serve.interceptor import Interceptor
from gruve.serve.listening import explain_listen_failure
from gruve.serve.tls import Certificates

log = logging.getLogger(__name__)
MAX_REQUEST_BYTES = 1 << 20
WATCH_S = 0.05
"""How often it is looked whether the server still runs; grpcio has no callback for it."""
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
        """`port` 0 takes any free one; `add_services` is called for the server, and again if it is started again.

        With `certificates` the port takes TLS alone.
        """
        self._host = host
        self._port = port
        self._interceptor = interceptor
        self._add_services = add_services
        self._certificates = certificates
        self._servers: list[grpc.aio.Server] = []
        """The one that accepts calls, and before it those that have ended and whose calls go on."""
        self._watching: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Starts the server and returns its port. Raises `CannotListen`."""
        address = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self._port = await self._start(address)
        except RuntimeError as error:
            why = await asyncio.to_thread(explain_listen_failure, self._host, self._port)
            raise CannotListen(f"cannot listen on {address}:{self._port}: {why}") from error
        self._watching = asyncio.create_task(self._restart_if_ended(address))
        return self._port

    async def stop(self, grace_s: float) -> None:
        """Accepts nothing more, and ends the calls that are left after `grace_s`."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.gather(*(server.stop(grace=grace_s) for server in self._servers))

    async def _start(self, address: str) -> int:
        server = grpc.aio.server(interceptors=[self._interceptor], options=OPTIONS)
        self._add_services(server)
        if self._certificates is None:
            port = server.add_insecure_port(f"{address}:{self._port}")
        else:
            port = server.add_secure_port(f"{address}:{self._port}", self._certificates.grpc_credentials())
        await server.start()
        self._servers.append(server)
        return int(port)

    async def _restart_if_ended(self, address: str) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            if _is_running(self._servers[-1]):
                continue
            try:
                await self._start(address)
            except RuntimeError as error:  # its port may not be free yet
                log.error("the gRPC server ended and cannot be started again yet", extra={"why": str(error)})
                continue
            log.error("the gRPC server ended by itself and was started again")
            ended = self._servers[-2]
            task = asyncio.create_task(self._forget_when_done(ended))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _forget_when_done(self, server: grpc.aio.Server) -> None:
        """Keeps a server that has ended until its last call has; collected earlier, it would end them."""
        with contextlib.suppress(Exception):  # it raises what ended the server
            await server.wait_for_termination()
        self._servers.remove(server)


def _is_running(server: grpc.aio.Server) -> bool:
    """Whether a server accepts calls; grpcio has no public method for it."""
    return bool(server._server.is_running())  # type: ignore[attr-defined]
