"""One interface for the decode step of gruve's backends, torch, ONNX Runtime and OpenVINO.

A step takes the last token of every row to its next one: embedding, layers, head, sampling at temperature 1. Every
stepper keeps its state and its tokens as its own manual recommends.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gruve.bench.decode.onnx_step import make_step_graph, onnx
from gruve.bench.machine import optional_package
from gruve.bench.sequences import begin_sequences
from gruve.decode import Backend
from gruve.decode.native import NativeBackend, unavailable_reason
from gruve.decode.reference import ReferenceBackend
from gruve.model.network import to_torch_gru
from gruve.model.oracle import Oracle
from gruve.model.repository import Model
from gruve.sessions.record import START_TOKEN

onnxruntime = optional_package("onnxruntime")
onnx_quantization = optional_package("onnxruntime.quantization")
openvino = optional_package("openvino")
nncf = optional_package("nncf")

BACKENDS = (
    "native",
    "native_int8",
    "reference",
    "torch",
    "torch_int8",
    "onnxruntime",
    "onnxruntime_int8",
    "openvino",
    "openvino_int8",
)
CALIBRATION_STEPS = 100
"""As many steps as this give OpenVINO's int8 the ranges of its states."""
MOST_ROWS = 64
STEPS_PER_CALL = {"native": 16, "reference": 2}
"""The number of steps of a call to gruve's backends. The others run one step per call."""
FOREVER = 1 << 30
LOGIT_BOUND = 1e-3
"""The bound on the deviation of a float32 peer's logits from the oracle's. Beyond it, it computes another model."""
INT8_LOGIT_BOUND = 0.5
"""The same for a peer with int8 weights. The logits of the measured models are between -10 and 10."""


class Absent(Exception):
    """The stepper cannot be used here or cannot compute this model. The message gives the reason."""


class Stepper(Protocol):
    """Decodes a batch of fixed size, one step after another."""

    steps_per_call: int

    def run(self, calls: int) -> None:
        """Runs `calls` calls of `steps_per_call` steps for all rows."""


@runtime_checkable
class Peer(Stepper, Protocol):
    """A stepper of another project. Its logits show that it computes the same model."""

    logit_bound: float
    """How far its logits may be from the oracle's."""

    def logits(self, token: int) -> NDArray[np.float32]:
        """Consumes `token` in every row and returns the first row's logits (V,)."""


def make_stepper(name: str, model: Model, batch: int, threads: int) -> Stepper:
    """Returns the stepper of that name; raises `Absent`."""
    if name in ("native", "native_int8", "reference"):
        return _BackendStepper(_backend(name, model, batch, threads), batch)
    if name in ("torch", "torch_int8"):
        if model.config.reset == "before":
            raise Absent("torch.nn has no GRU with the reset gate before the product")
        torch.set_num_threads(threads)
        return TorchStepper(model, batch) if name == "torch" else TorchInt8Stepper(model, batch)
    if model.config.cell != "gru":
        raise Absent("its GRU is measured, not its other cells")
    if onnx is None:
        raise Absent("onnx is not installed: pip install 'gruve[bench]'")
    if name.endswith("_int8") and model.config.reset == "before":
        raise Absent("its int8 is measured with the reset gate after the product")
    peers: dict[str, Callable[[Model, int, int], Stepper]] = {
        "onnxruntime": OnnxStepper,
        "onnxruntime_int8": OnnxInt8Stepper,
        "openvino": OpenvinoStepper,
        "openvino_int8": OpenvinoInt8Stepper,
    }
    return peers[name](model, batch, threads)


def _backend(name: str, model: Model, batch: int, threads: int) -> Backend:
    if name == "reference":
        torch.set_num_threads(threads)
        return ReferenceBackend(model, batch, "cpu")
    if (why := unavailable_reason()) is not None:
        raise Absent(why)
    return NativeBackend(model, batch, threads, arithmetic="int8" if name == "native_int8" else "float32")


class _BackendStepper:
    """A backend of gruve: several steps per call, 64 rows at a time."""

    def __init__(self, backend: Backend, batch: int) -> None:
        self.steps_per_call = STEPS_PER_CALL[backend.name]
        self._backend = backend
        slots = range(batch)
        self._groups = [list(slots[i : i + MOST_ROWS]) for i in range(0, batch, MOST_ROWS)]
        begin_sequences(backend, slots, FOREVER)

    def run(self, calls: int) -> None:
        """Runs all groups of rows, call by call."""
        for _, group in itertools.product(range(calls), self._groups):
            self._backend.decode(group, [FOREVER] * len(group), self.steps_per_call)


