"""The client for asyncio. `tools/unasync.py` makes `gruve.client.sync` from the files here but `transport`."""

from gruve.client.aio.client import AsyncClient
from gruve.client.aio.control import AsyncControl
from gruve.client.aio.stream import AsyncConversation, AsyncTokenStream

__all__ = ["AsyncClient", "AsyncControl", "AsyncConversation", "AsyncTokenStream"]
