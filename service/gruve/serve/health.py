"""The health of the server, its services, its models and its store, for gRPC's health service and for `/healthz`."""

from __future__ import annotations

import asyncio

from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health_pb2

SERVER = ""
"""The health service's name for the whole server."""
STORE = "gruve.store"
"""Its name for the session store. The server stays ready when the store fails."""
LOOP_ANSWER_S = 3.0
"""How long a probe waits for the event loop, which is busy for milliseconds at a time."""


class Health:
    """What is ready, by name. Belongs to the event loop; other threads may call `why_not_serving`."""

    def __init__(self) -> None:
        self.servicer = health_aio.HealthServicer()
        self.is_serving = False
        """Whether the whole server is ready."""
        self._setting: set[asyncio.Future[None]] = set()

    async def set(self, name: str, serving: bool) -> None:
        """Sets whether `name` is ready."""
        if name == SERVER:
            self.is_serving = serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.servicer.set(name, status)

    def set_soon(self, name: str, serving: bool) -> None:
        """Sets it in a task, for callers that cannot wait."""
        self._setting.add(task := asyncio.ensure_future(self.set(name, serving)))
        task.add_done_callback(self._setting.discard)

    def why_not_serving(self, loop: asyncio.AbstractEventLoop) -> str:
        """Why the whole server is not ready, or "". Another thread than that of `loop` asks, and waits for `loop`.

        So a probe finds a server whose event loop is stuck.
        """
        asking = self._why_not_serving()
        try:
            answer = asyncio.run_coroutine_threadsafe(asking, loop)
        except RuntimeError:  # the loop is closed
            asking.close()
            return "not serving"
        try:
            return answer.result(LOOP_ANSWER_S)
        except TimeoutError:
            answer.cancel()
            return f"the event loop has not answered for {LOOP_ANSWER_S:g} s"

    async def _why_not_serving(self) -> str:
        return "" if self.is_serving else "not serving"
