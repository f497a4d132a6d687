"""A Redis for the tests."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time

import pytest

from requiring import need_program


class RedisServer:
    """A Redis on a socket in a folder."""

    def __init__(self, folder) -> None:
        program = need_program("redis-server", "apt-get install redis-server")
        self.folder, self.url = folder, f"unix://{folder}/redis.sock"
        self._command = [program, "--port", "0", "--unixsocket", f"{folder}/redis.sock", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--logfile", f"{folder}/log"]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        give_up_s = time.monotonic() + 30.0
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                connection.connect(f"{self.folder}/redis.sock")
                connection.sendall(b"PING\r\n")
                if connection.recv(64).startswith(b"+PONG"):  # and not "-LOADING", while it reads its file
                    return
            assert time.monotonic() < give_up_s
            time.sleep(0.01)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    # The path of a socket has to be short.
    folder = tmp_path_factory.mktemp("r")
    server = RedisServer(folder)
    yield server
    server.stop()
    shutil.rmtree(folder)
