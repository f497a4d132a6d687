"""The Python client of a gruve server, sync and async. It reconnects and resumes streams by itself.

Knows the protocol and gRPC, nothing of models, engines or files. Values that the protocol defines (`Session`, `Model`,
`GenerationStart` ...) are returned as its messages; the comments of proto/gruve/v1 document their fields. Every call
that fails raises a subclass of `CallFailed`; `gruve.client.errors` draws the tree.

    with Client("localhost:50051") as client:  # or Client.from_env()
        text = client.complete("ROMEO:", model="shakespeare", max_tokens=200, seed=7)

        for chunk in client.generate("ROMEO:", model="shakespeare", max_tokens=200):
            print(chunk.text, end="", flush=True)

        conversation = client.converse("ROMEO:", model="shakespeare", max_tokens_per_second=30)
        for chunk in conversation:
            if chunk.position == 100 and chunk.token_ids:
                conversation.change(temperature=0.5)
"""

from gruve.client.aio import AsyncClient, AsyncControl, AsyncConversation, AsyncTokenStream
from gruve.client.credentials import Tls
from gruve.client.errors import (
    AccessDenied,
    BlobRefused,
    CallFailed,
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    ExportRefused,
    FieldViolation,
    GenerationMismatch,
    GenerationUnknown,
    InvalidRequest,
    ModelChanged,
    ModelNotFound,
    ModelNotServing,
    NotFound,
    NumericsChanged,
    Overloaded,
    PositionMismatch,
    PreconditionFailed,
    ReloadRefused,
    RequestTooLarge,
    ServerFault,
    SessionBusy,
    SessionElsewhere,
    SessionExpired,
    SessionNotFound,
    SessionUnknown,
    ShuttingDown,
    StoreUnavailable,
    StreamCorrupted,
    TakenOver,
    TranscriptFull,
    Unavailable,
    Unimplemented,
    UnknownCharacter,
)
from gruve.client.messages import CompletionOptions, GenerateOptions, SamplingOptions
from gruve.client.resume import Answer, Chunk
from gruve.client.retry import OnReconnect, Reconnect, Reconnected, Reconnecting
from gruve.client.sync import Client, Control, Conversation, TokenStream

__all__ = [
    "AccessDenied",
    "Answer",
    "AsyncClient",
    "AsyncControl",
    "AsyncConversation",
    "AsyncTokenStream",
    "BlobRefused",
    "CallFailed",
    "Cancelled",
    "Chunk",
    "Client",
    "CompletionOptions",
    "ConnectionLost",
    "Control",
    "Conversation",
    "DeadlineExceeded",
    "ExportRefused",
    "FieldViolation",
    "GenerateOptions",
    "GenerationMismatch",
    "GenerationUnknown",
    "InvalidRequest",
    "ModelChanged",
    "ModelNotFound",
    "ModelNotServing",
    "NotFound",
    "NumericsChanged",
    "OnReconnect",
    "Overloaded",
    "PositionMismatch",
    "PreconditionFailed",
    "Reconnect",
    "Reconnected",
    "Reconnecting",
    "ReloadRefused",
    "RequestTooLarge",
    "SamplingOptions",
    "ServerFault",
    "SessionBusy",
    "SessionElsewhere",
    "SessionExpired",
    "SessionNotFound",
    "SessionUnknown",
    "ShuttingDown",
    "StoreUnavailable",
    "StreamCorrupted",
    "TakenOver",
    "Tls",
    "TokenStream",
    "TranscriptFull",
    "Unavailable",
    "Unimplemented",
    "UnknownCharacter",
]
