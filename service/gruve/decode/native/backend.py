"""The decode interface on top of the shared library: passes rows and arrays as addresses, and raises its errors.

Knows ctypes and the layout of arrays. The C++ library computes the steps.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import math
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gruve.decode import HISTORY_TOKENS, Arithmetic, Block, Logprobs, Row, int8
from gruve.decode.native import library as abi
from gruve.decode.stops import StopTable
from gruve.errors import ModelBroken
from gruve.model import sampling
from gruve.model.config import ModelConfig
from gruve.model.repository import Model

VERSION = 1
"""The version of the arithmetic. Any change of a bit of a logit or of a sampled token needs a new one."""
POINTERS_VERSION = 1
"""The same for models with pointers."""
MAX_ROWS = 64
MAX_STEPS = 4_096
CELLS = {("gru", "after"): 0, ("gru", "before"): 1, ("lstm", None): 2, ("elman", None): 3}


class NativeBackend:
    """Decodes in C++ on the CPU; see `gruve.decode.Backend` for the contract.

    Results depend only on the model, the row, the arithmetic and `VERSION`: not on the instruction set, the number of
    threads, the other rows or the number of steps of a call. `close` ends its threads. After a fork it continues to
    work in the child, on the calling thread.

    With `int8`, the operands of products with a state are rounded, those of the head included: `gruve.decode.int8`
    states this arithmetic. It is the reference backend's too, and so is its `numerics_id`.
    """

    name = "native"
    max_rows = MAX_ROWS
    nice = 10

    def __init__(
        self,
        model: Model,
        slots: int,
        threads: int | None = None,
        selection_reason: str = "requested",
        isa: str | None = None,
        arithmetic: Arithmetic = "float32",
    ) -> None:
        """`threads` None is the number of cores that this process may use; `isa` None the fastest that the CPU has."""
        config = model.config
        self.slots = slots
        self.isa = abi.chosen_isa(isa)
        self.threads = self.workers = threads or available_cores()
        self.saturating_rows = abi.SATURATING_ROWS[self.isa]
        how = f"{self.isa}, {self.threads} threads{', int8' if arithmetic == 'int8' else ''}"
        self.selection_reason = f"{selection_reason} ({how})"
        self.numerics_id = int8.numerics_id(config) if arithmetic == "int8" else _float32_numerics_id(config)
        self._config = config
        self._library = abi.library()
        packed = packed_weights(model, self.isa, arithmetic)
        self._packed: PackedWeights | None = packed
        decoder = ctypes.c_void_p()
        self._library.call("gruve_decoder_create", packed.model, slots, self.threads, ctypes.byref(decoder))
        self._decoder: ctypes.c_void_p | None = decoder
        self._close = weakref.finalize(self, self._library.plain, "gruve_decoder_destroy", decoder)
        self._close.atexit = False  # at exit a thread may still be decoding; the system frees everything
        # By slot: the stop table that the decoder reads, which must live as long, and the log-probabilities requested.
        self._stops: list[NDArray[np.int32] | None] = [None] * slots
        self._logprobs: list[int | None] = [None] * slots

    def admit(self, slot: int, row: Row, state: NDArray[np.float32] | None) -> None:
        """Puts a sequence into a slot; see the contract. Raises `ValueError` for a value out of bounds."""
        native, keep = _native_row(row, self._config.vocabulary_size)
        if state is not None and state.shape != self._config.state_shape:
            raise ValueError(f"a state of shape {state.shape}; this model's is {self._config.state_shape}")
        given = None if state is None else np.ascontiguousarray(state, dtype=np.float32)
        self._library.call(
            "gruve_admit", self._decoder, slot, ctypes.byref(native), None if given is None else given.ctypes.data
        )
        self._stops[slot] = keep.stop_table
        self._logprobs[slot] = row.logprobs

    def decode(self, slots: Sequence[int], limits: Sequence[int], steps: int, *, exclusive: bool = True) -> Block:
        """Runs a block of steps; see the contract. Raises `ValueError` for a value out of bounds."""
        rows = len(slots)
        if not 1 <= rows <= MAX_ROWS or len(limits) != rows:
            raise ValueError(f"{rows} slots and {len(limits)} limits; a call takes 1 to {MAX_ROWS} of each")
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"steps {steps} is not between 1 and {MAX_STEPS}")
        given = np.array((slots, limits), dtype=np.int32)
        made = np.empty((2, rows), dtype=np.int32)
        tokens = np.empty((steps, rows), dtype=np.int32)
        logprobs = self._asked_logprobs(slots, steps)
        given_at, made_at, row_bytes = given.ctypes.data, made.ctypes.data, rows * given.itemsize
        call = abi.Call(
            rows=rows,
            steps=steps,
            exclusive=exclusive,
            slots=given_at,
            limits=given_at + row_bytes,
            tokens=tokens.ctypes.data,
            steps_taken=made_at,
            statuses=made_at + row_bytes,
        )
        if logprobs is not None:
            call.alternatives = logprobs.top.shape[2]
            call.chosen, call.top_ids, call.top = (
                part.ctypes.data for part in (logprobs.chosen, logprobs.top_ids, logprobs.top)
            )
        self._library.call("gruve_decode", self._decoder, ctypes.byref(call))
        return Block(tokens, made[0], made[1], logprobs)

    def snapshot(self, slot: int) -> NDArray[np.float32]:
        """A copy of the slot's state; see the contract."""
        state = np.empty(self._config.state_shape, dtype=np.float32)
        self._library.call("gruve_snapshot", self._decoder, slot, state.ctypes.data)
        return state

    def release(self, slot: int) -> None:
        """Forgets the row in the slot."""
        self._library.call("gruve_release", self._decoder, slot)
        self._stops[slot], self._logprobs[slot] = None, None

    def last_logits(self, row: int) -> NDArray[np.float32]:
        """For tests: the logits (V,) of the last step in which row `row` of the last call sampled or scored."""
        logits = np.empty(self._config.vocabulary_size, dtype=np.float32)
        self._library.call("gruve_last_logits", self._decoder, row, logits.ctypes.data)
        return logits

    def close(self) -> None:
        """Ends the threads and frees the slots, and the weights unless another backend shares them."""
        self._decoder = None
        self._close()
        self._packed = None

    def _asked_logprobs(self, slots: Sequence[int], steps: int) -> Logprobs | None:
        asked = [most for slot in slots if 0 <= slot < self.slots and (most := self._logprobs[slot]) is not None]
        if not asked:
            return None
        shape = (steps, len(slots))
        return Logprobs(
            np.empty(shape, dtype=np.float32),
            np.empty((*shape, max(asked)), dtype=np.int32),
            np.empty((*shape, max(asked)), dtype=np.float32),
        )


