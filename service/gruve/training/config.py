"""The configuration of a training run: one TOML file, read into frozen dataclasses. Knows no tensors.

It has everything that can change a weight, so config, corpus and machine determine the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from gruve.errors import InvalidField, ModelBroken
from gruve.model.config import MAX_TEMPERATURE, MIN_TEMPERATURE, Cell, ModelConfig, Precision, Reset
from gruve.model.pointers import PointerConfig
from gruve.model.tokenizer import Kind

Arithmetic = Literal["float32", "bfloat16"]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of the network. The vocabulary is that of the corpus."""

    cell: Cell
    """The recurrence."""
    embedding_size: int
    """E, 1 to 4,096."""
    hidden_size: int
    """H, 8 to 4,096."""
    num_layers: int
    """L, 1 to 4."""
    reset: Reset | None = None
    """GRU only, and required there: the reset gate multiplies `after` the recurrent product (torch, cuDNN) or `before`
    it (Cho 2014)."""
    tied_head: bool = False
    """Whether the head shares the embedding."""
    precision: Precision = "float16"
    """The type that the weights are rounded to when the model is saved."""

    def model_config(self, vocabulary_size: int, pointers: PointerConfig | None = None) -> ModelConfig:
        """Returns the model configuration for a vocabulary; raises `ModelBroken` on sizes out of bounds."""
        return ModelConfig(vocabulary_size=vocabulary_size, pointers=pointers, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, slots=True)
class Regularisation:
    """Dropout probabilities and weight decay."""

    dropout_embedding: float = 0.0
    """Locked dropout on the input of the first layer, 0 to below 1."""
    dropout_between: float = 0.0
    """Locked dropout between layers, 0 to below 1."""
    dropout_head: float = 0.0
    """Locked dropout on the input of the head, 0 to below 1."""
    dropout_weight: float = 0.0
    """DropConnect on the recurrent weights, with one mask per batch; 0 to below 1."""
    final_share: float = 1.0
    """The share of the dropouts that is left at the last step, 0 to 1. They fall linearly over the second half of the
    run."""
    weight_decay: float = 0.0
    """The weight decay of AdamW, applied to matrices but not to biases, the embedding or pointers; 0 to below 1."""


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """The length of the run and its learning rate, which warms up linearly and then falls along half a cosine."""

    steps: int
    """The number of updates of the weights, at least 1."""
    learning_rate: float
    """The highest learning rate, reached after the warm-up; above 0, at most 1."""
    final_learning_rate: float
    """The learning rate of the last step, 0 to `learning_rate`."""
    warmup_steps: int = 100
    """The updates in which the learning rate rises from 0 to its highest, 0 to `steps`."""
    clip_norm: float = 1.0
    """The maximum norm of the gradient, above 0; a longer one is scaled down to it."""
    average_decay: float = 0.999
    """The decay of the moving average of the weights, which is what is saved; 0 to below 1, and 0 saves the last
    weights."""
    validate_every_steps: int = 500
    """The updates between two validations, each of which adds a row to `losses.csv`; at least 1."""
    checkpoint_every_steps: int = 500
    """The updates between two checkpoints, which `--resume` continues from; at least 1."""


@dataclasses.dataclass(frozen=True, slots=True)
class Batches:
    """How the corpus is cut into batches. `steps` and `cold_share` are for texts, `joined_share` is for tunes."""

    rows: int
    """B: the number of streams of a text, or of tunes, in a batch, 1 to 4,096."""
    steps: int = 128
    """The mean number of steps of truncated back-propagation, 2 to 65,536. Each batch draws its own from half to
    one and a half times it."""
    cold_share: float = 0.03
    """The share of chunks that begin like a new sequence: from the zero state, with the start token; 0 to 1."""
    joined_share: float = 0.15
    """The share of rows that hold two tunes, the second without a new state, as in a continued session; 0 to 1."""


@dataclasses.dataclass(frozen=True, slots=True)
class Objective:
    """Weights of the losses that are added to the next token's, for tunes; both are 0 for texts."""

    auxiliary_weight: float = 0.0
    """The weight of the auxiliary targets (`auxiliary.py`), whose head is not saved; 0 to 1,000."""
    unlikelihood_weight: float = 0.0
    """The weight of the unlikelihood of tokens that never follow (`unlikelihood.py`); 0 to 1,000."""


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """The form objective of `form_objective.py`, for tunes: what the model composes gets the form of the corpus."""

    weight: float = 1.0
    """The weight of its loss, beside 1 for the next token's; above 0, at most 1,000."""
    composed: int = 8_000
    """The tunes that are composed at a time, 100 to 1,000,000."""
    every_steps: int = 150
    """The updates between two compositions; the first comes before the first update. At least 1."""
    rows: int = 32
    """The composed tunes in a batch, 2 to 4,096. Each update takes one batch."""


