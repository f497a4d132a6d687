"""How to connect, from the `GRUVE_*` variables that the commands read as well.

This is the one place outside the command line that reads the environment, and only when `from_env` asks it to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gruve.client.connection import DEFAULT_ADDRESS
from gruve.client.credentials import SENDABLE, Metadata, Tls, is_sendable

ADDRESS: Final = "GRUVE_ADDRESS"
TLS, CA, CERT, CERT_KEY = "GRUVE_TLS", "GRUVE_CA", "GRUVE_CERT", "GRUVE_CERT_KEY"
API_KEY, API_KEY_FILE, TENANT = "GRUVE_API_KEY", "GRUVE_API_KEY_FILE", "GRUVE_TENANT"


@dataclass(frozen=True, slots=True)
class Environment:
    """What a client is made with."""

    addresses: list[str]
    credentials: Tls | None
    metadata: Metadata

    @classmethod
    def read(cls, variables: Mapping[str, str] | None = None) -> Environment:
        """Reads the variables, those of the process unless others are given. An empty one is the same as none.

        Raises `ValueError` with the variable's name for a value that cannot be used, `OSError` for a file that cannot
        be read. A value that is a secret is not quoted.
        """
        given = {name: value for name, value in (os.environ if variables is None else variables).items() if value}
        if (CERT in given) != (CERT_KEY in given):
            one, other = (CERT, CERT_KEY) if CERT in given else (CERT_KEY, CERT)
            raise ValueError(f"{one} is set without {other}; a client certificate needs both")
        with_tls = wants_tls(given.get(TLS, "")) or CA in given or CERT in given
        credentials = Tls(given.get(CA), given.get(CERT), given.get(CERT_KEY)) if with_tls else None
        if credentials is not None:
            credentials.channel_credentials()  # a file that cannot be read is an error now
        file = Path(given[API_KEY_FILE]) if API_KEY_FILE in given else None
        key = api_key(file, given.get(API_KEY, ""))
        return cls(
            split_addresses(given.get(ADDRESS, DEFAULT_ADDRESS)), credentials, metadata_of(key, given.get(TENANT))
        )


def split_addresses(text: str) -> list[str]:
    """The addresses in a text with commas between. Raises `ValueError` if there is none."""
    addresses = [address.strip() for address in text.split(",") if address.strip()]
    if not addresses:
        raise ValueError(f"{ADDRESS} is {text!r}; must be HOST:PORT, or several with commas between")
    return addresses


def wants_tls(value: str) -> bool:
    """Whether this value of GRUVE_TLS asks for TLS. Raises `ValueError` if it says neither yes nor no."""
    if value not in ("", "0", "1"):
        raise ValueError(f"{TLS} is {value!r}; must be 1 for TLS, or 0")
    return value == "1"


def api_key(file: Path | None, value: str) -> str:
    """The key in a file, or without a file this value of GRUVE_API_KEY; empty if there is none.

    Raises `ValueError` if what is there is no key.
    """
    key = value if file is None else file.read_text(errors="replace").strip()
    if not (key.isascii() and key.isprintable()) or " " in key or (file is not None and not key):
        raise ValueError(f"{API_KEY if file is None else str(file)!r} holds no API key: one word of ASCII characters")
    return key


def metadata_of(key: str, tenant: str | None) -> Metadata:
    """What a client with this key sends with each call; `tenant` is the one in whose name an admin calls.

    Raises `ValueError` if the tenant's name cannot be sent.
    """
    if tenant is not None and not is_sendable(tenant):
        raise ValueError(f"{TENANT} is {tenant!r}; {SENDABLE}")
    metadata = [("authorization", f"Bearer {key}")] if key else []
    return metadata if tenant is None else [*metadata, ("gruve-tenant", tenant)]
