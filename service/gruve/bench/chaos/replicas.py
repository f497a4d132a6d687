"""The processes of the chaos benchmark: `gruve serve` servers, Redis, and HAProxy in front of the servers.

A process keeps its port and its files over a restart. Its output goes into files in the benchmark's folder.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Self

READY_S, END_S = 90.0, 30.0
PORTS = range(20_000, 32_000)
"""Below the ephemeral ports, so that the system does not give a server's port to a client while the server is down."""
HAPROXY = """\
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 4s
  retries 1
  option redispatch
frontend clients
  bind 127.0.0.1:{port} proto h2
  default_backend replicas
backend replicas
  balance roundrobin
  default-server proto h2 check inter 200ms fall 1 rise 1
{servers}
"""
"""A replica without an answer for 4 seconds counts as dead. Its streams never pause that long."""
REDIS = ("--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always")


def find_program(name: str) -> str | None:
    """The path of a program, searched in the administrators' folders too; None if it is not installed."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")


def free_port() -> int:
    """A free port outside the system's ephemeral range."""
    while True:
        port = random.choice(PORTS)  # noqa: S311 - not a secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Program:
    """A program that can be started, ended and started again."""

    def __init__(self, folder: Path, name: str, command: tuple[str, ...]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.kill()

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Starts it and waits until it is ready. Raises `ChildProcessError`."""
        with self.log.open("ab") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        try:
            async with asyncio.timeout(READY_S):
                await self._ready(process)
        except (TimeoutError, ChildProcessError) as error:
            await self.kill()
            tail = self.log.read_text(errors="replace")[-600:]
            raise ChildProcessError(f"{self.name} was not ready within {READY_S:.0f} s, or ended: {tail}") from error
        except BaseException:  # no other code would end it
            await self.kill()
            raise

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """Kills it at once, with SIGKILL."""
        self.send(signal.SIGKILL)
        await self._gone()

    async def terminate(self) -> None:
        """Asks it to end; raises `TimeoutError` if it does not."""
        self.send(signal.SIGTERM)
        async with asyncio.timeout(END_S):
            await self._gone()

    async def _gone(self) -> None:
        process = self._process
        if process is not None:
            await process.communicate()
            self._process = None

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        raise NotImplementedError


class Replica(Program):
    """A `gruve serve` process."""

    def __init__(self, folder: Path, name: str, models: Path, store: str) -> None:
        self.port, self._metrics_port = free_port(), 0
        options = {
            "--models": str(models),
            "--store": store,
            "--port": str(self.port),
            "--metrics-port": "0",
            "--device": "cpu",
            "--threads": "1",
        }
        words = [word for option in options.items() for word in option]
        super().__init__(folder, name, (sys.executable, "-m", "gruve.cli", "serve", *words))

    @property
    def address(self) -> str:
        """The address it listens on."""
        return f"127.0.0.1:{self.port}"

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = await asyncio.to_thread(_get, f"http://127.0.0.1:{self._metrics_port}/metrics")
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith((name + " ", name + "{")))

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - the pipe was requested above
        line = await process.stdout.readline()
        if not line:
            raise ChildProcessError(f"{self.name} ended")
        self._metrics_port = json.loads(line)["metrics_port"]


class Redis(Program):
    """Redis on a socket in a folder. It writes to disk before it answers."""

    def __init__(self, folder: Path, program: str) -> None:
        self._socket = folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        where = ("--unixsocket", str(self._socket), "--dir", str(folder))
        super().__init__(folder, "redis", (program, *REDIS, *where))

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._socket)
            except OSError:
                await _pause(process, self.name)
                continue
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
            if answer.startswith(b"+PONG"):
                return
            await _pause(process, self.name)  # it is still loading


class Proxy(Program):
    """HAProxy, which sends each call to the next server."""

    def __init__(self, folder: Path, program: str, replicas: list[Replica]) -> None:
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        config = folder / "haproxy.cfg"
        servers = "\n".join(f"  server {replica.name} {replica.address}" for replica in replicas)
        config.write_text(HAPROXY.format(port=self._port, servers=servers))
        super().__init__(folder, "haproxy", (program, "-db", "-f", str(config)))

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await _pause(process, self.name)
                continue
            writer.close()
            return


async def _pause(process: asyncio.subprocess.Process, name: str) -> None:
    """Waits before the next check of a program that does not report when it is ready."""
    if process.returncode is not None:
        raise ChildProcessError(f"{name} ended with {process.returncode}")
    await asyncio.sleep(0.02)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10.0) as answer:  # noqa: S310 - our own server
        return str(answer.read().decode())