def _float32_numerics_id(config: ModelConfig) -> str:
    text = f"{NativeBackend.name} {VERSION} {config.precision}"
    if config.pointers is not None:
        text += f" pointers {POINTERS_VERSION}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def native_bytes(config: ModelConfig, slots: int, threads: int | None, isa: str | None, arithmetic: Arithmetic) -> int:
    """The memory that a backend would take with a sequence in every slot, in bytes, the model's weights not included.

    Prompts, stop tables and what else belongs to requests are not included either.
    """
    return sum(native_sizes(config, slots, threads or available_cores(), abi.chosen_isa(isa), arithmetic))


def native_sizes(config: ModelConfig, slots: int, threads: int, isa: str, arithmetic: Arithmetic) -> tuple[int, int]:
    """The bytes of the packed weights and of the decoder, as the library lays them out. It reads no weight."""
    weights = {name: np.broadcast_to(np.float32(0.0), shape) for name, shape in config.shapes().items()}
    pointers, keep = _pointers_struct(config, weights)
    given = _weights_struct(config, weights, arithmetic)
    given.pointers = None if pointers is None else ctypes.addressof(pointers)
    sizes = abi.library().memory(given, isa, slots, threads)
    del pointers, keep  # the library has read them
    return sizes


def available_cores() -> int:
    """The number of cores this process may use: its CPU affinity, or less if its control groups limit its time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Rounded down: if the threads use more time than the quota, all of them stop until the next period.
    return max(1, int(min(bound, quota_cores(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")))))


def quota_cores(groups: Path, own: Path) -> float:
    """The CPU time that version 2 control groups named by `own` allow, in cores; infinite if there is no limit."""
    try:
        named = [line.partition("::")[2] for line in own.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        return math.inf
    found = math.inf
    for name in named:
        folder = groups / name.strip("/")
        for group in (folder, *folder.parents):
            try:
                most, period = (group / "cpu.max").read_text().split()
                found = min(found, int(most) / int(period))
            except (OSError, ValueError):  # not there, or "max"
                continue
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Arrays:
    """The arrays that a struct points into. They must live as long as the struct is used."""

    history: NDArray[np.int32]
    forced: NDArray[np.int32]
    stop_table: NDArray[np.int32] | None
    stop_ids: NDArray[np.int32]
    bias_ids: NDArray[np.int32]
    bias: NDArray[np.float32]


def native_sampling(
    parameters: sampling.SamplingParameters,
) -> tuple[abi.Sampling, NDArray[np.int32], NDArray[np.float32]]:
    """The parameters as the library takes them, and the arrays of the biases that it points into."""
    ids = np.array([token for token, _ in parameters.logit_bias], dtype=np.int32)
    bias = np.array([value for _, value in parameters.logit_bias], dtype=np.float32)
    native = abi.Sampling(
        seed=parameters.seed,
        greedy=parameters.temperature == 0.0,
        scale=float(sampling.scale(parameters.temperature or 1.0)),
        top_k=min(parameters.top_k or 0, 2**31 - 1),
        top_p_share=sampling.share(parameters.top_p) if parameters.top_p < 1.0 else -1,
        min_p_share=sampling.share(parameters.min_p),
        penalty=parameters.repetition_penalty,
        inverse_penalty=float(sampling.inverse_penalty(parameters.repetition_penalty)),
        repetition_window=parameters.repetition_window,
        bias_size=len(ids),
        bias_ids=ids.ctypes.data,
        bias=bias.ctypes.data,
    )
    return native, ids, bias


def _native_row(row: Row, vocabulary_size: int) -> tuple[abi.NativeRow, _Arrays]:
    native_parameters, bias_ids, bias = native_sampling(row.sampling)
    table, stop_ids = _stop_arrays(row.stops, vocabulary_size)
    keep = _Arrays(
        np.ascontiguousarray(row.history[-HISTORY_TOKENS:], dtype=np.int32),
        np.ascontiguousarray(row.forced, dtype=np.int32),
        table,
        stop_ids,
        bias_ids,
        bias,
    )
    native = abi.NativeRow(
        position=row.position,
        history=keep.history.ctypes.data,
        history_size=len(keep.history),
        forced=keep.forced.ctypes.data,
        forced_size=len(keep.forced),
        stop_table=None if table is None else table.ctypes.data,
        stop_states=0 if table is None else len(table),
        stop_state=row.stop_state,
        stop_ids=stop_ids.ctypes.data,
        stop_ids_size=len(stop_ids),
        max_tokens=row.max_tokens,
        min_tokens=row.min_tokens,
        generated=row.generated,
        end_id=-1 if row.end_id is None else row.end_id,
        ignore_eos=row.ignore_eos,
        logprobs=-1 if row.logprobs is None else row.logprobs,
        sampling=native_parameters,
    )
    return native, keep


def _stop_arrays(stops: StopTable | None, vocabulary_size: int) -> tuple[NDArray[np.int32] | None, NDArray[np.int32]]:
    if stops is None:
        return None, np.empty(0, dtype=np.int32)
    if stops.table.ndim != 2 or stops.table.shape[1] != vocabulary_size:
        raise ValueError(f"a stop table of shape {stops.table.shape}; this model's have {vocabulary_size} columns")
    return np.ascontiguousarray(stops.table, dtype=np.int32), np.array(stops.token_ids, dtype=np.int32)


class PackedWeights:
    """A model's weights as the library holds them: immutable, shared by every backend of the same model."""

    def __init__(
        self, config: ModelConfig, weights: dict[str, NDArray[np.float32]], isa: str, arithmetic: Arithmetic
    ) -> None:
        self._library = abi.library()
        # Without an input table, the library reads the rows of the embedding and of the pointers from here.
        self._rows = [weights[name] for name in weights if name.startswith(("embedding", "pointers"))]
        self.model = ctypes.c_void_p()
        pointers, keep = _pointers_struct(config, weights)
        given = _weights_struct(config, weights, arithmetic)
        given.pointers = None if pointers is None else ctypes.addressof(pointers)
        self._library.call("gruve_model_create", ctypes.byref(given), isa.encode(), ctypes.byref(self.model))
        del pointers, keep  # the library has copied them
        weakref.finalize(self, self._library.plain, "gruve_model_destroy", self.model).atexit = False

    @property
    def bytes(self) -> int:
        """The size of the packed weights in memory."""
        return self._library.model_bytes(self.model)


