"""The CPU backend: the whole step in C++ behind a plain C ABI, called through ctypes, the GIL free meanwhile.

`abi.h` is the border. Above it stand `library.py` (finds, checks and describes the shared library) and `backend.py`
(the decode contract); below it `model` (packing), `kernels*` (one object per instruction set), `sampling`, `call` and
`decoder` (slots and steps) and `pool` (threads).
"""

from gruve.decode.native.backend import NativeBackend
from gruve.decode.native.library import unavailable_reason

__all__ = ["NativeBackend", "unavailable_reason"]
