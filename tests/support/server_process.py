"""`gruve serve` as a process, and a way to drain a server in this process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile

import grpc

from serving import PATIENCE_S

KEY = "a key that every server shares"


class Process:
    """`gruve serve` as a process of its own."""

    def __init__(self, repository, *flags: str) -> None:
        command = [sys.executable, "-m", "gruve.cli", "serve", "--models", str(repository), "--port", "0"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit; a pipe that nobody reads fills
        self._process = subprocess.Popen(
            [*command, "--metrics-port", "0", "--device", "cpu", "--threads", "1", *flags],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "GRUVE_SESSION_KEY": KEY},
        )
        self._line: dict[str, object] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def line(self):
        """The line that it prints when it is ready."""
        if self._line is None:
            self._line = json.loads(self._process.stdout.readline())
        return self._line

    @property
    def log(self) -> str:
        """What it has written to standard error so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def connect(self) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.line['port']}", options=[("grpc.use_local_subchannel_pool", 1)])

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Exit code, the rest of standard output, and standard error."""
        out, _ = self._process.communicate(timeout=PATIENCE_S)
        return self._process.returncode, out, self.log

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


def drain(server, ending="drain"):
    """Begins to drain a server, as a signal does. Returns the event that a second signal sets."""

    async def begin():
        asked = asyncio.Queue()
        task = asyncio.create_task(server.server.drain(ending, asked))
        return asked, task

    return server.run(begin())
