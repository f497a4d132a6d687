"""Measures a trained model and returns every figure of its card as plain JSON.

It takes the run's folder (model, checkpoint, loss curve), the config, and the corpus that the model was trained on.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from gruve.decode import Arithmetic
from gruve.errors import CorpusError, ModelBroken
from gruve.model.network import Network
from gruve.model.pointers import PointerConfig
from gruve.model.repository import WEIGHTS, Model
from gruve.training.checkpoint import Checkpoint, load_checkpoint
from gruve.training.config import TrainingConfig
from gruve.training.corpus import Corpus, TextCorpus, TuneCorpus, read_corpus, vocabulary_difference, with_pointers
from gruve.training.decoding import decoded_loss
from gruve.training.evaluate import PROTOCOLS, TextReport, TunesReport, carried_loss, evaluate_text, tunes_loss
from gruve.training.form_report import TuneParts, corpus_form, model_form
from gruve.training.quality import Sample, draw_samples, judge

Results = dict[str, Any]
TEXT_TEMPERATURES = (0.8, 1.0)
TEXT_SAMPLE_TOKENS = 500
TUNES_SHOWN = 3
INT8_PIECES = 16
"""The pieces of a text, decoded side by side, on which int8 is compared with float32."""


def measure(model: Model, config: TrainingConfig, corpus_path: Path, run: Path, *, samples: int = 1_000) -> Results:
    """Measures everything the card needs. `samples` is the number of tunes that are drawn and judged.

    Raises `CorpusError` if the corpus is not the run's, `ModelBroken` if the run has no checkpoint or has
    another config.
    """
    corpus = read_corpus(config, corpus_path)
    checkpoint = load_checkpoint(run)
    if checkpoint.corpus_sha256 != corpus.sha256:
        raise CorpusError(f"{corpus_path} has sha256 {corpus.sha256}; the run was made with {checkpoint.corpus_sha256}")
    if checkpoint.config_digest != config.digest():
        raise ModelBroken(f"{run} was trained with another config; give the one that it was trained with")
    if corpus.tokenizer != model.tokenizer:
        differs = vocabulary_difference(model.tokenizer, corpus.tokenizer)
        raise CorpusError(f"{corpus_path} is cut into other tokens than those of {model.name!r}: {differs}")
    results: Results = {
        "model": _sizes(model, run),
        "training": _training(config, checkpoint),
        "corpus": _parts(corpus),
    }
    unrounded = Network(model.config)
    unrounded.load_weights({name: checkpoint.tensors[f"average/{name}"] for name in model.config.shapes()})
    unrounded.eval()
    if isinstance(corpus, TextCorpus):
        ids = model.tokenizer.encode(corpus.validation)
        carried, *_ = reports = [evaluate_text(model, corpus.validation, protocol) for protocol in PROTOCOLS]
        results["losses"] = [_loss("validation", report) for report in reports]
        results["rounding"] = _rounding(carried_loss(unrounded, ids), carried.nats_per_token)
        T = len(ids) // INT8_PIECES
        pieces = [ids[at * T : (at + 1) * T] for at in range(INT8_PIECES)]
        where = f"the validation part in {INT8_PIECES} pieces, the state carried through each,"
        results["int8"] = _int8(model, pieces, where)
        results["samples"] = [_text_sample(model, temperature) for temperature in TEXT_TEMPERATURES]
        return results
    corpus = with_pointers(corpus, model.config)
    scores = {part: tunes_loss(model.network(), getattr(corpus, part)) for part in ("validation", "test")}
    results["losses"] = [_loss(part, score) for part, score in scores.items()]
    before = tunes_loss(unrounded, corpus.validation).nats_per_token
    results["rounding"] = _rounding(before, scores["validation"].nats_per_token)
    results["int8"] = _int8(model, [piece.ids[1:] for piece in corpus.test], "the test part")
    return results | _composed(model, corpus, samples)


def _int8(model: Model, sequences: Sequence[Sequence[int]], where: str) -> Results:
    """What int8, a server's arithmetic, makes of the loss; both losses are those of the decoding backend."""
    nats = {arithmetic: decoded_loss(model, sequences, arithmetic) for arithmetic in get_args(Arithmetic)}
    return {"measured_on": where} | {f"nats_{arithmetic}": value for arithmetic, value in nats.items()}


