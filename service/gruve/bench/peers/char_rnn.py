"""The model as a user of the peers would write it: embedding, `torch.nn.GRU`, linear layer, sampling at temperature 1.

The peers' programs share it. It uses only torch, because the peers' environments have nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Key = TypeVar("Key")


class CharRnn(nn.Module):
    """A GRU language model in torch's convention."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(*weights["embedding.weight"].shape)
        hidden_size = weights["head.weight"].shape[1]
        layers = sum(name.startswith("rnn.weight_ih") for name in weights)
        self.rnn = nn.GRU(self.embedding.embedding_dim, hidden_size, layers)
        self.head = nn.Linear(hidden_size, weights["head.weight"].shape[0])
        self.load_state_dict(weights)
        self.eval()

    def forward(self, tokens: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (T, B) -> the logits (B, V) after the last token, and the state (L, B, H)."""
        out, state = self.rnn(self.embedding(tokens), state)
        return self.head(out[-1]), state


def load(path: Path) -> CharRnn:
    """Loads what `torch.save` wrote, and limits torch to one thread per process."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    return CharRnn(torch.load(path, weights_only=True))


def draw(logits: Tensor) -> Tensor:
    """Samples one token per row from logits (B, V)."""
    return torch.multinomial(torch.softmax(logits, dim=1), 1)[:, 0]


@dataclasses.dataclass(slots=True)
class _Sequence:
    state: Tensor  # (L, 1, H)
    token: Tensor  # (1,)
    left: int


class Continuous(Generic[Key]):
    """Sequences that decode together and join and leave between steps, as far as nn.GRU allows it."""

    def __init__(self, model: CharRnn) -> None:
        self._model = model
        self._sequences: dict[Key, _Sequence] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, key: Key, prompt: Sequence[int], max_tokens: int) -> int:
        """Consumes a prompt in one call and returns the first token."""
        logits, state = self._model(torch.tensor([[0], *([token] for token in prompt)]), None)
        token = draw(logits)
        if max_tokens > 1:
            self._sequences[key] = _Sequence(state, token, max_tokens - 1)
        return int(token)

    def step(self, keys: Sequence[Key] | None = None) -> list[tuple[Key, int, bool]]:
        """Runs one step of some sequences, or of all; returns (key, token, whether it was the last) of each."""
        keys = list(self._sequences) if keys is None else keys
        rows = [self._sequences[key] for key in keys]
        tokens = torch.cat([row.token for row in rows])[None]
        logits, state = self._model(tokens, torch.cat([row.state for row in rows], dim=1))
        drawn = draw(logits)
        ids = drawn.tolist()
        done = []
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            row.state, row.token, row.left = state[:, i : i + 1], drawn[i : i + 1], row.left - 1
            done.append((key, ids[i], row.left == 0))
            if row.left == 0:
                del self._sequences[key]
        return done
