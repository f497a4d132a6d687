"""The CPU backend: the whole step in C++ behind a C ABI, called through ctypes without the GIL.

`abi.h` declares the ABI. Above it, in Python, `library.py` loads and describes the shared library, `weights.py` has a
model's weights packed, and `backend.py` implements the decode interface. Below it, in C++, are `model` (packing of
weights), `kernels*` (one object per instruction set), `sampling`, `pointers`, `call` and `decoder` (slots and steps),
and `pool` (threads).
"""

from gruve.decode.native.backend import NativeBackend, native_bytes
from gruve.decode.native.library import unavailable_reason

__all__ = ["NativeBackend", "native_bytes", "unavailable_reason"]
