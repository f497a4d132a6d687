"""The HTTP port beside gRPC's: `/metrics` for Prometheus, and `/healthz` for probes that do not speak gRPC with TLS."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer

from gruve.certificates import Certificates
from gruve.errors import CannotListen
from gruve.ports import explain_listen_failure
from gruve.serve.tls import wrap

log = logging.getLogger(__name__)
SILENCE_S = 30.0
"""How long a connection may be silent before its thread closes it."""
MAX_CONNECTIONS = 64
"""Each takes a thread and a file descriptor. Beyond so many, the one that was opened first is closed: a scrape takes
milliseconds, so its client is slow or silent."""
FULL_S = 0.1
"""How long the server pauses when it has no file descriptor for a connection."""


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_S

    def log_message(self, *_: object) -> None:
        """Logs no request: probes and scrapes come every few seconds."""


class _Server(ThreadingWSGIServer):
    request_queue_size = 128
    _is_full = False

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}
        """The connections, in the order in which they were opened."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection on a thread; closes the first one if there are too many."""
        first = None
        with self._lock:
            self._open[request] = None
            if len(self._open) > MAX_CONNECTIONS:
                first = next(iter(self._open))
                del self._open[first]
        if first is not None:
            with contextlib.suppress(OSError):  # its client has gone
                socket.socket.shutdown(first, socket.SHUT_RDWR)  # its thread ends, and closes it; TLS is in use there
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def get_request(self) -> tuple[Any, Any]:
        """Accepts a connection. Without a free file descriptor it stays in the queue, and the loop would spin."""
        try:
            accepted = super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                if not self._is_full:
                    log.error("connections wait: raise the limit of open files (ulimit -n)", extra={"why": str(error)})
                self._is_full = True
                time.sleep(FULL_S)
            raise
        self._is_full = False
        return accepted

    def handle_error(self, *_: object) -> None:
        """Reports a connection that failed, such as a handshake, without the trace that the base class prints."""
        log.debug("a connection to the metrics port failed", exc_info=True)


def listen(
    host: str,
    port: int,
    registry: CollectorRegistry,
    why_not_serving: Callable[[], str],
    certificates: Certificates | None = None,
) -> WSGIServer:
    """Serves on a thread; returns the server, which has its `server_port`. Port 0 takes any free one.

    `/healthz` answers 200 while `why_not_serving` returns "", and otherwise 503 with the reason. With `certificates`
    it speaks HTTPS. Raises `CannotListen`.
    """
    metrics: Any = prometheus_client.make_wsgi_app(registry)

    def app(request: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if request.get("PATH_INFO") != "/healthz":
            try:
                answer: Iterable[bytes] = metrics(request, start_response)
                return answer
            except Exception:  # wsgiref would print the trace
                log.exception("failed inside: the metrics could not be collected")
                status, text = "500 Internal Server Error", b"the metrics could not be collected\n"
        elif why := why_not_serving():
            status, text = "503 Service Unavailable", f"{why}\n".encode()
        else:
            status, text = "200 OK", b"serving\n"
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
        return [text]

    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        kind = type("Server", (_Server,), {"address_family": family})
        server: WSGIServer = make_server(str(address[0]), port, app, kind, handler_class=_Handler)
    except (OSError, OverflowError) as error:
        why = explain_listen_failure(host, port)
        raise CannotListen(f"cannot serve metrics on {host}:{port}: {why}") from error
    if certificates is not None:
        wrap(server, certificates)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
