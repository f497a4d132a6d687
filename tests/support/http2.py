"""A raw HTTP/2 client that sends frames no library would send: those of a gRPC call, whole, broken or reset."""

from __future__ import annotations

import contextlib
import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CANCEL = 8


def frame(kind, flags=0, stream=0, payload=b"", length=None):
    """One frame. `length` is the length in its header, if it is to be wrong."""
    length = len(payload) if length is None else length
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name, value):
    """A header, literal and not indexed, with both strings shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def headers(path="/gruve.v1.GenerationService/Generate"):
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    return b"".join(literal(name, value) for name, value in fields.items())


def call(stream, message):
    """The frames of a call that has sent its request."""
    body = b"\x00" + struct.pack(">I", len(message)) + message
    return frame(HEADERS, END_HEADERS, stream, headers()) + frame(DATA, END_STREAM, stream, body)


def reset(stream):
    return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


class Connection:
    """A connection after its handshake. What the server sends is read and discarded."""

    def __init__(self, port):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.send(PREFACE + frame(SETTINGS))

    def send(self, data):
        """Sends bytes. Returns False if the server has closed the connection."""
        with contextlib.suppress(OSError):
            self._socket.sendall(data)
            self._socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while self._socket.recv(65_536):
                    pass
                return False  # closed
            self._socket.settimeout(10)
            return True
        return False

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
