"""Calls a gruve server: sync and async, over one address or several, reconnecting and resuming by itself.

Knows the contract and gRPC, nothing of models, engines or files. Values that the contract defines (`Session`, `Model`,
`GenerationStart` ...) are returned as the contract's messages; its comments say what their fields mean.

    with Client("localhost:50051") as client:
        for chunk in client.generate("ROMEO:", model="shakespeare", max_tokens=200):
            print(chunk.text, end="", flush=True)

        conversation = client.converse("ROMEO:", model="shakespeare", max_tokens_per_second=30)
        for chunk in conversation:
            if chunk.position == 100 and chunk.token_ids:
                conversation.change(temperature=0.5)
"""

from gruve.client.aio import AsyncClient, AsyncConversation, AsyncTokenStream
from gruve.client.failure import CallFailed, FieldViolation
from gruve.client.messages import GenerateOptions, SamplingOptions
from gruve.client.resume import Answer, Chunk, Reconnect
from gruve.client.sync import Client, Conversation, TokenStream

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncConversation",
    "AsyncTokenStream",
    "CallFailed",
    "Chunk",
    "Client",
    "Conversation",
    "FieldViolation",
    "GenerateOptions",
    "Reconnect",
    "SamplingOptions",
    "TokenStream",
]
