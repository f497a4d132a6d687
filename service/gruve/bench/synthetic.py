"""Models of a given size with generated weights, the same on every machine. Speed does not depend on training.

The weights come from a hash instead of a library's generator, so their bits are portable.
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
"""The cells by the names used in rows: `gru` is that of torch and cuDNN, `gru_before` that of Cho et al."""
MODEL = "bench"
"""The name under which a benchmark's server has its model."""
VOCABULARY_SIZE = 140
EMBEDDING_SIZE = 64
GAINS = {"embedding.weight": 4.0, "head.weight": 8.0}
"""How much wider than usual the weights are drawn, so that the distribution is about as sharp as a trained model's."""
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
        """Reads "3x512"; raises `ValueError` for anything else."""
        layers, _, hidden = text.partition("x")
        return cls(int(layers), int(hidden))


SMALL, MEDIUM, LARGE = Size(2, 256), Size(3, 512), Size(2, 1_024)


def kind_of(cell: str) -> tuple[Cell, Reset | None]:
    """The cell of the model format, and the place of a GRU's reset gate; raises `ValueError` if not in `CELLS`."""
    if cell not in CELLS:
        raise ValueError(f"cell is {cell!r}; one of {', '.join(CELLS)}")
    kind: Cell = "gru" if cell.startswith("gru") else "lstm" if cell == "lstm" else "elman"
    reset: Reset | None = {"gru": "after", "gru_before": "before"}.get(cell)  # type: ignore[assignment] # two literals
    return kind, reset


def blueprint(size: Size, cell: str = "gru") -> ModelConfig:
    """The configuration of such a model; raises `ValueError` for a cell not in `CELLS`."""
    kind, reset = kind_of(cell)
    return ModelConfig(
        cell=kind,
        reset=reset,
        vocabulary_size=VOCABULARY_SIZE,
        embedding_size=EMBEDDING_SIZE,
        hidden_size=size.hidden,
        num_layers=size.layers,
    )


def make_model(folder: Path, size: Size, cell: str = "gru", *, start_bias: float | None = None) -> Model:
    """Writes a model into the repository's folder and loads it.

    With a `start_bias` far below 0 the start token, which has no text, is never generated.
    """
    config = blueprint(size, cell)
    weights = {name: torch.from_numpy(_draw(name, shape)) for name, shape in config.shapes().items()}
    if start_bias is not None:
        weights["head.bias"][0] = start_bias
    return save(folder, config, tokenizer(), weights)


def tokenizer() -> Tokenizer:
    """A tokenizer of `VOCABULARY_SIZE` tokens, one character each."""
    texts = tuple(chr(0x21 + i) for i in range(94)) + tuple(chr(0x100 + i) for i in range(VOCABULARY_SIZE - 95))
    return Tokenizer("characters", (START, *texts), has_end=False)


def flop_per_token(config: ModelConfig) -> int:
    """Floating-point operations per token: two for each multiplied weight. Layer 0's input is a lookup."""
    H, G, L = config.hidden_size, config.gates, config.num_layers
    return 2 * (G * H * H + (L - 1) * 2 * G * H * H + H * config.vocabulary_size)


def streamed_bytes(config: ModelConfig, bytes_per_weight: int = 2) -> int:
    """The bytes of weights that a step reads. gruve keeps a weight in two bytes (fp16), in int8 in one."""
    return flop_per_token(config) // 2 * bytes_per_weight


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Uniform weights whose variance keeps a state alive, exact in fp16."""
    noise = hashlib.shake_256(f"{name} {shape}".encode()).digest(2 * math.prod(shape))
    integers = (np.frombuffer(noise, dtype="<u2").astype(np.int32) % 2048 - 1024).reshape(shape)
    bound = 2.0 ** round(math.log2(math.sqrt(3.0 / shape[-1]) * GAINS.get(name, GAIN)))
    return (integers * (bound / 1024 if len(shape) == 2 else 2.0**-14)).astype(np.float32)
