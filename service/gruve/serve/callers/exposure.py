"""Whether other machines can reach a server, and what protects it if they can."""

from __future__ import annotations

import logging

from gruve.ports import TlsFiles, is_loopback
from gruve.serve.callers.access import AccessConfig

log = logging.getLogger(__name__)


def unprotected(host: str, tls: TlsFiles | None, access: AccessConfig) -> list[str]:
    """What a server that other machines reach lacks: "TLS", "authentication"; empty on loopback."""
    if is_loopback(host):
        return []
    lacks = {"TLS": tls is None, "authentication": not access.authenticates}
    return [what for what, lacking in lacks.items() if lacking]


def warn_if_unprotected(host: str, tls: TlsFiles | None, access: AccessConfig) -> None:
    """Logs a warning if other machines reach a server that lacks protection."""
    lacks = unprotected(host, tls, access)
    if lacks:
        log.warning("other machines reach an unprotected server", extra={"host": host, "lacks": lacks})
