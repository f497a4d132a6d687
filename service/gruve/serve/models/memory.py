"""The memory of loaded models: what each takes, what they take together, and which are unloaded to make room.

Knows sizes and times; no files, no engines and no event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from gruve.decode.choose import DecodeConfig, backend_bytes, uses_gpu
from gruve.errors import InvalidField, LimitExceeded, ModelBroken
from gruve.model.config import ModelConfig

RETRY_AFTER_S = 1.0
TOKEN_BYTES = 200
"""What a token of a vocabulary takes in a tokenizer: its text, its places in two tuples and in a dictionary."""
MIB = 1 << 20


class Loaded(Protocol):
    """A loaded model that nothing uses."""

    memory_bytes: int
    idle_since_s: float


T = TypeVar("T", bound=Loaded)


def model_bytes(model: ModelConfig, decode: DecodeConfig) -> int:
    """The memory that a loaded model takes with a sequence in every slot, in bytes, computed before it is loaded.

    It is that of the weights as they were read, of the backend (packed weights, slots and workspaces) and of the
    tokenizer. Prompts and what else belongs to requests are not in it, nor is what reading takes for a moment.
    """
    return 4 * model.parameter_count() + backend_bytes(model, decode) + TOKEN_BYTES * model.vocabulary_size


def least_recently_used(idle: Iterable[T], missing_bytes: int) -> list[T] | None:
    """The models to unload so that `missing_bytes` become free: those idle for longest; None if all are too few."""
    chosen: list[T] = []
    for model in sorted(idle, key=lambda model: model.idle_since_s):
        if missing_bytes <= 0:
            break
        chosen.append(model)
        missing_bytes -= model.memory_bytes
    return chosen if missing_bytes <= 0 else None


class ModelMemory:
    """The limit on the memory of loaded models, and how much of it is in use."""

    def __init__(self, limit_bytes: int, decode: DecodeConfig) -> None:
        """Raises `InvalidField` where a GPU decodes, because the memory of its backends is not known before."""
        if uses_gpu(decode):
            raise InvalidField("model_memory", "is a limit for models on a CPU, and a GPU decodes here (--device)")
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        """What models take that are loaded, being loaded or being unloaded."""
        self._decode = decode

    def needed(self, model: ModelConfig) -> int:
        """The memory that a model takes. Raises `ModelBroken` if that is more than the limit."""
        needed = model_bytes(model, self._decode)
        if needed > self.limit_bytes:
            raise ModelBroken(
                f"it takes {_shown(needed)} of memory with {self._decode.slots} slots; "
                f"all models together may take {_shown(self.limit_bytes)} (--model-memory)"
            )
        return needed

    def full(self, name: str, needed: int) -> LimitExceeded:
        """The error of a request whose model has no room, because the others are in use."""
        return LimitExceeded(
            f"model {name!r} takes {_shown(needed)} of memory; {_shown(self.used_bytes)} of {_shown(self.limit_bytes)} "
            "(--model-memory) are taken, and the models that nobody uses would not make enough room",
            limit="model_memory",
            bound=self.limit_bytes,
            retry_after_s=RETRY_AFTER_S,
        )


def _shown(size: int) -> str:
    return f"{size / MIB:.1f} MiB" if size >= MIB else f"{size / 1_024:.1f} KiB"
