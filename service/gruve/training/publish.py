"""Publishes a finished run as an entry of the model repository: model, card, loss curve, and results."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from gruve.errors import ModelBroken, TuneError
from gruve.model.repository import CARD, CONFIG, TOKENIZER, WEIGHTS, Model, load, load_given, save
from gruve.training.card import CardText, drawing_name, render_card
from gruve.training.config import TrainingConfig
from gruve.training.loss_curve import CSV_FILE, PNG_FILE
from gruve.training.quality import as_abc
from gruve.training.report import Results, count_transcribers, measure
from gruve.tune.draw import draw
from gruve.tune.parse import parse_tune
from gruve.tune.write import write_tune

RESULTS = "results.json"
MAX_ROUNDING_CHANGE = 1e-4
"""The bound on the relative change of the first loss by rounding the weights, exclusive."""


def publish(
    config: TrainingConfig, text: CardText, corpus_path: Path, run: Path, folder: Path, *, samples: int = 1_000
) -> Model:
    """Measures the model in `run`, writes it to `folder` with its card, and returns it as loaded from there.

    The name of `folder` becomes the model's name, also in the card. Raises `ModelBroken` if `run` holds no finished
    run, or if rounding the weights changed the loss too much, and what `measure` raises.
    """
    if not (run / CONFIG).exists():
        raise ModelBroken(f"there is no finished run in {run}: no file {CONFIG}, which `gruve train` writes at its end")
    model = with_default_temperature(load_given(run), run, config.default_temperature)
    model = dataclasses.replace(model, name=folder.name)
    results = measure(model, config, corpus_path, run, samples=samples)
    change = results["rounding"]["relative"]
    if change >= MAX_ROUNDING_CHANGE:
        raise ModelBroken(
            f"rounding to {model.config.precision} changes the loss by {change:.4%}; allowed: less than "
            f"{MAX_ROUNDING_CHANGE:.2%}. Train with architecture.precision = 'float32'"
        )
    if text.transcribers:
        results["transcribers"] = count_transcribers(corpus_path, text.transcribers)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TOKENIZER, WEIGHTS, CONFIG, CSV_FILE, PNG_FILE):
        shutil.copyfile(run / name, folder / name)
    (folder / RESULTS).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    drawings = draw_tunes(results, folder) if config.kind == "abc" else []
    (folder / CARD).write_text(render_card(text, results, drawings), encoding="utf-8")
    return load(folder)


def with_default_temperature(model: Model, folder: Path, temperature: float | None) -> Model:
    """The model in `folder` with another default temperature, which is written there if it differs."""
    if model.config.default_temperature == temperature:
        return model
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.exists() else None
    changed = dataclasses.replace(model.config, default_temperature=temperature)
    return save(folder, changed, model.tokenizer, model.weights, text)


def draw_tunes(results: Results, folder: Path) -> list[str]:
    """Draws the results' samples; returns the file names of the drawings. A sample that is no tune has none."""
    drawings = []
    for sample in results["samples"]:
        try:
            abc = write_tune(parse_tune(as_abc(sample["text"])), title=f"{results['model']['name']} {sample['seed']}")
            svg = draw(abc).svg
        except TuneError:
            continue
        name = drawing_name(sample["seed"])
        (folder / name).write_text(svg, encoding="utf-8")
        drawings.append(name)
    return drawings
