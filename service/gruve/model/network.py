"""The network: embedding, recurrent layers, head. It has a step for decoding and a sequence for training and scoring.

Does not know where tokens come from or go to. State is a tuple of tensors (L, B, H): (h,) or (h, c).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from gruve.model.cells import cell_function
from gruve.model.config import ModelConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Dropout:
    """Locked dropout: one mask for all steps of a sequence (Gal and Ghahramani 2016). Probabilities in [0, 1)."""

    embedding: float = 0.0
    between: float = 0.0
    head: float = 0.0


class Network(nn.Module):
    """A recurrent language model over `config.vocabulary_size` tokens.

    Its parameters have the names and shapes of `config.shapes()`, so `state_dict()` is what is stored.
    """

    def __init__(self, config: ModelConfig, dropout: Dropout | None = None) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout or Dropout()
        self.weights = nn.ParameterDict()
        for name, shape in config.shapes().items():
            self.weights[_key(name)] = nn.Parameter(torch.empty(shape))
        self.reset_parameters()
        self._cell = cell_function(config)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws new weights: orthogonal recurrences (Saxe et al. 2014), uniform inputs, gates that keep the state."""
        config, H = self.config, self.config.hidden_size
        for name in config.shapes():
            weight = self[name]
            if name.endswith("weight_hh"):
                for block in range(config.gates):
                    nn.init.orthogonal_(weight[block * H : (block + 1) * H])
            elif name.startswith("pointers.gate"):
                weight.zero_()
            elif weight.dim() >= 2:
                bound = weight.shape[-1] ** -0.5
                weight.uniform_(-bound, bound)
            else:
                weight.zero_()
            if name.endswith(".bias") and name.startswith("layers"):
                if config.cell == "gru":
                    weight[H : 2 * H] = -1.0
                elif config.cell == "lstm":
                    weight[H : 2 * H] = 1.0

    def __getitem__(self, name: str) -> Tensor:
        """The weight of that name in `config.shapes()`."""
        weight: Tensor = self.weights[_key(name)]
        return weight

    def named_weights(self) -> dict[str, Tensor]:
        """Every weight by its stored name."""
        return {name: self[name] for name in self.config.shapes()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Copies `weights` in. Names and shapes must be those of `config.shapes()`."""
        for name in self.config.shapes():
            self[name].copy_(weights[name])

    def zero_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """The state of `batch_size` sequences that have consumed nothing."""
        config, like = self.config, self["head.bias"]
        return tuple(
            like.new_zeros(config.num_layers, batch_size, config.hidden_size) for _ in range(config.state_tensors)
        )

    def step(
        self, tokens: Tensor, state: tuple[Tensor, ...], pointed: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Consumes one token per row: tokens (B,) -> logits (B, V) and the new state. No dropout.

        `pointed` (B, 2 K + 2) has the rows of `pointers.Pointed`, in its order, for a model with pointers.
        """
        x = self._input(tokens, pointed)
        layers = []
        for l in range(self.config.num_layers):
            gates = linear(x, self[f"layers.{l}.weight_ih"], self[f"layers.{l}.bias"])
            layers.append(self._cell(gates, tuple(s[l] for s in state), self[f"layers.{l}.weight_hh"], self._b_hn(l)))
            x = layers[-1][0]
        return self._logits(x, pointed), tuple(torch.stack(tensors) for tensors in zip(*layers, strict=True))

    def forward(
        self, tokens: Tensor, state: tuple[Tensor, ...], pointed: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Consumes tokens (B, T); returns logits (B, T, V), the last state, and the last layer's outputs (B, T, H).

        The same mathematics as `step`, with dropout while training. `pointed` is (B, T, 2 K + 2).
        """
        x = self._input(tokens, pointed).transpose(0, 1)  # (T, B, E)
        x = self._locked_dropout(x, self.dropout.embedding)
        finals = []
        for l in range(self.config.num_layers):
            if l > 0:
                x = self._locked_dropout(x, self.dropout.between)
            x, final = self._layer_sequence(l, x, tuple(s[l] for s in state))
            finals.append(final)
        outputs = self._locked_dropout(x, self.dropout.head).transpose(0, 1)
        return (
            self._logits(outputs, pointed),
            tuple(torch.stack(tensors) for tensors in zip(*finals, strict=True)),
            outputs,
        )

    def _layer_sequence(self, l: int, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer over (T, B, I). Uses torch's fused sequence operators if they compute the same equation."""
        W, U, b, b_hn = (
            self[f"layers.{l}.weight_ih"],
            self[f"layers.{l}.weight_hh"],
            self[f"layers.{l}.bias"],
            self._b_hn(l),
        )
        if self.config.reset == "before":
            gates = linear(x, W, b)
            outputs = []
            for t in range(x.shape[0]):
                state = self._cell(gates[t], state, U, b_hn)
                outputs.append(state[0])
            return torch.stack(outputs), state
        zero = torch.zeros_like(b)
        if b_hn is not None:
            W, U, b, zero = to_torch_gru(W, U, b, b_hn)
        hx = tuple(s.unsqueeze(0) for s in state)
        if self.config.cell == "lstm":
            output, h, c = torch.lstm(x, hx, [W, U, b, zero], True, 1, 0.0, self.training, False, False)
            return output, (h[0], c[0])
        sequence = torch.gru if self.config.cell == "gru" else torch.rnn_tanh
        output, h = sequence(x, hx[0], [W, U, b, zero], True, 1, 0.0, self.training, False, False)
        return output, (h[0],)

    def _b_hn(self, l: int) -> Tensor | None:
        return self[f"layers.{l}.bias_hn"] if self.config.reset == "after" else None

    def _input(self, tokens: Tensor, pointed: Tensor | None) -> Tensor:
        """The input of layer 0: the token's row of the embedding plus the rows of the pointers' tables, in order."""
        x = embedding(tokens, self["embedding.weight"])
        pointers = self.config.pointers
        if pointers is None:
            return x
        if pointed is None:
            raise ValueError("a model with pointers needs `pointed` beside the tokens")
        K = pointers.size
        for k in range(K):
            x = x + embedding(pointed[..., k], self["pointers.weight"][k])
            if pointers.matches:
                x = x + embedding(pointed[..., K + k], self["pointers.match"][k])
        if pointers.places:
            x = x + embedding(pointed[..., 2 * K], self["pointers.place"])
        if pointers.counts:
            x = x + embedding(pointed[..., 2 * K + 1], self["pointers.count"])
        return x

    def _logits(self, h: Tensor, pointed: Tensor | None) -> Tensor:
        """The head's logits, with each pointer's gate added to the logit of the token that it names."""
        logits, pointers = self._head(h), self.config.pointers
        if pointers is None or pointed is None:
            return logits
        K = pointers.size
        named, matches = pointed[..., :K], pointed[..., K : 2 * K]
        gates = linear(h, self["pointers.gate"]) + self["pointers.gate_bias"][torch.arange(K), matches]
        none = named == self.config.vocabulary_size
        return logits.scatter_add(-1, named.masked_fill(none, 0), gates.masked_fill(none, 0.0))

    def _head(self, h: Tensor) -> Tensor:
        if not self.config.tied_head:
            return linear(h, self["head.weight"], self["head.bias"])
        if self.config.embedding_size != self.config.hidden_size:
            h = linear(h, self["head.projection"])
        return linear(h, self["embedding.weight"], self["head.bias"])

    def _locked_dropout(self, x: Tensor, probability: float) -> Tensor:
        """Masks (T, B, F) with one mask per row for all T."""
        if not self.training or probability == 0.0:
            return x
        keep = 1.0 - probability
        return x * x.new_empty(1, *x.shape[1:]).bernoulli_(keep).div_(keep)


def to_torch_gru(W: Tensor, U: Tensor, b: Tensor, b_hn: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Converts (weight_ih, weight_hh, bias, bias_hn) to torch.nn.GRU's (weight_ih, weight_hh, bias_ih, bias_hh).

    Only the z block changes its sign; see `cells.py`. The conversion is exact and its own inverse.
    """
    H = b_hn.shape[0]
    sign = b.new_ones(3 * H)
    sign[H : 2 * H] = -1.0
    b_hh = torch.cat((b.new_zeros(2 * H), b_hn))
    return W * sign[:, None], U * sign[:, None], b * sign, b_hh


def _key(name: str) -> str:
    """The name without dots, which ParameterDict does not allow."""
    return name.replace(".", "/")