class TorchStepper:
    """Embedding, `torch.nn.GRU` (or LSTM, or RNN) and a linear layer, one step at a time."""

    steps_per_call = 1
    logit_bound = LOGIT_BOUND

    def __init__(self, model: Model, batch: int) -> None:
        config, w = model.config, model.weights
        self._rnn = torch_rnn(model)
        self._embedding, self._head, self._bias = w["embedding.weight"], w["head.weight"], w["head.bias"]
        self._tokens = torch.full((batch,), START_TOKEN)
        zeros = torch.zeros(config.num_layers, batch, config.hidden_size)
        self._state: Any = (zeros, zeros.clone()) if config.cell == "lstm" else zeros

    @torch.inference_mode()
    def run(self, calls: int) -> None:
        """Runs one step per call."""
        for _ in range(calls):
            probabilities = torch.softmax(self._step(self._tokens), dim=1)
            self._tokens = torch.multinomial(probabilities, 1)[:, 0]

    @torch.inference_mode()
    def logits(self, token: int) -> NDArray[np.float32]:
        """See `Peer`."""
        found: NDArray[np.float32] = self._step(torch.full_like(self._tokens, token))[0].numpy()
        return found

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        out, self._state = self._rnn(self._embedding[tokens][None], self._state)
        return nn.functional.linear(out[0], self._head, self._bias)


class TorchInt8Stepper(TorchStepper):
    """The same with torch's dynamic int8: weights with one scale for each matrix, and states with one for the batch."""

    logit_bound = INT8_LOGIT_BOUND

    def __init__(self, model: Model, batch: int) -> None:
        if model.config.cell == "elman":
            raise Absent("torch has no int8 for torch.nn.RNN")
        super().__init__(model, batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.ao is deprecated, and nothing in torch replaces it for a GRU
            quantize: Any = torch.ao.quantization.quantize_dynamic
            quantized = quantize(nn.Sequential(self._rnn), {nn.GRU, nn.LSTM})
        self._rnn = quantized[0]


class OnnxStepper:
    """The step as one ONNX graph, sampling included, with its state bound in place, in ONNX Runtime."""

    steps_per_call = 1
    logit_bound = LOGIT_BOUND

    def __init__(self, model: Model, batch: int, threads: int) -> None:
        if onnxruntime is None:
            raise Absent("onnxruntime is not installed: pip install 'gruve[bench]'")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = onnxruntime.InferenceSession(self._graph(model), options, providers=["CPUExecutionProvider"])
        config = model.config
        shape = (config.num_layers, batch, config.hidden_size)
        self._state = [self._value(np.zeros(shape, dtype=np.float32)) for _ in range(2)]
        self._tokens = [self._value(np.full(batch, START_TOKEN, dtype=np.int64)) for _ in range(2)]
        self._uniform = self._value(np.zeros((batch, 1), dtype=np.float32))
        self._rng = np.random.default_rng(0)
        self._batch = batch
        self._bindings = [self._bind(0, 1), self._bind(1, 0)]

    def _graph(self, model: Model) -> bytes:
        return make_step_graph(model)

    def run(self, calls: int) -> None:
        """Runs one step per call, from one half of the buffers to the other."""
        for _ in range(calls):
            self._uniform.update_inplace(self._rng.random((self._batch, 1), dtype=np.float32))
            self._session.run_with_iobinding(self._bindings[0])
            self._bindings.reverse()

    def logits(self, token: int) -> NDArray[np.float32]:
        """See `Peer`."""
        inputs = {
            "tokens": np.full(self._batch, token, dtype=np.int64),
            "state": self._state[0].numpy(),
            "uniform": self._uniform.numpy(),
        }
        logits, state = self._session.run(["logits", "state_out"], inputs)
        self._state[0].update_inplace(state)
        found: NDArray[np.float32] = logits[0]
        return found

    def _bind(self, source: int, target: int) -> Any:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("tokens", self._tokens[source])
        binding.bind_ortvalue_input("state", self._state[source])
        binding.bind_ortvalue_input("uniform", self._uniform)
        binding.bind_ortvalue_output("tokens_out", self._tokens[target])
        binding.bind_ortvalue_output("state_out", self._state[target])
        return binding

    def _value(self, array: NDArray[Any]) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)


class OnnxInt8Stepper(OnnxStepper):
    """The same with ONNX Runtime's dynamic int8.

    Weights have one scale for each output; the scale of the states is that of the whole batch.
    """

    logit_bound = INT8_LOGIT_BOUND

    def _graph(self, model: Model) -> bytes:
        with tempfile.TemporaryDirectory(prefix="gruve-bench-") as folder:
            plain, quantised = Path(folder) / "step.onnx", Path(folder) / "int8.onnx"
            plain.write_bytes(make_step_graph(model, products=True))
            onnx_quantization.quantize_dynamic(
                plain, quantised, per_channel=True, weight_type=onnx_quantization.QuantType.QInt8
            )
            return quantised.read_bytes()


