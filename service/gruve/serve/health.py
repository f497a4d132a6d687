"""The health of the server, its services, its models and its store, for gRPC's health service and for `/healthz`."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

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
        """Returns why the whole server is not ready, or "" if it is.

        It waits for the event loop to answer, so that a probe finds a loop that is stuck. Call it on another thread.
        """
        answer: Future[bool] = Future()
        try:
            loop.call_soon_threadsafe(lambda: answer.set_result(self.is_serving))
            is_serving = answer.result(LOOP_ANSWER_S)
        except TimeoutError:
            return f"the event loop has not answered for {LOOP_ANSWER_S:g} s"
        except RuntimeError:  # the loop is closed
            return "not serving"
        return "" if is_serving else "not serving"
