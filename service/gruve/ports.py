"""What the listening ports of a server and of a gateway have in common."""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import socket
import ssl
from pathlib import Path

from gruve.errors import CredentialsBroken
from gruve.watched_files import read_bytes

FIRST_UNPRIVILEGED_PORT = 1_024


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host. A name other than localhost may resolve to anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


@dataclasses.dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files of a port."""

    cert: Path
    """The certificate, followed by the intermediate ones."""
    key: Path
    """The private key, without a password."""
    client_ca: Path | None = None
    """The authorities that sign client certificates. With it, a connection without such a certificate is refused."""

    @property
    def paths(self) -> list[Path]:
        """All files that there are."""
        return [self.cert, self.key, *([self.client_ca] if self.client_ca else [])]


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """The context of an HTTPS port. Raises `CredentialsBroken` with the file that cannot be used and why."""
    for path in files.paths:
        read_bytes(path)  # OpenSSL does not say which file it cannot read
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except (OSError, ValueError) as error:
        why = f"{str(files.cert)!r} and {str(files.key)!r} are not a certificate and its key: {_reason(error)}"
        raise CredentialsBroken(why) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (OSError, ValueError) as error:
            why = f"{str(files.client_ca)!r} has no certificate of an authority: {_reason(error)}"
            raise CredentialsBroken(why) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _no_password() -> str:
    """Refuses a key with a password; by default OpenSSL would ask for it on the terminal."""
    raise ValueError("the key has a password, which a server cannot be given")


def _reason(error: Exception) -> str:
    """OpenSSL's reason in plain words where it has none."""
    if "PEM lib" in str(error):
        return "one of them is not PEM, is empty or is cut off, or they are swapped"
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return "the key belongs to another certificate"
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


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
