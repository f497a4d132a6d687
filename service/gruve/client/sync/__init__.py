"""The client for plain threads. `client`, `control` and `stream` are generated from those of `gruve.client.aio`."""

from gruve.client.sync.client import Client
from gruve.client.sync.control import Control
from gruve.client.sync.stream import Conversation, TokenStream

__all__ = ["Client", "Control", "Conversation", "TokenStream"]
