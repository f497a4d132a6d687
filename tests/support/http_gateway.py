"""A real gateway on a free port, in this process on its own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx

from gruve.gateway.config import GatewayConfig
from gruve.gateway.server import Gateway, listen
from serving import PATIENCE_S


@contextlib.contextmanager
def gateway_url(*addresses: str, **fields: Any) -> Iterator[str]:
    """The URL of a gateway in front of some servers, which ends with the block."""
    running = RunningGateway(addresses[0], **{"servers": addresses, "drain_s": 1.0, **fields})
    try:
        yield running.url
    finally:
        running.close()


class RunningGateway:
    """A gateway in front of the server at `address`; `http` is a client of it."""

    def __init__(self, address: str, **fields: Any) -> None:
        config = dataclasses.replace(GatewayConfig(servers=(address,), port=0), **fields)
        self._listening = listen(config.host, config.port)
        self.port: int = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        ready = threading.Event()
        self._made = Gateway(config, ready.set)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert ready.wait(PATIENCE_S)
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        """Begins to shut down, as after SIGTERM."""
        self._made.end()

    def close(self) -> None:
        self.http.close()
        self.end()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        with self._listening:
            asyncio.run(self._made.serve([self._listening]))
