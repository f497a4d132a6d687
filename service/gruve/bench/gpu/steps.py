"""Times decode steps on a GPU: gruve's modes, and alternatives in torch with the same weights.

The alternatives have fp16 weights and operands, as gruve's kernels do. Their whole step runs on the device: embedding,
layers, head, and sampling at temperature 1 by `torch.multinomial`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from gruve.bench.decode.steppers import torch_rnn
from gruve.bench.figures import median
from gruve.bench.gpu.setup import Setup
from gruve.bench.sequences import begin_sequences
from gruve.decode import Backend, Block
from gruve.decode.cuda.backend import CudaBackend
from gruve.decode.cuda.device import Work
from gruve.decode.cuda.records import MAX_POSITION
from gruve.model.cells import cell_function
from gruve.model.repository import Model
from gruve.sessions.record import START_TOKEN

COMPILED = "torch.compile"
PEERS = ("eager torch", "nn.GRU", COMPILED)
AHEAD = 2
"""The calls submitted before the result of the first one is read."""


class Stepper(Protocol):
    """Runs steps of a batch in the order of submission."""

    def steps(self, calls: int) -> int:
        """Submits `calls` calls and returns their number of steps. They may still be running."""

    def run(self, work: Work) -> None:
        """Runs `work` after them."""


class Ours:
    """A backend with an endless sequence in every slot, called like an engine does: with one call in flight."""

    def __init__(self, backend: Backend, batch: int, steps_per_call: int) -> None:
        self._backend = backend
        self._steps = steps_per_call
        self._groups = [
            list(range(first, min(first + backend.max_rows, batch))) for first in range(0, batch, backend.max_rows)
        ]
        begin_sequences(backend, range(batch), MAX_POSITION)

    def steps(self, calls: int) -> int:
        """See `Stepper`."""
        backend = self._backend
        under_way: list[Callable[[], Block]] = []
        for _ in range(calls):
            for group in self._groups:
                if not isinstance(backend, CudaBackend):
                    backend.decode(group, [self._steps] * len(group), self._steps)
                    continue
                under_way.append(backend.submit(group, [self._steps] * len(group), self._steps))
                if len(under_way) > AHEAD:
                    under_way.pop(0)()
        for ticket in under_way:
            ticket()
        return calls * self._steps

    def run(self, work: Work) -> None:
        """See `Stepper`."""
        if isinstance(self._backend, CudaBackend):
            self._backend.run(work)
        else:
            work()


class Peer:
    """A step in torch, one per call."""

    def __init__(self, name: str, model: Model, batch: int, setup: Setup) -> None:
        self._dtype = torch.float16 if setup.measures else torch.float32
        config = model.config
        self._weights = {key: weight.to(setup.kind, self._dtype) for key, weight in model.weights.items()}
        self._tokens = torch.full((batch,), START_TOKEN, device=setup.kind)
        self._state = torch.zeros(config.num_layers, batch, config.hidden_size, device=setup.kind, dtype=self._dtype)
        self._forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
        if name == "nn.GRU":
            self._forward = _GruStep(model, self._weights, setup.kind, self._dtype)
        else:
            self._forward = _EagerStep(model, self._weights)
        self._next: Callable[[Tensor, Tensor], Any] = self._draw
        # On a CPU, it would need a C++ compiler and a minute.
        self._compiled = name == COMPILED and setup.measures
        if self._compiled:
            # A step of its own for each shape. Weights and state stay at the addresses that its graph has captured.
            torch.compiler.reset()
            for tensor in (*self._weights.values(), self._tokens, self._state):
                torch._dynamo.mark_static_address(tensor)
            self._next = torch.compile(self._draw, mode="reduce-overhead", dynamic=False)

    @torch.inference_mode()
    def steps(self, calls: int) -> int:
        """See `Stepper`."""
        for _ in range(calls):
            if self._compiled:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            tokens, state = self._next(self._tokens, self._state)
            # The result of a compiled step is in its graph's memory, which the next step overwrites.
            self._tokens.copy_(tokens)
            self._state.copy_(state)
        return calls

    def run(self, work: Work) -> None:
        """See `Stepper`."""
        work()

    @torch.inference_mode()
    def logits(self, token: int) -> NDArray[np.float32]:
        """Consumes `token` in every row and returns the first row's logits (V,)."""
        logits, state = self._forward(torch.full_like(self._tokens, token), self._state)
        self._state.copy_(state)
        found: NDArray[np.float32] = logits[0].float().cpu().numpy()
        return found

    def _draw(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        logits, state = self._forward(tokens, state)
        return torch.multinomial(torch.softmax(logits.float(), dim=1), 1)[:, 0], state


class _EagerStep:
    """The equations of `cells.py`, one operation at a time."""

    def __init__(self, model: Model, weights: dict[str, Tensor]) -> None:
        self._w, self._layers, self._cell = weights, model.config.num_layers, cell_function(model.config)

    def __call__(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        w, x, after = self._w, self._w["embedding.weight"][tokens], []
        for l in range(self._layers):
            gates = linear(x, w[f"layers.{l}.weight_ih"], w[f"layers.{l}.bias"])
            (x,) = self._cell(gates, (state[l],), w[f"layers.{l}.weight_hh"], w[f"layers.{l}.bias_hn"])
            after.append(x)
        return linear(x, w["head.weight"], w["head.bias"]), torch.stack(after)


class _GruStep:
    """`torch.nn.GRU` over a sequence of length one."""

    def __init__(self, model: Model, weights: dict[str, Tensor], kind: torch.device, dtype: torch.dtype) -> None:
        self._w = weights
        self._gru = torch_rnn(model).to(kind, dtype)

    def __call__(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        out, after = self._gru(self._w["embedding.weight"][tokens][None], state)
        return linear(out[0], self._w["head.weight"], self._w["head.bias"]), after


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """How long to measure."""

    rounds: int = 5
    seconds: float = 0.05
    """The minimum time of one round."""
    steps_per_call: int = 32
    """The steps of one call of gruve's backends."""


def step_s(stepper: Stepper, setup: Setup, timing: Timing) -> float:
    """The median seconds of a step; NaN on a setup that does not measure."""
    steps_per_call = stepper.steps(1)  # warms up

    def call_s(calls: int) -> float:
        return setup.time_s(lambda: _ignore(stepper.steps(calls)), stepper.run) / calls

    once_s = call_s(1)
    calls = max(1, round(timing.seconds / once_s)) if once_s > 0.0 else 1
    return median(call_s(calls) for _ in range(timing.rounds)) / steps_per_call


def probe_flop_per_s(setup: Setup, size: int) -> float:
    """The rate of a product of two random (size, size) fp16 matrices, the best of five."""
    a, b = (torch.randn(size, size, device=setup.kind, dtype=torch.float16) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    times = [setup.time_s(lambda: _ignore(torch.mm(a, b, out=out)), _here) for _ in range(5)]
    return 2.0 * size**3 / min(times)


def probe_bytes_per_s(setup: Setup, size: int) -> float:
    """The rate of a copy within the device in bytes read and written per second, the best of five."""
    a = torch.empty(size, device=setup.kind, dtype=torch.uint8).random_()
    b = torch.empty_like(a)
    b.copy_(a)
    times = [setup.time_s(lambda: _ignore(b.copy_(a)), _here) for _ in range(5)]
    return 2.0 * size / min(times)


def _here(work: Work) -> None:
    work()


def _ignore(_: object) -> None:
    """Discards a result."""
