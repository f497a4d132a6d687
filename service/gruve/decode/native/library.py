"""Loads the shared library, checks its version, and declares its structs and functions in ctypes.

Knows the C ABI (`abi.h`), and only the layout of models, rows and sampling parameters.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import ClassVar

from gruve.errors import InvalidField

log = logging.getLogger(__name__)

ABI_VERSION = 8
MAX_LAYERS = 4
ERROR_BYTES = 512
LIBRARY = Path(__file__).with_name("libgruve_native.so")
SATURATING_ROWS = {
    "avx512vnni": 8,
    "avx512": 8,
    "zen4": 4,
    "avxvnni": 4,
    "avx2": 4,
    "dotprod": 8,
    "neon": 8,
    "portable": 4,
}
"""`Backend.saturating_rows` of each kernel set: the rows that one pass over a gated layer takes. For zen4, the AVX-512
variant for Zen 4, it is half of that, because four rows cost no more there than eight in proportion."""
ISAS = tuple(SATURATING_ROWS)

OK, INVALID, FAILED, BUSY = range(4)


class Weights(ctypes.Structure):
    """`gruve_weights`."""

    _fields_: ClassVar = [
        ("cell", c_int32),
        ("vocabulary_size", c_int32),
        ("embedding_size", c_int32),
        ("hidden_size", c_int32),
        ("num_layers", c_int32),
        ("half", c_int32),
        ("int8", c_int32),
        ("embedding", c_void_p),
        ("weight_ih", c_void_p * MAX_LAYERS),
        ("weight_hh", c_void_p * MAX_LAYERS),
        ("bias", c_void_p * MAX_LAYERS),
        ("bias_hn", c_void_p * MAX_LAYERS),
        ("head_weight", c_void_p),
        ("head_projection", c_void_p),
        ("head_bias", c_void_p),
        ("pointers", c_void_p),
    ]


class Pointers(ctypes.Structure):
    """`gruve_pointers`."""

    _fields_: ClassVar = [
        ("bars_size", c_int32),
        ("followers_size", c_int32),
        ("transposed_size", c_int32),
        ("scale_size", c_int32),
        ("bars", c_void_p),
        ("followers", c_void_p),
        ("transposed", c_void_p),
        ("scale", c_void_p),
        ("kinds", c_void_p),
        ("advances", c_void_p),
        ("start_token", c_int32),
        ("place_step", c_int32),
        ("places", c_int32),
        ("counts", c_int32),
        ("matches", c_int32),
        ("weight", c_void_p),
        ("match", c_void_p),
        ("place", c_void_p),
        ("count", c_void_p),
        ("gate", c_void_p),
        ("gate_bias", c_void_p),
    ]


class Sampling(ctypes.Structure):
    """`gruve_sampling`."""

    _fields_: ClassVar = [
        ("seed", c_uint64),
        ("greedy", c_int32),
        ("scale", c_float),
        ("top_k", c_int32),
        ("top_p_share", c_int32),
        ("min_p_share", c_int32),
        ("penalty", c_float),
        ("inverse_penalty", c_float),
        ("repetition_window", c_int32),
        ("bias_size", c_int32),
        ("bias_ids", c_void_p),
        ("bias", c_void_p),
    ]


class NativeRow(ctypes.Structure):
    """`gruve_row`."""

    _fields_: ClassVar = [
        ("position", c_int64),
        ("history", c_void_p),
        ("forced", c_void_p),
        ("stop_table", c_void_p),
        ("stop_ids", c_void_p),
        ("history_size", c_int32),
        ("forced_size", c_int32),
        ("stop_states", c_int32),
        ("stop_state", c_int32),
        ("stop_ids_size", c_int32),
        ("max_tokens", c_int32),
        ("min_tokens", c_int32),
        ("generated", c_int32),
        ("end_id", c_int32),
        ("ignore_eos", c_int32),
        ("logprobs", c_int32),
        ("sampling", Sampling),
    ]


class Call(ctypes.Structure):
    """`gruve_call`."""

    _fields_: ClassVar = [
        ("rows", c_int32),
        ("steps", c_int32),
        ("alternatives", c_int32),
        ("exclusive", c_int32),
        ("slots", c_void_p),
        ("limits", c_void_p),
        ("tokens", c_void_p),
        ("steps_taken", c_void_p),
        ("statuses", c_void_p),
        ("chosen", c_void_p),
        ("top_ids", c_void_p),
        ("top", c_void_p),
    ]


STRUCTS = (Weights, Pointers, Sampling, NativeRow, Call)
_ERROR = (c_char_p, c_size_t)
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "gruve_abi_version": (c_int32, ()),
    "gruve_struct_sizes": (None, (POINTER(c_size_t),) * len(STRUCTS)),
    "gruve_isa": (c_char_p, (c_char_p,)),
    "gruve_model_create": (c_int32, (POINTER(Weights), c_char_p, POINTER(c_void_p), *_ERROR)),
    "gruve_memory": (
        c_int32,
        (POINTER(Weights), c_char_p, c_int32, c_int32, POINTER(c_size_t), POINTER(c_size_t), *_ERROR),
    ),
    "gruve_model_destroy": (None, (c_void_p,)),
    "gruve_model_bytes": (c_size_t, (c_void_p,)),
    "gruve_decoder_create": (c_int32, (c_void_p, c_int32, c_int32, POINTER(c_void_p), *_ERROR)),
    "gruve_decoder_destroy": (None, (c_void_p,)),
    "gruve_admit": (c_int32, (c_void_p, c_int32, POINTER(NativeRow), c_void_p, *_ERROR)),
    "gruve_decode": (c_int32, (c_void_p, POINTER(Call), *_ERROR)),
    "gruve_snapshot": (c_int32, (c_void_p, c_int32, c_void_p, *_ERROR)),
    "gruve_release": (c_int32, (c_void_p, c_int32, *_ERROR)),
    "gruve_last_logits": (c_int32, (c_void_p, c_int32, c_void_p, *_ERROR)),
    "gruve_draw": (
        c_int32,
        (
            c_char_p,
            c_void_p,
            c_int32,
            POINTER(Sampling),
            c_int64,
            c_void_p,
            c_int32,
            c_void_p,
            c_int32,
            POINTER(c_int32),
            *_ERROR,
        ),
    ),
    "gruve_multiplies_exactly": (c_int32, (c_char_p,)),
    "gruve_philox": (None, (POINTER(c_uint32), POINTER(c_uint32), POINTER(c_uint32))),
    "gruve_activations": (c_int32, (c_char_p, c_void_p, c_int32, c_void_p, c_void_p, *_ERROR)),
}


class Library:
    """The loaded library, its functions with their types. Calls release the GIL."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` if it cannot be loaded and `ImportError` if it is from another build than this package."""
        self._c = ctypes.CDLL(str(path))
        self._c.gruve_abi_version.restype = c_int32
        found = self._c.gruve_abi_version()
        if found != ABI_VERSION:
            raise ImportError(f"its ABI version is {found}, this package's {ABI_VERSION}; install gruve again")
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._c, name)
            function.restype, function.argtypes = result, arguments
        sizes = [c_size_t() for _ in STRUCTS]
        self._c.gruve_struct_sizes(*(ctypes.byref(size) for size in sizes))
        for struct, size in zip(STRUCTS, sizes, strict=True):
            if ctypes.sizeof(struct) != size.value:
                raise ImportError(
                    f"its {struct.__name__} has {size.value} bytes, this package's {ctypes.sizeof(struct)}; "
                    "install gruve again"
                )

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function that returns a status; raises `ValueError` for a refused argument, else `RuntimeError`."""
        error = ctypes.create_string_buffer(ERROR_BYTES)
        status = getattr(self._c, name)(*arguments, error, ERROR_BYTES)
        if status != OK:
            message = error.value.decode(errors="replace")
            raise ValueError(message) if status == INVALID else RuntimeError(message)

    def plain(self, name: str, *arguments: object) -> None:
        """Calls a function that cannot fail and returns nothing."""
        getattr(self._c, name)(*arguments)

    def model_bytes(self, model: c_void_p) -> int:
        """The size of a packed model in memory."""
        return int(self._c.gruve_model_bytes(model))

    def memory(self, weights: Weights, isa: str, slots: int, threads: int) -> tuple[int, int]:
        """The bytes of a packed model, and of a decoder when every slot has a sequence. Reads no weight."""
        model, decoder = c_size_t(), c_size_t()
        sizes = ctypes.byref(model), ctypes.byref(decoder)
        self.call("gruve_memory", ctypes.byref(weights), isa.encode(), slots, threads, *sizes)
        return model.value, decoder.value

    def isa(self, wanted: str | None = None) -> str | None:
        """`wanted` if this CPU supports it, else None; for None, the fastest that this CPU supports."""
        name = self._c.gruve_isa(wanted.encode() if wanted else None)
        return None if name is None else str(name.decode())

    def multiplies_exactly(self, isa: str) -> bool:
        """Whether the int8 products of `isa`, which `isa` returned, are those of plain integers."""
        return bool(self._c.gruve_multiplies_exactly(isa.encode()))


@functools.cache
def library() -> Library:
    """The library of this package, loaded once; raises as `Library` does."""
    return Library(LIBRARY)


@functools.cache
def chosen_isa(wanted: str | None = None) -> str:
    """`wanted`, or for None the fastest whose int8 products are those of plain integers.

    Raises `InvalidField` if this CPU does not support `wanted`, or multiplies with it otherwise.
    """
    isa = library().isa(wanted)
    if isa is None:
        raise InvalidField(
            "isa", f"{wanted!r} is not {', '.join(ISAS[:-1])} or {ISAS[-1]}, or this CPU does not support it"
        )
    if library().multiplies_exactly(isa):
        return isa
    if wanted is not None:
        raise InvalidField("isa", f"{isa!r} gives int8 products other than those of plain integers on this CPU")
    others = [other for other in ISAS if other != isa and library().isa(other) and library().multiplies_exactly(other)]
    chosen = others[0] if others else ISAS[-1]
    log.warning("%s gives int8 products other than those of plain integers on this CPU: %s is used", isa, chosen)
    return chosen


def unavailable_reason() -> str | None:
    """Returns why the native backend cannot be used here, or None if it can."""
    if not LIBRARY.exists():
        return f"{LIBRARY.name} was not built: gruve was installed with GRUVE_NATIVE=0, or never"
    try:
        chosen_isa()
    except (OSError, ImportError, AttributeError, InvalidField) as error:
        return f"{LIBRARY.name} cannot be used: {error}"
    return None
