"""A TCP proxy that goes silent: its connections stay open, and nothing passes through them any more."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class FreezingProxy:
    """Forwards TCP to a port. `freeze` silences the connections there are; those that come later are forwarded.

    A new connection is forwarded after `late_s`, as over a long way.
    """

    def __init__(self, port: int, late_s: float = 0.0) -> None:
        self._port = port
        self._late_s = late_s
        self._thawed = threading.Event()
        self._frozen = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Silences the present connections."""
        frozen, self._frozen = self._frozen, threading.Event()
        frozen.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                time.sleep(self._late_s)
                far = socket.create_connection(("127.0.0.1", self._port))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(*pair, self._frozen), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, frozen: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if frozen.is_set():
                    self._thawed.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._thawed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