_packed: weakref.WeakValueDictionary[str, PackedWeights] = weakref.WeakValueDictionary()
_packing = threading.Lock()


def packed_weights(model: Model, isa: str, arithmetic: Arithmetic) -> PackedWeights:
    """The packed weights of a model, shared by all backends with the same content while one of them lives."""
    weights = {name: _array(tensor) for name, tensor in model.weights.items()}
    key = hashlib.sha256(f"{isa} {arithmetic} {model.config.to_json()}".encode())
    for name in model.config.shapes():
        key.update(weights[name].data)
    with _packing:
        packed = _packed.get(key.hexdigest())
        if packed is None:
            packed = _packed[key.hexdigest()] = PackedWeights(model.config, weights, isa, arithmetic)
        return packed


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float32)


def _weights_struct(
    config: ModelConfig, weights: dict[str, NDArray[np.float32]], arithmetic: Arithmetic
) -> abi.Weights:
    for name, shape in config.shapes().items():
        if weights[name].shape != shape:
            raise ModelBroken(f"{name} has shape {weights[name].shape}; expected {shape}")

    def address(name: str) -> int | None:
        return weights[name].ctypes.data if name in weights else None

    struct = abi.Weights(
        cell=CELLS[config.cell, config.reset],
        vocabulary_size=config.vocabulary_size,
        embedding_size=config.embedding_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        half=config.precision == "float16",
        whole=arithmetic == "int8",
        embedding=address("embedding.weight"),
        head_weight=address("head.weight"),
        head_projection=address("head.projection"),
        head_bias=address("head.bias"),
    )
    for l in range(config.num_layers):
        for name in ("weight_ih", "weight_hh", "bias", "bias_hn"):
            getattr(struct, name)[l] = address(f"layers.{l}.{name}")
    return struct


