"""The sync client is generated from the async one, and has the same methods."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from gruve.client import AsyncClient, AsyncConversation, AsyncTokenStream, Client, Conversation, TokenStream
from gruve.client.aio import transport as asyncio_transport
from gruve.client.sync import transport as threads_transport

TOOL = Path(__file__).parents[2] / "tools" / "unasync.py"


def test_the_sync_client_is_current():
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("sync", "asynchronous"),
    [(Client, AsyncClient), (TokenStream, AsyncTokenStream), (Conversation, AsyncConversation)]
    + [(getattr(threads_transport, name), getattr(asyncio_transport, name)) for name in ("Transport", "Outbox")],
)
def test_both_have_the_same_methods_with_the_same_parameters(sync, asynchronous):
    def public(kind: type) -> dict[str, list[str]]:
        functions = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(f).parameters) for name, f in functions if not name.startswith("_")}

    expected = public(sync)
    if issubclass(sync, TokenStream):  # each has the name that contextlib calls
        expected["aclose"] = expected.pop("close")
    assert public(asynchronous) == expected