OBJECTIVE_NAMES = {"auxiliary_weight": "landmark_weight", "unlikelihood_weight": "taboo_weight"}
"""The names of the keys of `Objective` in a config's digest, from before they were renamed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pointers:
    """The 1 to 16 pointers of the model, of all kinds together; `gruve.model.pointers` defines them."""

    bars: list[int] = dataclasses.field(default_factory=list)
    """Distances k, 1 to 64: pointers to the same place of the bar k bars ago. For tunes only."""
    followers: list[int] = dataclasses.field(default_factory=list)
    """Lengths n, 1 to 32: pointers to the token that followed the last occurrence of the last n tokens."""
    matches: int = 16
    """The number of rows of each pointer's match length table, 0 to 32; 0 for none."""
    transposed: list[int] = dataclasses.field(default_factory=list)
    """Distances k, 1 to 64: pointers to the bar k bars ago, moved along the natural notes. For tunes only."""


@dataclasses.dataclass(frozen=True, slots=True)
class Teachers:
    """Trained models whose distributions the run learns as well; see `teachers.py`."""

    digests: list[str]
    """The digest of each teacher, in the order in which their folders are given as `--teacher`; 1 to 64."""
    weight: float = 0.5
    """The share of the next token's loss that compares with the teachers, above 0 to 1; the rest compares with the
    corpus."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training run."""

    name: str
    """The name of the run, part of its digest. The model is named after its folder."""
    kind: Kind
    """The tokenizer and the corpus: `characters` for a text, `abc` for a folder of tunes."""
    architecture: Architecture
    schedule: Schedule
    batches: Batches
    regularisation: Regularisation = Regularisation()
    objective: Objective = Objective()
    pointers: Pointers | None = None
    """The pointers of the model; without this table it has none."""
    form: Form | None = None
    """The form objective; without this table there is none."""
    teachers: Teachers | None = None
    """The teachers; without this table there are none."""
    initial_digest: str = ""
    """The digest of the model whose weights the run begins with, given as `--initial`. Empty begins with random
    weights."""
    seed: int = 1
    """The seed of the initial weights, the batches and the dropout, 0 to 2^63 - 1."""
    threads: int = 1
    """The threads of a matrix product, 1 to 256. Another number rounds differently and gives another model."""
    arithmetic: Arithmetic = "float32"
    """The type of matrix products. `bfloat16` (GRU with reset=after) trains three times as fast on CPUs that support
    it."""
    corpus_sha256: str = ""
    """The sha256 that the corpus must have; empty accepts any corpus."""
    default_temperature: float | None = None
    """The model's recommended sampling temperature, 0.05 to 2. It changes no weight and may be chosen after the run.
    Absent is 1."""

    def __post_init__(self) -> None:
        a, s, b, r = self.architecture, self.schedule, self.batches, self.regularisation
        _check(self.kind in get_args(Kind), "kind", self.kind, f"one of {get_args(Kind)}")
        _check(self.arithmetic in get_args(Arithmetic), "arithmetic", self.arithmetic, f"one of {get_args(Arithmetic)}")
        _check(
            self.arithmetic == "float32" or (a.cell == "gru" and a.reset == "after"),
            "arithmetic",
            self.arithmetic,
            "float32 for any cell but the GRU with reset=after",
        )
        _check(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63-1")
        _check(1 <= self.threads <= 256, "threads", self.threads, "1 to 256")
        _check(s.steps >= 1, "schedule.steps", s.steps, "at least 1")
        _check(0 <= s.warmup_steps <= s.steps, "schedule.warmup_steps", s.warmup_steps, f"0 to steps ({s.steps})")
        _check(0 < s.learning_rate <= 1, "schedule.learning_rate", s.learning_rate, "above 0, at most 1")
        _check(
            0 <= s.final_learning_rate <= s.learning_rate,
            "schedule.final_learning_rate",
            s.final_learning_rate,
            f"0 to learning_rate ({s.learning_rate})",
        )
        _check(s.clip_norm > 0, "schedule.clip_norm", s.clip_norm, "above 0")
        for name in ("validate_every_steps", "checkpoint_every_steps"):
            _check(getattr(s, name) >= 1, f"schedule.{name}", getattr(s, name), "at least 1")
        _check(1 <= b.rows <= 4096, "batches.rows", b.rows, "1 to 4096")
        _check(2 <= b.steps <= 65_536, "batches.steps", b.steps, "2 to 65536")
        temperature = self.default_temperature
        if temperature is not None:
            allowed = f"{MIN_TEMPERATURE} to {MAX_TEMPERATURE}"
            _check(MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE, "default_temperature", temperature, allowed)
        if (f := self.form) is not None:
            if self.kind != "abc":
                raise InvalidField("form", f"is a table for tunes; kind is {self.kind!r}")
            _check(0 < f.weight <= 1_000, "form.weight", f.weight, "above 0, at most 1000")
            _check(100 <= f.composed <= 1_000_000, "form.composed", f.composed, "100 to 1000000")
            _check(f.every_steps >= 1, "form.every_steps", f.every_steps, "at least 1")
            _check(2 <= f.rows <= 4_096, "form.rows", f.rows, "2 to 4096")
        if (t := self.teachers) is not None:
            _check(1 <= len(t.digests) <= 64, "teachers.digests", t.digests, "1 to 64 digests")
            _check(0 < t.weight <= 1, "teachers.weight", t.weight, "above 0, at most 1")
        for name in ("auxiliary_weight", "unlikelihood_weight"):
            weight = getattr(self.objective, name)
            _check(0 <= weight <= 1_000, f"objective.{name}", weight, "0 to 1000")
            _check(weight == 0 or self.kind == "abc", f"objective.{name}", weight, "0 for texts")
        shares = {f"batches.{n}": getattr(b, n) for n in ("cold_share", "joined_share")}
        shares |= {f"regularisation.{f.name}": getattr(r, f.name) for f in dataclasses.fields(r)}
        shares["schedule.average_decay"] = s.average_decay
        for name, share in shares.items():
            whole = "share" in name
            _check(0 <= share < 1 or (share == 1 and whole), name, share, "0 to 1" if whole else "0 to below 1")
        with _invalid("architecture"):
            a.model_config(vocabulary_size=2)
        if (p := self.pointers) is not None:
            with _invalid("pointers"):
                scale = (2, 3) if p.transposed else ()
                distances = tuple(p.bars), tuple(p.followers), tuple(p.transposed)
                PointerConfig(*distances, scale, bar_tokens=(1,), matches=p.matches)

    def digest(self) -> str:
        """The sha256 of every field that can change a weight.

        A checkpoint belongs to the config with the same digest.
        """
        fields = dataclasses.asdict(self)
        del fields["default_temperature"]
        # Keys that were renamed or added later do not change the digest of an older config.
        fields["objective"] = {OBJECTIVE_NAMES[name]: weight for name, weight in fields["objective"].items()}
        for name in ("pointers", "form", "teachers", "initial_digest"):
            if not fields[name]:
                del fields[name]
        if self.pointers is not None and not self.pointers.transposed:
            del fields["pointers"]["transposed"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def read_config(path: Path) -> TrainingConfig:
    """Reads a training TOML; raises `InvalidField`, with the file's name, on a key or a value it does not know."""
    return read_toml(path, _training_config)


def read_toml(path: Path, build: Callable[[dict[str, Any]], T]) -> T:
    """Reads a TOML file and builds a value of its keys.

    Raises `InvalidField` if it cannot be read. The file's name is put before the field of one that `build` raises.
    """
    try:
        return build(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InvalidField(str(path), f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidField(str(path), f"is not TOML: {error}") from error
    except InvalidField as error:
        raise InvalidField(f"{path}: {error.field}", error.why) from error


def _training_config(fields: dict[str, Any]) -> TrainingConfig:
    tables: dict[str, type[Any]] = {
        "architecture": Architecture,
        "schedule": Schedule,
        "batches": Batches,
        "regularisation": Regularisation,
        "objective": Objective,
        "pointers": Pointers,
        "form": Form,
        "teachers": Teachers,
    }
    for name, table in tables.items():
        if name in fields:
            fields[name] = build_from_table(table, fields[name], f"{name}.")
    return build_from_table(TrainingConfig, fields, "")


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "float | None": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a string"),
    "list[int]": ((list,), "a list of whole numbers"),
    "list[str]": ((list,), "a list of strings"),
}
"""The types that TOML may give a field, by its declared type, and their name. Other fields have checks of their own."""


def build_from_table(table: type[T], fields: Any, prefix: str) -> T:
    """Builds a dataclass from `fields`; their names and types must be those of the dataclass."""
    if not isinstance(fields, dict):
        raise InvalidField(prefix.rstrip("."), f"is {fields!r}; must be a table")
    known = {field.name: field for field in dataclasses.fields(table)}  # type: ignore[arg-type]
    for name, value in fields.items():
        if name not in known:
            raise InvalidField(prefix + name, f"is not known; known are {', '.join(known)}")
        declared = str(known[name].type)
        types, wanted = _TYPES.get(declared, ((type(value),), ""))
        right = type(value) in types
        if right and declared.startswith("list"):
            right = all(type(one).__name__ == declared[5:-1] for one in value)
        if not right:
            raise InvalidField(prefix + name, f"is {value!r}; must be {wanted}")
    for name, field in known.items():
        if name not in fields and field.default is field.default_factory is dataclasses.MISSING:
            raise InvalidField(prefix + name, "is missing")
    return table(**fields)


@contextmanager
def _invalid(table: str) -> Iterator[None]:
    """Names the table of this configuration for a value that no model can have."""
    try:
        yield
    except ModelBroken as error:
        raise InvalidField(table, str(error).removeprefix("config.json: ").removeprefix("pointers: ")) from error


def _check(holds: bool, field: str, value: object, allowed: str) -> None:
    if not holds:
        raise InvalidField(field, f"is {value!r}; allowed: {allowed}")
