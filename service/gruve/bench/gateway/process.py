"""The gateway's process. It imports nothing else of the benchmark, so its memory is that of `gruve gateway`."""

from __future__ import annotations

import asyncio
from multiprocessing.connection import Connection

from gruve.gateway.config import GatewayConfig
from gruve.gateway.server import serve


def run_gateway_process(config: GatewayConfig, pipe: Connection) -> None:
    """Serves until SIGTERM; sends its port when requests are answered."""
    asyncio.run(serve(config, pipe.send))