def _pointers_struct(
    config: ModelConfig, weights: dict[str, NDArray[np.float32]]
) -> tuple[abi.Pointers | None, tuple[NDArray[np.int32], ...]]:
    """The pointers as the library takes them, None for a model without, and the arrays that the struct points into."""
    pointers = config.pointers
    if pointers is None:
        return None, ()
    V = config.vocabulary_size
    kinds = np.zeros(V, dtype=np.int32)
    kinds[list(pointers.bar_tokens)] = 1
    kinds[list(pointers.part_tokens)] = 2
    advances = np.array(pointers.advances or [0] * V, dtype=np.int32)
    bars, followers = (np.array(values, dtype=np.int32) for values in (pointers.bars, pointers.followers))

    def address(name: str) -> int | None:
        return weights[f"pointers.{name}"].ctypes.data if f"pointers.{name}" in weights else None

    struct = abi.Pointers(
        bars_size=len(bars),
        followers_size=len(followers),
        bars=bars.ctypes.data,
        followers=followers.ctypes.data,
        kinds=kinds.ctypes.data,
        advances=advances.ctypes.data,
        start_token=pointers.start_token,
        place_step=pointers.place_step,
        places=pointers.places,
        counts=pointers.counts,
        matches=pointers.matches,
        **{name: address(name) for name in ("weight", "match", "place", "count", "gate", "gate_bias")},
    )
    return struct, (kinds, advances, bars, followers)