class OpenvinoStepper:
    """The same graph in OpenVINO, compiled for its batch size, in fp32 like the others."""

    steps_per_call = 1
    logit_bound = LOGIT_BOUND

    def __init__(self, model: Model, batch: int, threads: int) -> None:
        if openvino is None:
            raise Absent("openvino is not installed: pip install 'gruve[bench]'")
        config = model.config
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        graph = self._graph(model, batch)
        self._request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
        self._tokens: Any = np.full(batch, START_TOKEN, dtype=np.int64)
        self._state: Any = np.zeros((config.num_layers, batch, config.hidden_size), dtype=np.float32)
        self._rng = np.random.default_rng(0)

    def _graph(self, model: Model, batch: int) -> Any:
        return _openvino_graph(make_step_graph(model), model, batch)

    def run(self, calls: int) -> None:
        """Runs one step per call. Inputs are shared instead of copied where OpenVINO allows it."""
        for _ in range(calls):
            self._tokens = self._step()["tokens_out"].copy()

    def logits(self, token: int) -> NDArray[np.float32]:
        """See `Peer`."""
        self._tokens = np.full_like(self._tokens, token)
        found: NDArray[np.float32] = self._step()["logits"][0].copy()
        return found

    def inputs(self) -> dict[str, NDArray[Any]]:
        """The inputs of the next step."""
        uniform = self._rng.random((len(self._tokens), 1), dtype=np.float32)
        return {"tokens": self._tokens, "state": self._state, "uniform": uniform}

    def _step(self) -> Any:
        out = self._request.infer(self.inputs(), share_inputs=True, share_outputs=True)
        self._state = out["state_out"].copy()
        return out


class OpenvinoInt8Stepper(OpenvinoStepper):
    """The same with weights and states in int8, quantised by NNCF after `CALIBRATION_STEPS` steps in float32."""

    logit_bound = INT8_LOGIT_BOUND

    def _graph(self, model: Model, batch: int) -> Any:
        if nncf is None:
            raise Absent("nncf is not installed: pip install 'gruve[bench]'")
        plain, inputs = OpenvinoStepper(model, batch, 1), []
        for _ in range(CALIBRATION_STEPS):
            inputs.append(plain.inputs())
            plain.run(1)
        graph = _openvino_graph(make_step_graph(model, products=True), model, batch)
        return nncf.quantize(graph, nncf.Dataset(inputs), subset_size=CALIBRATION_STEPS)


def _openvino_graph(onnx_graph: bytes, model: Model, batch: int) -> Any:
    """The graph as OpenVINO's, for a fixed batch size."""
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as folder:
        path = Path(folder) / "step.onnx"
        path.write_bytes(onnx_graph)
        graph = openvino.Core().read_model(path)
    state = [model.config.num_layers, batch, model.config.hidden_size]
    graph.reshape({"tokens": [batch], "state": state, "uniform": [batch, 1]})
    return graph


def torch_rnn(model: Model) -> nn.RNNBase:
    """The layers of a model as `torch.nn.GRU`, `LSTM` or `RNN`, with weights in torch's convention."""
    config, w = model.config, model.weights
    kind = {"gru": nn.GRU, "lstm": nn.LSTM, "elman": nn.RNN}[config.cell]
    rnn: nn.RNNBase = kind(config.embedding_size, config.hidden_size, config.num_layers).eval()
    values = {}
    for l in range(config.num_layers):
        W, U, b = (w[f"layers.{l}.{name}"] for name in ("weight_ih", "weight_hh", "bias"))
        is_gru = config.cell == "gru"
        layer = to_torch_gru(W, U, b, w[f"layers.{l}.bias_hn"]) if is_gru else (W, U, b, torch.zeros_like(b))
        for name, value in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), layer, strict=True):
            values[f"{name}_l{l}"] = value
    rnn.load_state_dict(values)
    return rnn


def require_same_model(logits: Callable[[int], NDArray[np.float32]], model: Model, bound: float) -> None:
    """Compares a peer with the oracle after each of a few tokens; raises `Absent` where a logit is off by over `bound`.

    `logits` consumes a token and returns the logits (V,) that follow it.
    """
    oracle = Oracle(model.config, model.weights)
    worst = np.max([np.abs(logits(token) - oracle.step(token)) for token in (START_TOKEN, 5, 17, 99)])
    if not worst <= bound:
        raise Absent(f"it computes another model: its logits differ from the oracle's by {worst:.2g}")
