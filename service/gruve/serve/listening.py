"""Explains why a server cannot listen on an address: gRPC and the metrics server do not say."""

from __future__ import annotations

import errno
import socket

FIRST_UNPRIVILEGED_PORT = 1_024


def explain_listen_failure(host: str, port: int) -> str:
    """Why listening on `host` and `port` fails, found by trying it. It may resolve a host name, so it may block."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return f"{host!r} is neither an IP address nor the name of a host"
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
        except OSError as error:
            return _explain(error, host, port)
    return f"port {port} was in use a moment ago and is free now; try again"


def _explain(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use; give another port, or 0 for any free one"
        case errno.EADDRNOTAVAIL:
            return f"{host!r} is not an address of this machine"
        case errno.EACCES | errno.EPERM:
            hint = "; ports below 1024 need a privilege" if port < FIRST_UNPRIVILEGED_PORT else ""
            return f"this user has no permission to listen on port {port}{hint}"
    return error.strerror or str(error)
