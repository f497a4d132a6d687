"""Models of a given size with made-up weights, the same on every machine: speed does not depend on what was learned.

The weights come from a hash and not from a library's generator, so their bits are portable.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path

import numpy as np
import torch

from gruve.model.config import Cell, ModelConfig, Reset
from gruve.model.repository import Model, save
from gruve.model.tokenizer import START, Tokenizer

CELLS = ("gru", "gru_before", "lstm", "elman")
"""The cells by the names that rows use: `gru` is torch's and cuDNN's, `gru_before` Cho's."""
VOCABULARY_SIZE = 140
EMBEDDING_SIZE = 64
GAINS = {"embedding.weight": 4.0, "head.weight": 8.0}
"""How much wider than usual weights are drawn: the distribution is then about as sharp as a trained model's."""
GAIN = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """Layers and hidden units."""

    layers: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.hidden}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """Reads "3x512"; raises `ValueError` on anything else."""
        layers, _, hidden = text.partition("x")
        return cls(int(layers), int(hidden))


SMALL, MEDIUM, LARGE = Size(2, 256), Size(3, 512), Size(2, 1_024)


def blueprint(size: Size, cell: str = "gru") -> ModelConfig:
    """The configuration of such a model; raises `ValueError` for a cell that is none of `CELLS`."""
    if cell not in CELLS:
        raise ValueError(f"cell is {cell!r}; one of {', '.join(CELLS)}")
    kind: Cell = "gru" if cell.startswith("gru") else "lstm" if cell == "lstm" else "elman"
    reset: Reset | None = {"gru": "after", "gru_before": "before"}.get(cell)  # type: ignore[assignment] # two literals
    return ModelConfig(
        cell=kind,
        reset=reset,
        vocabulary_size=VOCABULARY_SIZE,
        embedding_size=EMBEDDING_SIZE,
        hidden_size=size.hidden,
        num_layers=size.layers,
    )


def make_model(folder: Path, size: Size, cell: str = "gru") -> Model:
    """Writes a model into a repository's folder and loads it back."""
    config = blueprint(size, cell)
    weights = {name: torch.from_numpy(_draw(name, shape)) for name, shape in config.shapes().items()}
    return save(folder, config, tokenizer(), weights)


def tokenizer() -> Tokenizer:
    """One for `VOCABULARY_SIZE` tokens, a character each."""
    texts = tuple(chr(0x21 + i) for i in range(94)) + tuple(chr(0x100 + i) for i in range(VOCABULARY_SIZE - 95))
    return Tokenizer("characters", (START, *texts), has_end=False)


def flop_per_token(config: ModelConfig) -> int:
    """Floating-point operations of a token: two for each weight that is multiplied; layer 0's input is a lookup."""
    H, G, L = config.hidden_size, config.gates, config.num_layers
    return 2 * (G * H * H + (L - 1) * 2 * G * H * H + H * config.vocabulary_size)


def streamed_bytes(config: ModelConfig) -> int:
    """Bytes of weights that a step reads, at two bytes each."""
    return flop_per_token(config)


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Uniform weights of the variance that keeps a state alive, exact in fp16."""
    noise = hashlib.shake_256(f"{name} {shape}".encode()).digest(2 * math.prod(shape))
    integers = (np.frombuffer(noise, dtype="<u2").astype(np.int32) % 2048 - 1024).reshape(shape)
    bound = 2.0 ** round(math.log2(math.sqrt(3.0 / shape[-1]) * GAINS.get(name, GAIN)))
    return (integers * (bound / 1024 if len(shape) == 2 else 2.0**-14)).astype(np.float32)
