"""The checkpoint of a run in one safetensors file: tensors as tensors, everything else as JSON in its header."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gruve.errors import ModelBroken

FILE = "checkpoint.safetensors"


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a run after one of its steps."""

    config_digest: str
    corpus_sha256: str
    step: int
    tokens: int
    seconds: float
    tensors: dict[str, Tensor]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a new file and then replaces the old one, so that a crash leaves one whole checkpoint.

    Raises `OSError`, and then the old one stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scalars = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint) if f.name != "tensors"}
    partial = folder / f".{FILE}.partial"
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    try:
        partial.write_bytes(save(tensors, {"gruve": json.dumps(scalars)}))
    except OSError as error:  # which names no file if the disk is full
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(folder / FILE)) from error
    os.replace(partial, folder / FILE)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads the folder's checkpoint; raises `ModelBroken` if there is none or it cannot be read."""
    path = folder / FILE
    if not path.exists():
        raise ModelBroken(f"there is no checkpoint in {folder}: no file {FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            scalars: dict[str, Any] = json.loads((file.metadata() or {})["gruve"])
            return Checkpoint(**scalars, tensors={name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelBroken(f"{path} cannot be read: {error}") from error
