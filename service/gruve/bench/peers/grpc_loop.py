"""A per-request loop over `torch.nn.GRU` behind grpc.aio: what serving char-rnn amounts to. One message a token.

python -m gruve.bench.peers.grpc_loop WEIGHTS PORT
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import torch

from gruve.bench.peers.char_rnn import CharRnn, draw, load
from gruve.v1 import generation_pb2, generation_pb2_grpc


class Generator(generation_pb2_grpc.GenerationServiceServicer):
    """Implements as much of the protocol as char-rnn can."""

    def __init__(self, model: CharRnn) -> None:
        self._model = model

    async def Generate(  # noqa: N802 - the protocol's name
        self,
        request: generation_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002 - the protocol's signature
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Consumes the prompt, then samples token by token."""
        logits, state = self._model(torch.tensor([[0], *([token] for token in request.tokens.ids)]), None)
        for i in range(request.max_tokens):
            token = draw(logits)
            yield generation_pb2.GenerateResponse(token_ids=[int(token)])
            if i + 1 < request.max_tokens:
                logits, state = self._model(token[None], state)


async def serve(weights: Path, port: int) -> None:
    """Serves until the process is ended."""
    server = grpc.aio.server()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(Generator(load(weights)), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
