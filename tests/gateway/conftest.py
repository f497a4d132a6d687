"""A gateway in front of the tests' server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from http_gateway import RunningGateway


@pytest.fixture(scope="module")
def gateway(server) -> Iterator[RunningGateway]:
    running = RunningGateway(server.address)
    yield running
    running.close()
