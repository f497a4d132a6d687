"""The model that a run begins with, and its weights in the shapes of the run's own model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gruve.errors import InvalidField, ModelBroken
from gruve.model.config import ModelConfig
from gruve.model.pointers import PointerConfig
from gruve.model.repository import Model, load_given
from gruve.training.config import TrainingConfig

PER_POINTER = ("pointers.weight", "pointers.match", "pointers.gate", "pointers.gate_bias")
"""The tables that have a part for each pointer, in their order."""


def initial_model(config: TrainingConfig, folder: Path | None) -> Model:
    """The model that a run begins with. Raises `InvalidField` if folder and config do not name the same one."""
    wanted = config.initial_digest
    if folder is None:
        raise InvalidField("initial_digest", f"is {wanted}; the folder of that model must be given, too")
    model = load_given(folder)
    if model.digest != wanted:
        raise InvalidField("initial_digest", f"is {wanted!r}; the model in {folder} has {model.digest!r}")
    return model


def initial_weights(config: ModelConfig, model: Model) -> dict[str, Tensor]:
    """The weights of `model` for a network with `config`; those of pointers that it does not have are zero.

    Its own pointers must be the first of the network's. Raises `ModelBroken` for a weight of another shape.
    """
    shapes, weights = model.config.shapes(), {}
    more = _are_more(model.config.pointers, config.pointers)
    for name, shape in config.shapes().items():
        found = shapes.get(name)
        if found == shape:
            weights[name] = model.weights[name]
        elif found is None and name.startswith("pointers."):
            weights[name] = torch.zeros(shape)
        elif found is not None and found[1:] == shape[1:] and more and name in PER_POINTER:
            weights[name] = torch.cat((model.weights[name], torch.zeros(shape[0] - found[0], *shape[1:])))
        else:
            raise ModelBroken(f"the initial model's {name} is {found or 'absent'}; the config makes it {shape}")
    return weights


def _are_more(before: PointerConfig | None, now: PointerConfig | None) -> bool:
    """Whether the pointers begin with those before."""
    return before is not None and now is not None and now.named[: before.size] == before.named
