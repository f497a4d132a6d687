"""Judges the tunes that a folk model generates without a prompt.

Samples are drawn as a server would draw them; tune n of a sample has seed + n. Bars are judged by `gruve.tune`. Two
other programs judge the notation: verovio's log and, if it is installed, `abc2midi`.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gruve.errors import TuneError
from gruve.model.repository import Model
from gruve.model.sampling import SamplingParameters
from gruve.training.decoding import ROWS, decode_all, row_of
from gruve.tune.bars import segments, wrong_bars
from gruve.tune.draw import engraving_warnings
from gruve.tune.parse import parse_tune

ABC2MIDI = "abc2midi"
GRAM = 16
"""The length in tokens of the runs that are looked up in the corpus."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One generated tune. `ended` is false if the limit cut it off."""

    ids: tuple[int, ...]
    text: str
    ended: bool
    nats: tuple[float, ...] = ()
    """What each token cost after the start token, the end token included, if it was asked for."""


@dataclasses.dataclass(frozen=True, slots=True)
class TuneQuality:
    """Shares of `count` samples, 0 to 1, unless another unit is given."""

    count: int
    temperature: float
    seed: int
    ended: float
    """Samples that reached the end token within the limit."""
    parsed: float
    """Samples that `gruve.tune` reads without an error."""
    all_bars_right: float
    interior_bars_right: float
    """The share of correct bars, of those between two single bar lines in all tunes that parse."""
    abc2midi_clean: float | None
    """Samples without an error or warning of abc2midi; None if it is not installed."""
    verovio_clean: float
    """Samples for which verovio's log is empty."""
    clean: float
    """Samples that both verovio and abc2midi (if installed) accept."""
    distinct: float
    """Distinct texts divided by samples."""
    exact_copies: int
    """Samples that equal a tune of the corpus, token for token."""
    copied_runs: float
    """Runs of 16 tokens that also occur in the training part."""
    longest_copied_run: int
    """The length in tokens of the longest run that also occurs in the training part."""
    mean_tokens: float


def draw_samples(
    model: Model,
    count: int,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    max_tokens: int = 1_024,
    rows: int = ROWS,
    prompts: Sequence[Sequence[int]] = (),
    with_nats: bool = False,
) -> list[Sample]:
    """Draws `count` sequences from the zero state: the tokens that a server with its defaults generates on a CPU.

    Sequence n has the seed `seed` + n and begins with `prompts[n]`, if there are prompts. `max_tokens` includes the
    prompt. `with_nats` adds what each token cost. `rows` sequences are decoded side by side, which changes none.
    """
    begun = []
    for n in range(count):
        prompt = prompts[n][:max_tokens] if prompts else ()
        sampling = SamplingParameters(temperature=temperature, seed=seed + n)
        begun.append(row_of(model, prompt, max_tokens - len(prompt), sampling, 0 if with_nats else None))
    samples = []
    for decoded in decode_all(model, begun, side_by_side=rows):
        ended = decoded.ids[-1] == model.tokenizer.end_id
        body = tuple(decoded.ids[:-1] if ended else decoded.ids)
        samples.append(Sample(body, model.tokenizer.decode(body), ended, tuple(decoded.nats)))
    return samples


def judge(
    samples: Sequence[Sample],
    train: Iterable[Sequence[int]],
    others: Iterable[Sequence[int]],
    temperature: float,
    seed: int,
) -> TuneQuality:
    """Judges samples against their training corpus: tunes as ids, without start and end."""
    count = len(samples)
    parsed = right = interior = interior_right = 0
    for sample in samples:
        try:
            tune = parse_tune(as_abc(sample.text))
        except TuneError:
            continue
        parsed += 1
        right += not wrong_bars(tune)
        between = [part for part in segments(tune.events) if part.before == part.after == "|"]
        interior += len(between)
        interior_right += sum(part.ticks == tune.meter.ticks for part in between)
    texts = [as_abc(sample.text) for sample in samples]
    midi = abc2midi_accepts(texts)
    engraved = [not log for log in engraving_warnings(texts)]
    clean = [a and b for a, b in zip(midi or [True] * count, engraved, strict=True)]
    train_ids = [tuple(ids) for ids in train]
    corpus = {*train_ids, *(tuple(ids) for ids in others)}
    copied, longest = copied_runs(samples, train_ids)
    return TuneQuality(
        count=count,
        temperature=temperature,
        seed=seed,
        ended=sum(sample.ended for sample in samples) / count,
        parsed=parsed / count,
        all_bars_right=right / count,
        interior_bars_right=interior_right / max(interior, 1),
        abc2midi_clean=sum(midi) / count if midi is not None else None,
        verovio_clean=sum(engraved) / count,
        clean=sum(clean) / count,
        distinct=len({sample.ids for sample in samples}) / count,
        exact_copies=sum(sample.ids in corpus for sample in samples),
        copied_runs=copied,
        longest_copied_run=longest,
        mean_tokens=float(np.mean([len(sample.ids) for sample in samples])),
    )


def as_abc(text: str, number: int = 1) -> str:
    """A tune's text as an ABC file that any ABC program can read."""
    return f"X:{number}\nT:{number}\n{text.rstrip()}\n"


def abc2midi_accepts(texts: Sequence[str]) -> list[bool] | None:
    """Whether abc2midi reads each text without an error or warning; None if it is not installed."""
    program = shutil.which(ABC2MIDI)
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:

        def accepts(numbered: tuple[int, str]) -> bool:
            path = Path(folder) / f"{numbered[0]}.abc"
            path.write_text(numbered[1], encoding="utf-8")
            run = subprocess.run(  # noqa: S603 - a fixed program on a file of ours
                [program, str(path), "-o", str(path.with_suffix(".mid"))],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            said = (run.stdout + run.stderr).lower()
            return run.returncode == 0 and "error" not in said and "warning" not in said

        return list(pool.map(accepts, enumerate(texts)))


def copied_runs(samples: Sequence[Sample], train: Sequence[tuple[int, ...]]) -> tuple[float, int]:
    """(share of the samples' runs of GRAM tokens that the training part has, tokens of the longest such run)."""
    places: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for tune, ids in enumerate(train):
        for i in range(len(ids) - GRAM + 1):
            places.setdefault(ids[i : i + GRAM], []).append((tune, i))
    runs = copied = longest = 0
    for sample in samples:
        runs += max(len(sample.ids) - GRAM + 1, 0)
        for i in range(len(sample.ids) - GRAM + 1):
            found = places.get(sample.ids[i : i + GRAM], ())
            copied += bool(found)
            if found and len(sample.ids) - i > longest:
                longest = max(longest, *(_common(sample.ids, i, train[tune], at) for tune, at in found))
    return copied / max(runs, 1), longest


def _common(one: Sequence[int], i: int, other: Sequence[int], j: int) -> int:
    """The number of equal tokens of `one` from i and `other` from j."""
    length = 0
    while i + length < len(one) and j + length < len(other) and one[i + length] == other[j + length]:
        length += 1
    return length
