"""`gruve bench bits`: a digest of 10,000 tokens of every cell on every instruction set, to compare CPUs.

The same digest means the same bits: every token is sampled from logits that another CPU must compute identically.
In int8 the reference backend has the digest of the native one too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.synthetic import CELLS, Size, make_model
from gruve.decode import Arithmetic, Backend
from gruve.decode import Row as Admitted
from gruve.decode.native import NativeBackend, unavailable_reason
from gruve.decode.native.library import ISAS, library
from gruve.decode.reference import ReferenceBackend
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import START_TOKEN

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

    @classmethod
    def quick(cls) -> BitsBenchConfig:
        """Returns the same configuration, because it takes only seconds."""
        return cls()


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
            skipped += [
                {"cell": cell, "isa": isa, "why": why} for isa in ISAS if (why := _unavailable(isa)) is not None
            ]
    for line in table(rows, COLUMNS):
        report(line)
    for cell in config.cells:
        digests = {row["digest"] for row in rows if (row["cell"], row["arithmetic"]) == (cell, "int8")}
        report(f"{cell} in int8: {'one digest' if len(digests) == 1 else f'{len(digests)} DIFFERENT DIGESTS'}")
    for row in skipped:
        report(f"{row['cell']} on {row['isa']} was not run: {row['why']}")
    return Result("bits", describe_machine(), describe_versions(), rows, skipped)


def _unavailable(isa: str) -> str | None:
    why = unavailable_reason()
    if why is None and library().isa(isa) != isa:
        return "this CPU has it not"
    return why


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
    for slot in range(SEQUENCES):
        start, nothing = np.array([START_TOKEN], dtype=np.int32), np.array([], dtype=np.int32)
        backend.admit(slot, Admitted(start, 0, nothing, SamplingParameters(seed=slot), max_tokens=tokens), None)
    slots = list(range(SEQUENCES))
    blocks = [backend.decode(slots, [tokens] * SEQUENCES, min(100, tokens - at)) for at in range(0, tokens, 100)]
    whole: NDArray[np.int32] = np.concatenate([block.tokens for block in blocks])
    return whole
