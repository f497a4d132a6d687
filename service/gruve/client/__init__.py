"""Calls a gruve server: sync and async, over one address or several, reconnecting and resuming by itself.

Knows the contract and gRPC, nothing of models, engines or files. Values that the contract defines (`Session`, `Model`,
`GenerationStart` ...) are returned as the contract's messages; its comments say what their fields mean.

    with Client("localhost:50051") as client:
        for chunk in client.generate("ROMEO:", model="shakespeare", max_tokens=200):
            print(chunk.text, end="", flush=True)
"""

from gruve.client.aio import AsyncClient, AsyncTokenStream
from gruve.client.failure import CallFailed, FieldViolation
from gruve.client.messages import GenerateOptions
from gruve.client.resume import Chunk, Reconnect
from gruve.client.sync import Client, TokenStream

__all__ = [
    "AsyncClient",
    "AsyncTokenStream",
    "CallFailed",
    "Chunk",
    "Client",
    "FieldViolation",
    "GenerateOptions",
    "Reconnect",
    "TokenStream",
]
