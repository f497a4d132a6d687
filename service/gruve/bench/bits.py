"""`gruve bench bits`: a digest of 10,000 tokens of every cell on every instruction set, to compare CPUs.

The same digest means the same bits: every token is sampled from logits that another CPU must compute identically.
In int8 the reference backend has the digest of the native one too, and so have a GPU's kernels. Without a GPU, the
kernels are interpreted on the CPU; that is slow, so only the first tokens are compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.sequences import begin_sequences
from gruve.bench.synthetic import CELLS, Size, make_model
from gruve.decode import Arithmetic, Backend
from gruve.decode.cuda import cuda_backend
from gruve.decode.cuda.interpreted import interpreted_backend
from gruve.decode.native import NativeBackend, unavailable_reason
from gruve.decode.native.library import ISAS, library
from gruve.decode.reference import ReferenceBackend
from gruve.errors import ModelBroken
from gruve.model.repository import Model

COLUMNS = ("cell", "arithmetic", "backend", "isa", "numerics_id", "tokens", "digest")
ARITHMETICS: tuple[Arithmetic, ...] = ("float32", "int8")
SEQUENCES = 10
TINY = Size(2, 48)


@dataclasses.dataclass(frozen=True, slots=True)
class BitsBenchConfig:
    """The number of tokens in each digest."""

    size: Size = TINY
    cells: tuple[str, ...] = CELLS
    tokens: int = 10_000
    """From ten sequences with the seeds 0 to 9."""
    interpreted_tokens: int = 500
    """As many of these, from interpreted kernels; 0 to leave them out."""

    @classmethod
    def quick(cls) -> BitsBenchConfig:
        """Returns a configuration that takes seconds: only interpreted kernels take longer."""
        return cls(interpreted_tokens=50)


def run_bits(config: BitsBenchConfig, report: Report) -> Result:
    """Prints a line for every cell and instruction set that this CPU supports."""
    rows: list[Row] = []
    skipped: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as folder:
        for cell in config.cells:
            model = make_model(Path(folder) / cell.replace("_", "-"), config.size, cell)
            for arithmetic in ARITHMETICS:
                for isa in ISAS:
                    if _unavailable(isa) is None:
                        native = NativeBackend(model, SEQUENCES, 1, isa=isa, arithmetic=arithmetic)
                        rows.append(_row(config, cell, arithmetic, isa, native))
                reference = ReferenceBackend(model, SEQUENCES, arithmetic=arithmetic)
                rows.append(_row(config, cell, arithmetic, "torch", reference))
            try:
                rows += _kernels(config, cell, model)
            except ModelBroken as error:
                skipped.append({"cell": cell, "isa": "triton", "why": str(error)})
            skipped += [
                {"cell": cell, "isa": isa, "why": why} for isa in ISAS if (why := _unavailable(isa)) is not None
            ]
    for line in table(rows, COLUMNS):
        report(line)
    for cell in config.cells:
        whole = [row for row in rows if (row["cell"], row["arithmetic"]) == (cell, "int8")]
        for tokens in sorted({int(str(row["tokens"])) for row in whole}, reverse=True):
            digests = {row["digest"] for row in whole if row["tokens"] == tokens}
            verdict = "one digest" if len(digests) == 1 else f"{len(digests)} DIFFERENT DIGESTS"
            report(f"{cell} in int8, {tokens} tokens: {verdict}")
    for row in skipped:
        report(f"{row['cell']} on {row['isa']} was not run: {row['why']}")
    return Result("bits", describe_machine(), describe_versions(), rows, skipped)


def _unavailable(isa: str) -> str | None:
    why = unavailable_reason()
    if why is None and library().isa(isa) != isa:
        return "this CPU has it not"
    return why


def _kernels(config: BitsBenchConfig, cell: str, model: Model) -> list[Row]:
    """The line of the Triton kernels in int8, and without a GPU the reference's of as many tokens."""
    if torch.cuda.is_available():
        return [_row(config, cell, "int8", "triton", cuda_backend(model, SEQUENCES, "triton", "a benchmark", "int8"))]
    if not config.interpreted_tokens:
        return []
    few = dataclasses.replace(config, tokens=min(config.tokens, config.interpreted_tokens))
    interpreted = _row(few, cell, "int8", "triton, interpreted", interpreted_backend(model, SEQUENCES))
    return [interpreted, _row(few, cell, "int8", "torch", ReferenceBackend(model, SEQUENCES, arithmetic="int8"))]


def _row(config: BitsBenchConfig, cell: str, arithmetic: Arithmetic, isa: str, backend: Backend) -> Row:
    tokens = generate(backend, config.tokens // SEQUENCES)
    digest = hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()[:16]
    return {
        "cell": cell,
        "arithmetic": arithmetic,
        "backend": backend.name,
        "isa": isa,
        "numerics_id": backend.numerics_id,
        "tokens": int(tokens.size),
        "digest": digest,
    }


def generate(backend: Backend, tokens: int) -> NDArray[np.int32]:
    """The tokens of ten sequences at temperature 1; shape (tokens, 10)."""
    slots = list(range(SEQUENCES))
    begin_sequences(backend, slots, tokens)
    blocks = [backend.decode(slots, [tokens] * SEQUENCES, min(100, tokens - at)) for at in range(0, tokens, 100)]
    whole: NDArray[np.int32] = np.concatenate([block.tokens for block in blocks])
    return whole
