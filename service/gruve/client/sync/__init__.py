"""The client for plain threads. `client` and `stream` are generated from those of `gruve.client.aio`."""

from gruve.client.sync.client import Client
from gruve.client.sync.stream import Conversation, TokenStream

__all__ = ["Client", "Conversation", "TokenStream"]
