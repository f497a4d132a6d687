"""Chooses the backend of a model on this machine, and gives the reason."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from gruve.decode import Arithmetic, Backend
from gruve.decode.cuda import CudaMode, cuda_backend
from gruve.decode.native import NativeBackend, native_bytes, unavailable_reason
from gruve.decode.reference import ReferenceBackend, reference_bytes
from gruve.errors import InvalidField
from gruve.model.config import ModelConfig
from gruve.model.repository import Model

Device = Literal["auto", "cpu", "cuda"]


@dataclasses.dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Which backend may compute a model, and how much of the machine it may use."""

    device: Device = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if torch sees one, else the CPU."""
    slots: int = 1_024
    """The number of sequences that a model decodes at the same time."""
    threads: int | None = None
    """The number of CPU threads that decode. None is the number of cores that this process or its container may use, or
    1 for the reference backend."""
    native: bool = True
    """Whether the native backend may be used on a CPU; if not, the reference backend is."""
    isa: str | None = None
    """The instruction set of the native backend, one that the CPU supports; None for the fastest."""
    arithmetic: Arithmetic = "int8"
    """The number format of products with a state. `int8` makes the same tokens with every backend and device, and is
    faster on a CPU; `float32` rounds less, and its tokens depend on the backend."""
    cuda: CudaMode = "auto"
    """How a GPU computes: `triton`, `graph` or `eager`; `auto` takes the first of these that works."""


def choose_backend(model: Model, config: DecodeConfig) -> Backend:
    """The best backend for `model` on this machine.

    Raises `InvalidField` if `device` names a GPU and torch sees none, or `isa` names instructions that the CPU does not
    have, and `ModelBroken` if no backend computes this model exactly.
    """
    device = config.device
    if uses_gpu(config):
        reason = "torch sees a GPU" if device == "auto" else "a GPU was asked for"
        return cuda_backend(model, config.slots, config.cuda, reason, config.arithmetic)
    reason = "torch sees no GPU" if device == "auto" else "a CPU was asked for"
    unavailable = _not_native(config)
    if unavailable is None:
        return NativeBackend(model, config.slots, config.threads, reason, config.isa, config.arithmetic)
    # Torch's small operations gain nothing from a second thread, and would take it from the wire.
    torch.set_num_threads(config.threads or 1)
    return ReferenceBackend(model, config.slots, "cpu", f"{reason}; {unavailable}", config.arithmetic)


def uses_gpu(config: DecodeConfig) -> bool:
    """Whether models are decoded on a GPU. Raises `InvalidField` when one is asked for that torch does not see."""
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise InvalidField("device", "cuda was asked for and torch sees no GPU")
    return config.device == "cuda" or (config.device == "auto" and cuda)


def backend_bytes(model: ModelConfig, config: DecodeConfig) -> int:
    """The memory that the CPU backend of a model would take with a sequence in every slot, in bytes.

    It is computed from the sizes alone, and does not include the model's own weights nor what requests bring.
    """
    if _not_native(config) is None:
        return native_bytes(model, config.slots, config.threads, config.isa, config.arithmetic)
    return reference_bytes(model, config.slots, config.arithmetic)


def _not_native(config: DecodeConfig) -> str | None:
    """Why the native backend does not decode on a CPU; None if it does."""
    return unavailable_reason() if config.native else "the native backend is turned off"
