"""What a client shows to a server: TLS files and call metadata, such as an API key."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from gruve.client.tracing import trace_metadata

Metadata = Sequence[tuple[str, str | bytes]]
"""Names in lower case, and values: bytes if the name ends in "-bin". gRPC calls carry them as HTTP/2 headers."""
GivenMetadata = Metadata | Mapping[str, str] | Mapping[str, str | bytes]
"""What a caller may give: pairs, or a mapping if no name occurs twice."""
SENDABLE: Final = "must be of printable ASCII characters, because gRPC sends no others in metadata"
_NAME = re.compile(r"[0-9a-z_.-]+")


def is_sendable(value: str) -> bool:
    """Whether gRPC sends this value of a metadata key."""
    return value.isascii() and value.isprintable()


def checked(given: GivenMetadata) -> Metadata:
    """The pairs of metadata.

    Raises `ValueError` for what gRPC does not send. Its message does not quote a value, which may be a key.
    """
    pairs = tuple(given.items()) if isinstance(given, Mapping) else tuple(given)
    for name, value in pairs:
        if not _NAME.fullmatch(name):
            raise ValueError(f"metadata has the name {name!r}; must be of lower-case letters, digits, '-', '_' and '.'")
        if name.endswith("-bin"):
            if not isinstance(value, bytes):
                raise ValueError(f"the value of {name!r} in metadata is {type(value).__name__}; must be bytes")
        elif not (isinstance(value, str) and is_sendable(value)):
            raise ValueError(f"the value of {name!r} in metadata {SENDABLE}")
    return pairs


@dataclass(frozen=True, slots=True)
class Tls:
    """Connects with TLS. The files are PEM, and are read again after a lost connection if they have changed."""

    ca: str | os.PathLike[str] | None = None
    """The authorities that sign server certificates; None for those that gRPC brings."""
    cert: str | os.PathLike[str] | None = None
    """The client's own certificate, for servers that ask for one; needs `key`."""
    key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Raises `ValueError` if only one of `cert` and `key` is given."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("Tls has one of cert and key; a client certificate needs both")

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises `OSError`."""
        ca, key, cert = (None if path is None else Path(path).read_bytes() for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def signature(self) -> tuple[Any, ...]:
        """What changes when a file is replaced or written to."""
        found: list[Any] = []
        for path in (self.ca, self.cert, self.key):
            with contextlib.suppress(OSError):
                if path is not None:
                    status = os.stat(path)
                    found.append((os.fspath(path), status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)


Credentials = Tls | grpc.ChannelCredentials


@dataclass(frozen=True, slots=True)
class Access:
    """How a client connects and what it sends with each call."""

    credentials: Credentials | None = None
    """None connects without TLS."""
    metadata: GivenMetadata | Callable[[], GivenMetadata] = ()
    interceptors: Sequence[Any] = ()

    def __post_init__(self) -> None:
        """Raises `ValueError` for metadata that gRPC does not send."""
        if not callable(self.metadata):
            checked(self.metadata)

    def call_metadata(self) -> Metadata:
        """The metadata of the next call, with the trace that is current. Raises `ValueError` as `checked` does."""
        metadata = checked(self.metadata() if callable(self.metadata) else self.metadata)
        found = trace_metadata()
        return (*metadata, *found) if found else metadata

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """The credentials of a new channel. Raises `OSError` if a file cannot be read."""
        return self.credentials.channel_credentials() if isinstance(self.credentials, Tls) else self.credentials

    def signature(self) -> tuple[Any, ...]:
        """What changes when a new channel would have other credentials."""
        return self.credentials.signature() if isinstance(self.credentials, Tls) else ()
