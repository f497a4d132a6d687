"""The decode interface on top of the shared library: passes rows and arrays as addresses, and raises its errors.

Knows ctypes and the layout of arrays. The C++ library computes the steps.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gruve.decode import HISTORY_TOKENS, Arithmetic, Block, Logprobs, Row, int8
from gruve.decode.native import library as abi
from gruve.decode.native.cores import available_cores
from gruve.decode.native.weights import PackedWeights, native_sizes, packed_weights
from gruve.decode.stops import StopTable
from gruve.model import sampling
from gruve.model.config import ModelConfig
from gruve.model.repository import Model

VERSION = 1
"""The version of the arithmetic. Any change of a bit of a logit or of a sampled token needs a new one."""
POINTERS_VERSION = 1
"""The same for models with pointers."""
MAX_ROWS = 64
MAX_STEPS = 4_096
MAX_INT32 = (1 << 31) - 1
MAX_POSITION = 1 << 62


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
        self.threads = self.workers = available_cores() if threads is None else threads
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
        """Arrays for the log-probabilities that a call writes; None if none of its rows requested any."""
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
    """16 hex digits that depend on the weights' precision and on whether there are pointers, on nothing else."""
    text = f"{NativeBackend.name} {VERSION} {config.precision}"
    if config.pointers is not None:
        text += f" pointers {POINTERS_VERSION}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def native_bytes(config: ModelConfig, slots: int, threads: int | None, isa: str | None, arithmetic: Arithmetic) -> int:
    """The memory that a backend would take with a sequence in every slot, in bytes, the model's weights not included.

    Prompts, stop tables and what else belongs to requests are not included either.
    """
    threads = available_cores() if threads is None else threads
    return sum(native_sizes(config, slots, threads, abi.chosen_isa(isa), arithmetic))


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


def _check_integers(row: Row) -> None:
    """Raises `ValueError` for a number of which ctypes would keep the low bits only, or which would stand for None."""
    for name, value, bound in (
        ("position", row.position, MAX_POSITION),
        ("stop_state", row.stop_state, MAX_INT32),
        ("max_tokens", row.max_tokens, MAX_INT32),
        ("min_tokens", row.min_tokens, MAX_INT32),
        ("generated", row.generated, MAX_INT32),
        ("end_id", row.end_id or 0, MAX_INT32),
        ("logprobs", row.logprobs or 0, MAX_INT32),
    ):
        if not 0 <= value <= bound:
            raise ValueError(f"{name} {value} is not between 0 and {bound}")


def _native_row(row: Row, vocabulary_size: int) -> tuple[abi.NativeRow, _Arrays]:
    """The row as the library takes it, and the arrays that the struct points into.

    Raises `ValueError` for a value that the struct cannot hold. The library checks the other bounds.
    """
    _check_integers(row)
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
    """The table (states, V), or None, and the token ids; raises `ValueError` for a table of another vocabulary."""
    if stops is None:
        return None, np.empty(0, dtype=np.int32)
    if stops.table.ndim != 2 or stops.table.shape[1] != vocabulary_size:
        raise ValueError(f"a stop table of shape {stops.table.shape}; this model's have {vocabulary_size} columns")
    return np.ascontiguousarray(stops.table, dtype=np.int32), np.array(stops.token_ids, dtype=np.int32)
