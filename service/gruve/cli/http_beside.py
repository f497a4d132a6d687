"""The gateway that `gruve serve --http-port` starts beside the server: a process of its own, which ends with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from gruve.cli.output.terminal import Failure

KEPT = (
    "GRUVE_ALLOW_ORIGIN",
    "GRUVE_HTTP_BODY_TIMEOUT_S",
    "GRUVE_HTTP_HEAD_TIMEOUT_S",
    "GRUVE_HTTP_MAX_BODY",
    "GRUVE_HTTP_MAX_CONNECTIONS",
)
"""The gruve variables that the gateway gets; the others are the server's, and some hold keys."""
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a server is reached that listens everywhere
PATIENCE_S = 10.0
"""How long the gateway may take to end; its responses may continue for 5 s."""


class GatewayBeside:
    """A `gruve gateway` that calls the server of this process.

    Another process, because an event loop in this one would take the interpreter's lock from the server's. It ends when
    the pipe to its standard input is closed, so it does not outlive a server that is killed.
    """

    def __init__(self, host: str, http_port: int, log_level: str) -> None:
        self._host = host
        self._http_port = http_port
        self._log_level = log_level
        self._process: subprocess.Popen[str] | None = None
        self._answers = False

    def start(self, grpc_port: int) -> int:
        """Starts it and returns its port once it answers. Raises `Failure`."""
        reached = ANY.get(self._host, self._host)
        server = f"[{reached}]:{grpc_port}" if ":" in reached else f"{reached}:{grpc_port}"
        where = ("--address", server, "--host", self._host, "--port", str(self._http_port))
        flags = (*where, "--insecure", "--log-level", self._log_level)
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and flags from here
            (sys.executable, "-m", "gruve.cli", "gateway", "--end-with-stdin", *flags),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name in KEPT or not name.startswith("GRUVE_")},
        )
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self.end()
            raise Failure(f"HTTP cannot be served on {self._host}:{self._http_port}; the line above says why")
        self._answers = True
        return int(json.loads(line)["port"])

    def end(self) -> None:
        """Ends it, at once if it does not answer yet."""
        if self._process is None:
            return
        if not self._answers:
            self._process.terminate()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
