"""The server's certificates: checked at the start, and read again when their files change.

A changed certificate is used from the next handshake on, and open connections continue. If the changed files cannot be
used, for example because the key is not written yet, the log says so and the last good ones stay in use. The log also
warns of a certificate that has expired or soon will, when it is read.
"""

from __future__ import annotations

import logging
import math
import ssl
import threading
import time
from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc
from cryptography import x509

from gruve.errors import CredentialsBroken
from gruve.ports import TlsFiles, read_bytes, server_context
from gruve.serve.watched_file import Signature, signature

log = logging.getLogger(__name__)
WARNING_S = 7 * 86_400.0
"""The log warns of a certificate that expires within this time, or within a third of its lifetime if that is shorter:
one that is made anew every day has less than a week left from the beginning."""


class Certificates:
    """The certificates of `files`. May be used from any thread; gRPC asks for them on threads of its own."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files. Raises `CredentialsBroken`."""
        self.files = files
        self._lock = threading.Lock()
        self.expires_s = math.nan
        """The Unix time at which the first certificate of the chain expires; NaN if it cannot be read."""
        self._seen = self._signature()
        self._read()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """What a gRPC port is opened with; it asks for changes at each handshake."""
        given = self._grpc

        def changed() -> Any:  # None for no change, which grpc's annotations lack
            nonlocal given
            self._refresh()
            if self._grpc is given:
                return None
            given = self._grpc
            return given

        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            given, changed, require_client_authentication=self.files.client_ca is not None
        )
        return credentials

    def wrap(self, server: WSGIServer) -> None:
        """Makes an HTTP server, which listens and does not accept yet, speak TLS.

        The handshakes happen on the connections' own threads: on the thread that accepts, one silent client would block
        all others.
        """

        def use_current(connection: ssl.SSLObject, *_: object) -> None:
            self._refresh()
            connection.context = self._context

        listening = server_context(self.files)
        listening.sni_callback = use_current  # called for clients that name no server, too
        server.socket = listening.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)

    def _refresh(self) -> None:
        """Reads the files again if they have changed."""
        with self._lock:
            found = self._signature()
            if found == self._seen:
                return
            self._seen = found
            try:
                self._read()
            except CredentialsBroken as error:
                log.error("the changed certificates cannot be used; the last good ones stay", extra={"why": str(error)})
                return
        log.info("certificates were read again", extra={"file": str(self.files.cert)})

    def _signature(self) -> tuple[Signature, ...]:
        paths = [self.files.cert, self.files.key, *([self.files.client_ca] if self.files.client_ca else [])]
        return tuple(signature(path) for path in paths)

    def _read(self) -> None:
        files = self.files
        certificate, key = read_bytes(files.cert), read_bytes(files.key)
        authorities = None if files.client_ca is None else read_bytes(files.client_ca)
        configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authorities)
        self._grpc, self._context = configuration, server_context(files)
        self.expires_s = self._checked_expiry(certificate)

    def _checked_expiry(self, chain: bytes) -> float:
        """When the first certificate of a PEM chain expires; logs a warning if it has, or soon will."""
        try:
            valid = [
                (one.not_valid_after_utc, one.not_valid_before_utc) for one in x509.load_pem_x509_certificates(chain)
            ]
        except ValueError:  # OpenSSL, which serves them, accepts more than this parser
            return math.nan
        until, since = min(valid)
        left_s, lifetime_s = until.timestamp() - time.time(), (until - since).total_seconds()
        if left_s < min(WARNING_S, lifetime_s / 3):
            message = "the certificate has expired" if left_s <= 0 else "the certificate expires soon"
            log.warning(message, extra={"file": str(self.files.cert), "expires": until.isoformat()})
        return until.timestamp()
