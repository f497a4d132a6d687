"""The equations of the recurrent cells, stated once. Everything that decodes or trains is held against them.

Legend, here and everywhere: `B` batch, `T` time, `L` layers, `H` hidden, `E` embedding, `V` vocabulary, `G` gates.
`s` is the logistic sigmoid, `*` elementwise. Weights stack their gates in the order of the literature:

    GRU     r, z, n         r = s(W_r x + U_r h + b_r)        z = s(W_z x + U_z h + b_z)
            reset=before    n = tanh(W_n x + U_n (r*h) + b_n)             Cho et al. 2014, Chung et al. 2014
            reset=after     n = tanh(W_n x + b_n + r*(U_n h + b_hn))      cuDNN, torch.nn.GRU
                            h' = (1-z)*h + z*n
    LSTM    i, f, g, o      i, f, o = s(W x + U h + b)         g = tanh(W_g x + U_g h + b_g)
                            c' = f*c + i*g                     h' = o*tanh(c')        Gers et al. 2000, no peepholes
    Elman                   h' = tanh(W x + U h + b)                                  Elman 1990

The update gate is Chung's: z opens towards the new. torch.nn.GRU's z is the complement, h' = (1-z)*n + z*h; since
1 - s(a) = s(-a), its weights become ours by negating the z block (`network.py` does it), exactly.

A cell takes `x`, the input's share W x + b of every gate (B, G*H), so that a caller may look it up in a table instead
of multiplying; `U` (G*H, H); and returns the new state as it was given: one (B, H) tensor, or (h, c).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from gruve.model.config import ModelConfig

State = tuple[Tensor, ...]
"""The state of one layer: (h,) or (h, c), each (B, H)."""

CellFunction = Callable[[Tensor, State, Tensor, Tensor | None], State]
"""(x, state, U, b_hn) -> state; only the GRU with reset=after gets `b_hn`."""


def gru_reset_after(x: Tensor, state: State, U: Tensor, b_hn: Tensor | None) -> State:
    """One step of the GRU whose reset gate multiplies the recurrent product."""
    (h,) = state
    assert b_hn is not None  # noqa: S101 - for the type checker; `cell_function` passes it for reset=after only
    x_r, x_z, x_n = x.chunk(3, dim=1)
    u_r, u_z, u_n = linear(h, U).chunk(3, dim=1)
    r = torch.sigmoid(x_r + u_r)
    z = torch.sigmoid(x_z + u_z)
    n = torch.tanh(x_n + r * (u_n + b_hn))
    return (h + z * (n - h),)


def gru_reset_before(x: Tensor, state: State, U: Tensor, b_hn: Tensor | None) -> State:  # noqa: ARG001 - one signature
    """One step of the GRU whose reset gate multiplies the state before the product."""
    (h,) = state
    H = h.shape[1]
    x_r, x_z, x_n = x.chunk(3, dim=1)
    u_r, u_z = linear(h, U[: 2 * H]).chunk(2, dim=1)
    r = torch.sigmoid(x_r + u_r)
    z = torch.sigmoid(x_z + u_z)
    n = torch.tanh(x_n + linear(r * h, U[2 * H :]))
    return (h + z * (n - h),)


def lstm(x: Tensor, state: State, U: Tensor, b_hn: Tensor | None) -> State:  # noqa: ARG001 - one signature
    """One step of the LSTM; the state is (h, c)."""
    h, c = state
    i, f, g, o = (x + linear(h, U)).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def elman(x: Tensor, state: State, U: Tensor, b_hn: Tensor | None) -> State:  # noqa: ARG001 - one signature
    """One step of the simple recurrent network."""
    (h,) = state
    return (torch.tanh(x + linear(h, U)),)


def cell_function(config: ModelConfig) -> CellFunction:
    """Returns the step function that `config` names."""
    if config.cell == "gru":
        return gru_reset_after if config.reset == "after" else gru_reset_before
    return lstm if config.cell == "lstm" else elman
