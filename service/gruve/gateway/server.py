"""Runs the application: listens, serves until a signal, and ends running responses in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import IO, Any

import uvicorn
from starlette.applications import Starlette

from gruve.certificates import Certificates
from gruve.errors import CannotListen
from gruve.gateway.app import create_app
from gruve.gateway.config import GatewayConfig
from gruve.gateway.connection import BoundedConnection
from gruve.ports import explain_listen_failure

BACKLOG = 2_048
ENDING_S = 1.0
"""How long responses may take after `drain_s` to end with an error."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Gateway(uvicorn.Server):
    """uvicorn with a callback for the moment from which on requests are answered, and an end that clients understand.

    uvicorn itself would cancel the responses that still run, and their clients would see a lost connection.
    """

    def __init__(self, config: GatewayConfig, ready: Callable[[], None]) -> None:
        """Raises `CredentialsBroken`."""
        app = create_app(config)
        super().__init__(uvicorn_config(app, config))
        self._ready = ready
        self._drain_s = config.drain_s
        self._end_calls: Callable[[], Awaitable[None]] = app.state.end_calls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to accept connections."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops accepting connections, and returns when no response runs any more."""
        ending = asyncio.ensure_future(self._end_responses())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_responses(self) -> None:
        """Lets responses continue for `drain_s`, and ends them with an error; closes the connections that remain.

        Without its connection and without calls to servers, no request waits for anything.
        """
        await asyncio.sleep(self._drain_s)
        await self._end_calls()
        await asyncio.sleep(ENDING_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def end(self) -> None:
        """Begins to shut down."""
        self.should_exit = True


class Lifeline(asyncio.Protocol):
    """Calls `end` when the process on the other side of a pipe has closed it, or has ended."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The pipe is closed."""
        self._end()


async def serve(config: GatewayConfig, ready: Callable[[int], None], lifeline: IO[Any] | None = None) -> None:
    """Serves until SIGTERM or SIGINT; calls `ready` with the port once requests are answered.

    It also ends when `lifeline`, a pipe from another process, is closed. Running responses may continue for `drain_s`;
    then they end with an error. Raises `CannotListen` if the port cannot be used and `CredentialsBroken` if the
    certificate cannot.
    """
    listening = listen(config.host, config.port)
    port: int = listening.getsockname()[1]
    with listening, _uvicorns_signals():
        gateway = Gateway(config, lambda: ready(port))
        if lifeline is not None:
            await asyncio.get_running_loop().connect_read_pipe(lambda: Lifeline(gateway.end), lifeline)
        await gateway.serve([listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `CannotListen`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise CannotListen(f"cannot listen on {host}:{port}: {explain_listen_failure(host, port)}") from error
    # asyncio does so only for sockets that were made with an explicit protocol. Accepted connections inherit it.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def uvicorn_config(app: Starlette, config: GatewayConfig) -> uvicorn.Config:
    """How uvicorn runs the application. Raises `CredentialsBroken`."""
    tls = config.tls
    # First: uvicorn names no file that it cannot use, and asks on the terminal for the password of a key.
    certificates = None if tls is None else Certificates(tls)
    connection = partial(BoundedConnection, head_s=config.head_s, max_connections=config.max_connections)
    made = uvicorn.Config(
        app,
        http=connection,  # type: ignore[arg-type] # it is called as the class would be
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=tls.cert if tls else None,
        ssl_keyfile=tls.key if tls else None,
        ssl_ca_certs=str(tls.client_ca) if tls and tls.client_ca else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_ca else ssl.CERT_NONE,
    )
    made.load()
    if certificates is not None and made.ssl is not None:
        certificates.keep_current(made.ssl)
    return made


@contextlib.contextmanager
def _uvicorns_signals() -> Iterator[None]:
    """Takes the signals that uvicorn raises again after it has served, so that the command ends in order."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, lambda: None)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
