"""The certificates of a port: checked at the start, and read again when their files change.

A changed certificate is used from the next handshake on, and open connections continue. Changed files that cannot be
used, for example because the key is not written yet, leave the last good ones in use. The log warns of a certificate
that has expired or soon will, when it is read.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import ssl
import time
from pathlib import Path

from cryptography import x509

from gruve.ports import TlsFiles, server_context
from gruve.watched_files import WatchedFiles, read_bytes

log = logging.getLogger(__name__)
WARNING_S = 7 * 86_400.0
"""The log warns of a certificate that expires within this time, or within a third of its lifetime if that is shorter:
one that is made anew every day has less than a week left from the beginning."""


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """What the files of a port held when they were read."""

    cert: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    expires_s: float
    """The Unix time at which the first certificate of the chain expires; NaN if it cannot be read."""


class Certificates:
    """The certificates of `files`. May be used from any thread."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files. Raises `CredentialsBroken`."""
        self.files = files
        self._watched = WatchedFiles(files.paths, lambda: _load(files))

    @property
    def expires_s(self) -> float:
        """When the current certificate expires; see `Loaded`."""
        return self.current().expires_s

    def current(self) -> Loaded:
        """What is to be used now; reads the files again if they have changed."""
        return self._watched.current()

    def keep_current(self, context: ssl.SSLContext) -> None:
        """Makes a context of an HTTPS port use what is current at each handshake."""

        def use_current(connection: ssl.SSLObject, *_: object) -> None:
            connection.context = self.current().context

        context.sni_callback = use_current  # called for clients that name no server, too


def _load(files: TlsFiles) -> Loaded:
    cert, key = read_bytes(files.cert), read_bytes(files.key)
    client_ca = None if files.client_ca is None else read_bytes(files.client_ca)
    return Loaded(cert, key, client_ca, server_context(files), _checked_expiry(files.cert, cert))


def _checked_expiry(path: Path, chain: bytes) -> float:
    """When the first certificate of a PEM chain expires; logs a warning if it has, or soon will."""
    try:
        valid = [(one.not_valid_after_utc, one.not_valid_before_utc) for one in x509.load_pem_x509_certificates(chain)]
    except ValueError:  # OpenSSL, which serves them, accepts more than this parser
        return math.nan
    until, since = min(valid)
    left_s, lifetime_s = until.timestamp() - time.time(), (until - since).total_seconds()
    if left_s < min(WARNING_S, lifetime_s / 3):
        message = "the certificate has expired" if left_s <= 0 else "the certificate expires soon"
        log.warning(message, extra={"file": str(path), "expires": until.isoformat()})
    return until.timestamp()
