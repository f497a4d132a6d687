"""TLS on the server's two ports, with certificates that may change while it runs."""

from __future__ import annotations

from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc

from gruve.certificates import Certificates, Loaded
from gruve.ports import server_context


def grpc_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """What a gRPC port is opened with; gRPC asks for changes at each handshake, on threads of its own."""
    given = certificates.current()

    def changed() -> Any:  # None for no change, which grpc's annotations lack
        nonlocal given
        current = certificates.current()
        if current is given:
            return None
        given = current
        return _configuration(current)

    credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
        _configuration(given), changed, require_client_authentication=given.client_ca is not None
    )
    return credentials


def wrap(server: WSGIServer, certificates: Certificates) -> None:
    """Makes an HTTP server, which listens and does not accept yet, speak TLS.

    The handshakes happen on the connections' own threads: on the thread that accepts, one silent client would block all
    others.
    """
    listening = server_context(certificates.files)
    certificates.keep_current(listening)
    server.socket = listening.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)


def _configuration(loaded: Loaded) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(loaded.key, loaded.cert)], root_certificates=loaded.client_ca)
