"""Passes a model's weights to the shared library, which packs them, and shares the result between backends.

Knows ctypes and the layout of weights, not rows or calls.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
import weakref

import numpy as np
import torch
from numpy.typing import NDArray

from gruve.decode import Arithmetic
from gruve.decode.native import library as abi
from gruve.errors import ModelBroken
from gruve.model.config import ModelConfig
from gruve.model.repository import Model

CELLS = {("gru", "after"): 0, ("gru", "before"): 1, ("lstm", None): 2, ("elman", None): 3}


class PackedWeights:
    """A model's weights as the library holds them: immutable, shared by every backend of the same model."""

    def __init__(
        self, config: ModelConfig, weights: dict[str, NDArray[np.float32]], isa: str, arithmetic: Arithmetic
    ) -> None:
        self._library = abi.library()
        # Without an input table, the library reads the rows of the embedding and of the pointers from here.
        self._rows = [weights[name] for name in weights if name.startswith(("embedding", "pointers"))]
        self.model = ctypes.c_void_p()
        given, keep = weights_struct(config, weights, arithmetic)
        self._library.call("gruve_model_create", ctypes.byref(given), isa.encode(), ctypes.byref(self.model))
        del keep  # the library has copied it
        weakref.finalize(self, self._library.plain, "gruve_model_destroy", self.model).atexit = False

    @property
    def bytes(self) -> int:
        """The size of the packed weights in memory."""
        return self._library.model_bytes(self.model)


_packed: weakref.WeakValueDictionary[str, PackedWeights] = weakref.WeakValueDictionary()
_packing = threading.Lock()


def packed_weights(model: Model, isa: str, arithmetic: Arithmetic) -> PackedWeights:
    """The packed weights of a model, shared by all backends with the same content while one of them lives."""
    weights = {name: _array(tensor) for name, tensor in model.weights.items()}
    key = hashlib.sha256(f"{isa} {arithmetic} {model.config.to_json()}".encode())
    for name in model.config.shapes():
        key.update(weights[name].data)
    with _packing:
        packed = _packed.get(key.hexdigest())
        if packed is None:
            packed = _packed[key.hexdigest()] = PackedWeights(model.config, weights, isa, arithmetic)
        return packed


def native_sizes(config: ModelConfig, slots: int, threads: int, isa: str, arithmetic: Arithmetic) -> tuple[int, int]:
    """The bytes of the packed weights and of the decoder, as the library lays them out. It reads no weight."""
    weights = {name: np.broadcast_to(np.float32(0.0), shape) for name, shape in config.shapes().items()}
    given, keep = weights_struct(config, weights, arithmetic)
    sizes = abi.library().memory(given, isa, slots, threads)
    del keep  # the library has read it
    return sizes


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float32)


def weights_struct(
    config: ModelConfig, weights: dict[str, NDArray[np.float32]], arithmetic: Arithmetic
) -> tuple[abi.Weights, object]:
    """The weights as the library takes them, and what the struct points into beside `weights`.

    Raises `ModelBroken` for a weight of another shape than the configuration's.
    """
    for name, shape in config.shapes().items():
        if weights[name].shape != shape:
            raise ModelBroken(f"{name} has shape {weights[name].shape}; expected {shape}")

    def address(name: str) -> int | None:
        return weights[name].ctypes.data if name in weights else None

    struct = abi.Weights(
        cell=CELLS[config.cell, config.reset],
        vocabulary_size=config.vocabulary_size,
        embedding_size=config.embedding_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        half=config.precision == "float16",
        int8=arithmetic == "int8",
        embedding=address("embedding.weight"),
        head_weight=address("head.weight"),
        head_projection=address("head.projection"),
        head_bias=address("head.bias"),
    )
    for l in range(config.num_layers):
        for name in ("weight_ih", "weight_hh", "bias", "bias_hn"):
            getattr(struct, name)[l] = address(f"layers.{l}.{name}")
    pointers, arrays = _pointers_struct(config, weights)
    struct.pointers = None if pointers is None else ctypes.addressof(pointers)
    return struct, (pointers, arrays)


def _pointers_struct(
    config: ModelConfig, weights: dict[str, NDArray[np.float32]]
) -> tuple[abi.Pointers | None, tuple[NDArray[np.int32], ...]]:
    """The pointers as the library takes them, None for a model without, and the arrays that the struct points into."""
    pointers = config.pointers
    if pointers is None:
        return None, ()
    V = config.vocabulary_size
    kinds = np.zeros(V, dtype=np.int32)
    kinds[list(pointers.bar_tokens)] = 1
    kinds[list(pointers.part_tokens)] = 2
    advances = np.array(pointers.advances or [0] * V, dtype=np.int32)
    bars, followers, transposed, scale = (
        np.array(values, dtype=np.int32)
        for values in (pointers.bars, pointers.followers, pointers.transposed, pointers.scale)
    )

    def address(name: str) -> int | None:
        return weights[f"pointers.{name}"].ctypes.data if f"pointers.{name}" in weights else None

    struct = abi.Pointers(
        bars_size=len(bars),
        followers_size=len(followers),
        transposed_size=len(transposed),
        scale_size=len(scale),
        bars=bars.ctypes.data,
        followers=followers.ctypes.data,
        transposed=transposed.ctypes.data,
        scale=scale.ctypes.data,
        kinds=kinds.ctypes.data,
        advances=advances.ctypes.data,
        start_token=pointers.start_token,
        place_step=pointers.place_step,
        places=pointers.places,
        counts=pointers.counts,
        matches=pointers.matches,
        **{name: address(name) for name in ("weight", "match", "place", "count", "gate", "gate_bias")},
    )
    return struct, (kinds, advances, bars, followers, transposed, scale)
