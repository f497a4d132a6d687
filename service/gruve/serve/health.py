"""The health of the server, its services, its models and its store, for gRPC's health service and for `/healthz`."""

from __future__ import annotations

import asyncio

from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health_pb2

SERVER = ""
"""The health service's name for the whole server."""
STORE = "gruve.store"
"""Its name for the session store. The server stays ready when the store fails."""


class Health:
    """What is ready, by name. Belongs to the event loop; other threads may read `is_serving`."""

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
