"""What the listening ports of a server and of a gateway have in common."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host. A name other than localhost may resolve to anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files of a port."""

    cert: Path
    """The certificate, followed by the intermediate ones."""
    key: Path
    """The private key, without a password."""
    client_ca: Path | None = None
    """The authorities that sign client certificates. With it, a connection without such a certificate is refused."""
