"""The configuration of a model: its cell, its sizes and its files. Knows no weights."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from typing import Any, Literal, get_args

from gruve.errors import ModelBroken
from gruve.model.pointers import PointerConfig

Cell = Literal["gru", "lstm", "elman"]
Reset = Literal["after", "before"]
Precision = Literal["float16", "float32"]

FORMAT_VERSION = 1
MAX_VOCABULARY_SIZE = 65_535
MAX_LAYERS = 4
HIDDEN_SIZES = range(8, 4_096 + 1)
EMBEDDING_SIZES = range(1, 4_096 + 1)
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 2.0
"""The bounds of `default_temperature`."""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model's `config.json`.

    A reader raises `ModelBroken` on an unknown key, another format version, or a size out of bounds. A model that is
    read differently from how it was written would generate other tokens.
    """

    cell: Cell
    """The recurrence: `gru`, `lstm` or `elman`. Its equation is in `cells.py`."""
    vocabulary_size: int
    """V, at most 65,535."""
    embedding_size: int
    """E, 1 to 4,096."""
    hidden_size: int
    """H, 8 to 4,096."""
    num_layers: int
    """L, 1 to 4."""
    reset: Reset | None = None
    """GRU only: the reset gate multiplies `after` the recurrent product (torch, cuDNN) or `before` it (Cho 2014)."""
    tied_head: bool = False
    """Whether the head shares the embedding. If E differs from H, a projection (E, H) is between them."""
    precision: Precision = "float16"
    """The type that the stored weights are rounded to, once, before any backend uses them."""
    format_version: int = FORMAT_VERSION
    """The version of this file's format."""
    pointers: PointerConfig | None = None
    """The pointers, which are earlier tokens that the model is shown as candidates; None for a model without them."""
    default_temperature: float | None = None
    """The recommended sampling temperature, 0.05 to 2: for the commands and the card, not for the API. None is 1."""
    files: tuple[tuple[str, str], ...] = ()
    """The sha256 in hex of each other file that is loaded."""

    def __post_init__(self) -> None:
        _check(self.format_version == FORMAT_VERSION, "format_version", self.format_version, f"{FORMAT_VERSION}")
        _check(self.cell in get_args(Cell), "cell", self.cell, f"one of {get_args(Cell)}")
        if self.cell == "gru":
            _check(self.reset in get_args(Reset), "reset", self.reset, f"one of {get_args(Reset)} for a GRU")
        else:
            _check(self.reset is None, "reset", self.reset, f"absent for cell {self.cell!r}")
        _check(self.precision in get_args(Precision), "precision", self.precision, f"one of {get_args(Precision)}")
        _check(
            1 <= self.vocabulary_size <= MAX_VOCABULARY_SIZE,
            "vocabulary_size",
            self.vocabulary_size,
            f"1 to {MAX_VOCABULARY_SIZE}",
        )
        for name, size, allowed in (
            ("embedding_size", self.embedding_size, EMBEDDING_SIZES),
            ("hidden_size", self.hidden_size, HIDDEN_SIZES),
        ):
            _check(size in allowed, name, size, f"{allowed[0]} to {allowed[-1]}")
        _check(1 <= self.num_layers <= MAX_LAYERS, "num_layers", self.num_layers, f"1 to {MAX_LAYERS}")
        if self.pointers is not None:
            self.pointers.check_vocabulary(self.vocabulary_size)
        if self.default_temperature is not None:
            _check(
                MIN_TEMPERATURE <= self.default_temperature <= MAX_TEMPERATURE,
                "default_temperature",
                self.default_temperature,
                f"{MIN_TEMPERATURE} to {MAX_TEMPERATURE}",
            )

    @property
    def gates(self) -> int:
        """G: the number of gates, which are blocks of H rows in `weight_ih` and `weight_hh`."""
        return {"gru": 3, "lstm": 4, "elman": 1}[self.cell]

    @property
    def state_tensors(self) -> int:
        """The number of state tensors (L, B, H): two for the LSTM (h, c), else one."""
        return 2 if self.cell == "lstm" else 1

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """The shape of one sequence's state, as `Backend.snapshot` returns it: (state tensors, L, H)."""
        return self.state_tensors, self.num_layers, self.hidden_size

    @property
    def state_bytes(self) -> int:
        """The size of one sequence's state in fp32."""
        return 4 * math.prod(self.state_shape)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight, in the usual order: input, layers, head; then those of the pointers."""
        V, E, H, G = self.vocabulary_size, self.embedding_size, self.hidden_size, self.gates
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (V, E)}
        for l in range(self.num_layers):
            shapes[f"layers.{l}.weight_ih"] = (G * H, E if l == 0 else H)
            shapes[f"layers.{l}.weight_hh"] = (G * H, H)
            shapes[f"layers.{l}.bias"] = (G * H,)
            if self.reset == "after":
                shapes[f"layers.{l}.bias_hn"] = (H,)
        if not self.tied_head:
            shapes["head.weight"] = (V, H)
        elif E != H:
            shapes["head.projection"] = (E, H)
        shapes["head.bias"] = (V,)
        if self.pointers is not None:
            shapes |= self.pointers.shapes(V, E, H)
        return shapes

    def parameter_count(self) -> int:
        """The number of stored weights."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def to_json(self) -> str:
        """The canonical text: sorted keys, no absent values. The digest is computed from it."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        fields["files"] = dict(self.files)
        for name in ("transposed", "scale"):  # absent in models from before there were any, whose digests stay
            if "pointers" in fields and not fields["pointers"][name]:
                del fields["pointers"][name]
        return json.dumps(fields, sort_keys=True, indent=2, ensure_ascii=False) + "\n"

    def digest(self) -> str:
        """The sha256 of the canonical config, which contains the sha256 of tokenizer and weights."""
        return _digest(self)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Reads a `config.json`; raises `ModelBroken` on anything it does not know."""
        try:
            fields: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelBroken(f"config.json is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ModelBroken(f"config.json holds a {type(fields).__name__}, not an object")
        version = fields.get("format_version", "absent")
        _check(type(version) is int and version == FORMAT_VERSION, "format_version", version, f"{FORMAT_VERSION}")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ModelBroken(f"config.json has the unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
        for name in ("vocabulary_size", "embedding_size", "hidden_size", "num_layers"):
            if name not in fields:
                raise ModelBroken(f"config.json lacks the key {name!r}")
            _check(type(fields[name]) is int, name, fields[name], "an integer")
        if "cell" not in fields:
            raise ModelBroken("config.json lacks the key 'cell'")
        _check(type(fields.get("tied_head", False)) is bool, "tied_head", fields.get("tied_head"), "true or false")
        temperature = fields.get("default_temperature")
        if "default_temperature" in fields:
            _check(type(temperature) in (int, float), "default_temperature", temperature, "a number")
        if "pointers" in fields:
            fields["pointers"] = PointerConfig.from_fields(fields["pointers"])
        files = fields.pop("files", {})
        if not isinstance(files, dict) or not all(isinstance(v, str) for v in files.values()):
            raise ModelBroken("config.json: files must map each file's name to its sha256")
        return cls(**fields, files=tuple(sorted(files.items())))


@functools.lru_cache(maxsize=64)
def _digest(config: ModelConfig) -> str:
    """The digest, cached because every request needs it."""
    return hashlib.sha256(config.to_json().encode()).hexdigest()


def _check(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ModelBroken(f"config.json: {key} is {value!r}; allowed: {allowed}")
