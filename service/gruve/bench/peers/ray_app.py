"""Ray Serve with `serve.batch` over a generator, streaming over HTTP; one chunk a token.

python -m gruve.bench.peers.ray_app WEIGHTS PORT
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

from gruve.bench.peers.char_rnn import Continuous, load

MOST_ROWS = 64
MOST_BATCHES = 4


class CharRnnApp:
    """Requests that arrive together decode together. A batch ends with its longest request."""

    def __init__(self, weights: str) -> None:
        self._model = load(Path(weights))

    @serve.batch(max_batch_size=MOST_ROWS, batch_wait_timeout_s=0.005, max_concurrent_batches=MOST_BATCHES)  # type: ignore[untyped-decorator]
    async def generate(self, asked: list[dict[str, Any]]) -> AsyncIterator[list[Any]]:
        """Yields one list of tokens for each step. A request that has ended gets one end marker."""
        sequences: Continuous[int] = Continuous(self._model)
        out: list[Any] = [
            f"{sequences.add(i, request['prompt'], request['max_tokens'])}\n" for i, request in enumerate(asked)
        ]
        yield out
        while len(sequences):
            out = [StopIteration] * len(asked)
            for key, token, _ in sequences.step():
                out[key] = f"{token}\n"
            yield out
            await asyncio.sleep(0)

    async def __call__(self, request: Request) -> StreamingResponse:
        """Streams one request's tokens."""
        return StreamingResponse(self.generate(await request.json()), media_type="text/plain")


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=2, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    deployed = serve.deployment(max_ongoing_requests=1_024, ray_actor_options={"num_cpus": 1})(CharRnnApp)
    serve.run(deployed.bind(sys.argv[1]))
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    ray.shutdown()
