"""The configuration of a gateway."""

from __future__ import annotations

from dataclasses import dataclass

from gruve.client.credentials import Credentials
from gruve.ports import TlsFiles

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Where a gateway listens, which servers it calls, and what it accepts."""

    servers: tuple[str, ...] = ("localhost:50051",)
    """gRPC targets that serve the same models; the one that answered last is used until it fails."""
    credentials: Credentials | None = None
    """How the gateway connects to the servers; None connects without TLS."""
    host: str = "127.0.0.1"
    """Where HTTP listens."""
    port: int = 8_080
    """The port of HTTP; 0 takes any free one."""
    tls: TlsFiles | None = None
    """The certificate of the HTTP port. None serves without TLS."""
    allowed_origins: tuple[str, ...] = ()
    """The origins whose pages may call, such as `https://example.com`; those of this machine may always."""
    max_body_bytes: int = MIB
    """The largest body of a request. A server takes requests of 1 MiB."""
    body_s: float = 10.0
    """How long the body of a request may take to arrive."""
    max_connections: int = 1_000
    """How many connections there may be. Requests on further ones are refused."""
    head_s: float = 10.0
    """How long the head of a request may take to arrive, from the connection or the last answer on."""
    drain_s: float = 5.0
    """How long running responses may continue after SIGTERM; then they end with an error."""
