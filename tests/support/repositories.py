"""Folders of models that tests write, change and break while a server runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gruve.model.repository import WEIGHTS, Model, save
from nets import CELLS, config_of, tokenizer_of, weights_of


def write_model(folder: Path, seed: int = 1, *, V: int = 13, H: int = 16, card: str | None = None) -> Model:
    """A model with weights of its own for each seed."""
    config = config_of(CELLS[0], V=V, H=H)
    return save(folder, config, tokenizer_of(V), weights_of(config, seed), card)


def write_version(model: Path, number: int, seed: int = 1, **sizes: int) -> str:
    """A version in its folder; returns its digest. It is complete before it has its name."""
    written = write_model(model.parent / ".writing" / "net", seed, **sizes)
    model.mkdir(exist_ok=True)
    os.replace(model.parent / ".writing" / "net", model / str(number))
    return written.digest


def truncate(folder: Path) -> None:
    """Cuts the weights off, as an interrupted copy does."""
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:500])


def replace_model(folder: Path, other: Path) -> None:
    """Copies a model's files over another's, one after the other."""
    shutil.copytree(other, folder, dirs_exist_ok=True)
