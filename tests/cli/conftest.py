"""Servers of made-up tokens for the commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fake_server import TUNE, FakeServer


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def tunes(fake: FakeServer) -> FakeServer:
    """Its model writes `TUNE`."""
    fake.reset(text=TUNE)
    fake.tokenizer = "abc"
    return fake
