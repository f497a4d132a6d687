"""A gRPC proxy for Generate that changes the stream of messages on its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from gruve.v1 import generation_pb2, generation_pb2_grpc

Lie = Callable[[Iterator[generation_pb2.GenerateResponse]], Iterator[generation_pb2.GenerateResponse]]


class LyingProxy(generation_pb2_grpc.GenerationServiceServicer):
    """Forwards Generate to a server; `lie` turns the server's messages into those that the client gets."""

    def __init__(self, address: str, lie: Lie) -> None:
        self._channel = grpc.insecure_channel(address)
        self._behind = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._lie = lie
        self._server = grpc.server(ThreadPoolExecutor(4))
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Generate(self, request: generation_pb2.GenerateRequest, context: Any) -> Any:  # noqa: N802 - gRPC's names
        return self._lie(self._behind.Generate(request))

    def close(self) -> None:
        self._server.stop(None)
        self._channel.close()
