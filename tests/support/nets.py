"""Small models of every cell, with weights that give varied distributions, for the tests of several rooms."""

from __future__ import annotations

import hashlib
import string

import torch
from hypothesis import strategies as st

from gruve.model.config import ModelConfig
from gruve.model.network import Network
from gruve.model.pointers import PointerConfig
from gruve.model.repository import TOKENIZER, WEIGHTS, Model
from gruve.model.tokenizer import END, START, Tokenizer

CELLS = [("gru", "after"), ("gru", "before"), ("lstm", None), ("elman", None)]
CELL_NAMES = ["gru-after", "gru-before", "lstm", "elman"]


def config_of(cell, *, V=13, E=6, H=8, L=2, tied=False, precision="float16", pointers=None) -> ModelConfig:
    name, reset = cell
    return ModelConfig(name, V, E, H, L, reset=reset, tied_head=tied, precision=precision, pointers=pointers)


def pointers_of(
    V: int, *, bars=(1, 2), followers=(1, 2, 3), matches=4, places=6, counts=3, transposed=()
) -> PointerConfig:
    """Pointers over the vocabulary of `tokenizer_of`: the last token is a bar line, the one before begins a part."""
    return PointerConfig(
        bars=bars,
        followers=followers,
        transposed=transposed,
        scale=tuple(range(2, V - 4)) if transposed else (),
        bar_tokens=(V - 2, V - 1),
        part_tokens=(V - 2,),
        advances=tuple(0 if token < 2 or token >= V - 2 else 12 * (token % 3) - 6 for token in range(V)),
        start_token=0,
        place_step=6,
        places=places,
        counts=counts,
        matches=matches,
    )


def tokenizer_of(V: int, *, has_end: bool = True) -> Tokenizer:
    specials = (START, END) if has_end else (START,)
    letters = string.ascii_letters + "".join(map(chr, range(0x4E00, 0x4E00 + V)))
    return Tokenizer("characters", specials + tuple(letters[: V - len(specials)]), has_end)


def weights_of(config: ModelConfig, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random weights, already rounded, with which every gate matters and tokens have different logits."""
    torch.manual_seed(seed)
    network = Network(config)
    rounded = {}
    for name, weight in network.named_weights().items():
        weight = weight.detach().clone()
        if weight.dim() == 1:
            weight += torch.randn_like(weight) * 0.5
        else:
            weight *= 3.0 if name.startswith(("embedding", "head")) else 1.5
        rounded[name] = (weight.half() if config.precision == "float16" else weight).float()
    return rounded


def model_of(config: ModelConfig, seed: int = 1, *, has_end: bool = True) -> Model:
    tokenizer = tokenizer_of(config.vocabulary_size, has_end=has_end)
    weights = weights_of(config, seed)
    digest = hashlib.sha256(b"".join(w.numpy().tobytes() for w in weights.values())).hexdigest()
    files = ((WEIGHTS, digest), (TOKENIZER, hashlib.sha256(tokenizer.to_json().encode()).hexdigest()))
    fields = {name: getattr(config, name) for name in config.__slots__}
    return Model("small", ModelConfig(**{**fields, "files": tuple(sorted(files))}), tokenizer, weights)


@st.composite
def configs(draw, hidden_sizes=(8, 9, 16, 17, 24)) -> ModelConfig:
    """Any cell and depth, tied or not, any embedding size, and sizes that do not fill a vector register."""
    H = draw(st.sampled_from(hidden_sizes))
    E = draw(st.sampled_from([5, H]))
    return config_of(
        draw(st.sampled_from(CELLS)),
        V=draw(st.integers(3, 20)),
        E=E,
        H=H,
        L=draw(st.integers(1, 4)),
        tied=draw(st.booleans()),
    )
