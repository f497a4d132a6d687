"""For tests of the native backend: this CPU's instruction sets, backends, and a plain implementation of a row."""

from __future__ import annotations

import numpy as np
import pytest

from gruve.decode import Row, RowStatus
from gruve.decode.native import NativeBackend, unavailable_reason
from gruve.decode.native.library import ISAS as KNOWN
from gruve.decode.native.library import library
from gruve.decode.stops import MATCHED
from gruve.model import sampling as law
from requiring import need

ISAS = [] if unavailable_reason() else [isa for isa in KNOWN if library().isa(isa)]
every_isa = pytest.mark.parametrize("isa", ISAS)


@pytest.fixture(autouse=True)
def native():
    """Skips the tests if the library was not built, or fails them if GRUVE_REQUIRE names native."""
    need("native", present=unavailable_reason() is None, install=f"pip install -e . ({unavailable_reason()})")


def row_with(prompt=(), *, history=(0,), position=None, max_tokens=10, sampling=None, **more) -> Row:
    return Row(
        np.array(history, dtype=np.int32),
        len(history) - 1 if position is None else position,
        np.array(prompt, dtype=np.int32),
        sampling or law.SamplingParameters(seed=1),
        max_tokens,
        **more,
    )


def life(backend: NativeBackend, slot: int, steps: int) -> tuple[list[int], RowStatus]:
    """The tokens of the row in `slot` until it freezes, with `steps` steps per call, and why it froze."""
    tokens, reason = [], RowStatus.RUNNING
    while reason is RowStatus.RUNNING:
        block = backend.decode([slot], [steps], steps)
        tokens += block.tokens[: block.steps_taken[0], 0].tolist()
        reason = RowStatus(int(block.statuses[0]))
    return tokens, reason


class PlainRow:
    """A row as defined by `gruve.decode.Row` and `model/sampling.py`, one step at a time."""

    def __init__(self, row: Row) -> None:
        self.row, self.generated, self.stop_state = row, row.generated, row.stop_state
        self.transcript, self.forced = row.history.tolist(), row.forced.tolist()
        self.position = row.position

    def step(self, logits) -> tuple[int, RowStatus]:
        """Takes a step; `logits` are those of the network for the pending token."""
        row, self.position = self.row, self.position + 1
        prompted = bool(self.forced)
        token = self.forced.pop(0) if prompted else self._draw(logits)
        self.transcript.append(token)
        if prompted:
            return (
                token,
                RowStatus.LENGTH if not self.forced and self.generated >= row.max_tokens else RowStatus.RUNNING,
            )
        self.generated += 1
        matched = False
        if row.stops is not None:
            entry = int(row.stops.table[self.stop_state, token])
            self.stop_state, matched = entry % MATCHED, entry >= MATCHED
        if token == row.end_id:
            return token, RowStatus.END_OF_SEQUENCE
        if matched and self.generated >= row.min_tokens:
            return token, RowStatus.STOP
        return token, RowStatus.LENGTH if self.generated >= row.max_tokens else RowStatus.RUNNING

    def _draw(self, logits) -> int:
        row, early = self.row, self.generated < self.row.min_tokens
        masked = {row.end_id} if row.end_id is not None and (early or row.ignore_eos) else set()
        if early and row.stops is not None:
            masked |= set(row.stops.token_ids)
        history = np.array(self.transcript[-law.MAX_REPETITION_WINDOW :])
        with np.errstate(over="ignore", invalid="ignore"):  # at temperatures near 0 the definition overflows fp32
            return law.draw(logits, row.sampling, position=self.position, history=history, masked=tuple(sorted(masked)))