def _composed(model: Model, corpus: TuneCorpus, count: int) -> Results:
    """Quality and form of `count` free tunes at temperature 1, form at the default temperature, and some tunes."""
    drawn = draw_samples(model, count)
    parts = TuneParts(model.tokenizer.vocabulary, *(_bodies(corpus, p) for p in ("train", "validation", "test")))
    quality = judge(drawn, parts.train, [*parts.validation, *parts.test], 1.0, 0)
    form = [model_form(model, drawn, parts, 1.0)]
    temperature = model.config.default_temperature or 1.0
    if temperature != 1.0:
        drawn = draw_samples(model, count, temperature=temperature)
        form.append(model_form(model, drawn, parts, temperature))
    return {
        "quality": dataclasses.asdict(quality),
        "form": {"corpus": corpus_form(parts), "models": form},
        "samples": [_tune_sample(sample, seed, temperature) for seed, sample in enumerate(drawn[:TUNES_SHOWN])],
    }


def count_transcribers(folder: Path, names: Sequence[str]) -> list[tuple[str, int]]:
    """The number of `Z:` fields (transcriber) of the ABC books under `folder` that name each of `names`, largest first.

    A field names somebody if it has the last word of the name, in upper or lower case. Raises `CorpusError` for a name
    that no field has.
    """
    text = "\n".join(path.read_bytes().decode("utf-8", errors="replace") for path in sorted(folder.rglob("*.abc")))
    fields = [field.lower() for field in re.findall(r"^Z:([^\r\n]*)", text, re.MULTILINE)]
    counted = [(name, sum(name.split()[-1].lower() in field for field in fields)) for name in names]
    for name, count in counted:
        if not count:
            raise CorpusError(f"no Z: field under {folder} names {name!r}")
    return sorted(counted, key=lambda entry: (-entry[1], entry[0]))


def _sizes(model: Model, run: Path) -> Results:
    config = model.config
    return {
        "name": model.name,
        "digest": model.digest,
        "cell": config.cell,
        "reset": config.reset,
        "parameters": config.parameter_count(),
        "vocabulary_size": config.vocabulary_size,
        "embedding_size": config.embedding_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "pointers": None if config.pointers is None else _pointers(config.pointers),
        "default_temperature": config.default_temperature,
        "precision": config.precision,
        "state_bytes": config.state_bytes,
        "weight_bytes": (run / WEIGHTS).stat().st_size,
    }


def _pointers(pointers: PointerConfig) -> Results:
    return {
        name: getattr(pointers, name) for name in ("bars", "followers", "transposed", "matches", "places", "counts")
    }


def _training(config: TrainingConfig, checkpoint: Checkpoint) -> Results:
    return {
        "steps": checkpoint.step,
        "tokens": checkpoint.tokens,
        "seconds": round(checkpoint.seconds),
        "threads": config.threads,
        "arithmetic": config.arithmetic,
        "seed": config.seed,
        "initial_digest": config.initial_digest,
        "rows": config.batches.rows,
        "learning_rate": config.schedule.learning_rate,
        "regularisation": dataclasses.asdict(config.regularisation),
        "objective": dataclasses.asdict(config.objective),
        "form": None if config.form is None else dataclasses.asdict(config.form),
    }


def _parts(corpus: Corpus) -> Results:
    if isinstance(corpus, TextCorpus):
        sizes = {"train": len(corpus.train), "validation": len(corpus.validation)}
        return {"sha256": corpus.sha256, "unit": "characters", "parts": sizes}
    sizes = {part: len(getattr(corpus, part)) for part in ("train", "validation", "test")}
    tokens = {part: sum(len(p.ids) - 1 for p in getattr(corpus, part)) for part in sizes}
    return {"sha256": corpus.sha256, "unit": "tunes", "parts": sizes, "tokens": tokens}


def _loss(part: str, report: TextReport | TunesReport) -> Results:
    loss = {"part": part, "scored": report.scored, "nats": report.nats_per_token, "bits": report.bits_per_token}
    if isinstance(report, TextReport):
        return loss | {"protocol": report.protocol}
    return loss | {"protocol": "whole tunes", "tunes": report.tunes, "nats_per_tune": report.nats_per_tune}


def _rounding(before: float, after: float) -> Results:
    return {"nats_before": before, "nats_after": after, "relative": abs(after - before) / before}


def _text_sample(model: Model, temperature: float) -> Results:
    (sample,) = draw_samples(model, 1, seed=1, temperature=temperature, max_tokens=TEXT_SAMPLE_TOKENS)
    return {"temperature": temperature, "seed": 1, "text": sample.text}


def _tune_sample(sample: Sample, seed: int, temperature: float) -> Results:
    return {"temperature": temperature, "seed": seed, "text": sample.text}


def _bodies(corpus: TuneCorpus, part: str) -> list[tuple[int, ...]]:
    return [piece.ids[1:-1] for piece in getattr(corpus, part)]
