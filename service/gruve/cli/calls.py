"""Connects commands with a server, and tells what went wrong with a call in a line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gruve.cli.terminal import Failure

if TYPE_CHECKING:
    from gruve.client import CallFailed, Client


@contextlib.contextmanager
def connected(addresses: str) -> Iterator[Client]:
    """A client of the servers at `addresses`, with commas between; what its calls raise becomes a `Failure`."""
    from gruve.client import CallFailed, Client

    several = [address.strip() for address in addresses.split(",") if address.strip()]
    if not several:
        raise Failure(f"--address is {addresses!r}; must be HOST:PORT, or several with commas between", exit_code=2)
    with Client(several) as client:
        try:
            yield client
        except CallFailed as error:
            raise Failure(explain(error, addresses)) from error


def explain(error: CallFailed, addresses: str) -> str:
    """What went wrong, and what may help."""
    if error.connection_lost:
        cause = error.message.rpartition(": ")[2]  # behind gRPC's own words about all it tried
        return f"no server answers at {addresses} ({cause}); `gruve serve` starts one"
    return str(error)
