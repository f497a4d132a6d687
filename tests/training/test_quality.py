"""Samples are judged correctly, and a card prints the measured figures."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from gruve.errors import CorpusError, InvalidField, ModelBroken
from gruve.model.repository import load
from gruve.training.card import CardText, read_card_text, render_card
from gruve.training.config import Architecture, Batches, Schedule, TrainingConfig, read_config
from gruve.training.publish import draw_tunes, publish
from gruve.training.quality import GRAM, Sample, abc2midi_accepts, as_abc, judge
from gruve.training.report import count_transcribers
from gruve.training.trainer import model_config, train

MODELS = Path(__file__).parents[2] / "models"
BENCHMARKS = MODELS.parent / "benchmarks" / "README.md"
RIGHT = "L:1/8\nM:2/4\nK:Cmaj\n|: CDEF| G2G2| FEDC| C4:|\n"
WRONG = RIGHT.replace("FEDC", "FEDCB")
UNREADABLE = RIGHT.replace("FEDC", "(3(3FE")
TEXT = CardText(
    title="A model",
    summary="Says little.",
    license="cc0-1.0",
    license_note="Do as you like.",
    language=["en"],
    tags=["gru"],
    datasets=["cats"],
    corpus_path="corpus.txt",
    data="Cats.",
    limits=["Knows only cats."],
)


def sample(text: str, ids: tuple[int, ...]) -> Sample:
    return Sample(ids, text, ended=True)


def test_shares_count_what_the_judges_said() -> None:
    samples = [sample(RIGHT, (5, 6)), sample(RIGHT, (5, 7)), sample(WRONG, (5, 8)), sample(UNREADABLE, (5, 9))]
    quality = judge(samples, train=[(5, 6)], others=[(7, 7)], temperature=1.0, seed=0)
    assert (quality.parsed, quality.all_bars_right) == (0.75, 0.5)
    assert quality.interior_bars_right == pytest.approx(5 / 6)
    assert (quality.exact_copies, quality.distinct, quality.ended) == (1, 1.0, 1.0)


def test_a_run_of_the_corpus_is_found_to_its_full_length() -> None:
    tune = tuple(range(2, 60))
    copied = sample(RIGHT, (*range(70, 80), *tune[10:35], 90))
    fresh = sample(RIGHT, tuple(range(100, 140)))
    quality = judge([copied, fresh], train=[tune], others=[], temperature=1.0, seed=0)
    assert quality.longest_copied_run == 25
    runs = (36 - GRAM + 1) + (40 - GRAM + 1)
    assert quality.copied_runs == pytest.approx((25 - GRAM + 1) / runs)


@pytest.mark.skipif(shutil.which("abc2midi") is None, reason="abc2midi is not installed")
def test_abc2midi_objects_to_a_wrong_bar() -> None:
    assert abc2midi_accepts([as_abc(RIGHT), as_abc(WRONG)]) == [True, False]


def test_without_abc2midi_its_judgement_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert abc2midi_accepts([as_abc(RIGHT)]) is None


def test_transcribers_are_counted_by_their_last_name(tmp_path: Path) -> None:
    (tmp_path / "a.abc").write_bytes(b"X:1\nZ:Typed by ANN WHITE, 1999\nX:2\nZ: ann white\nX:3\r\nZ:Bo Gray <x@y>\r\n")
    assert count_transcribers(tmp_path, ["Bo Gray", "Ann White"]) == [("Ann White", 2), ("Bo Gray", 1)]
    with pytest.raises(CorpusError, match="names 'Cy Black'"):
        count_transcribers(tmp_path, ["Cy Black"])


def test_a_text_model_is_published_with_its_figures(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cat sat on the mat and looked at the rat.\n" * 90, encoding="utf-8")
    config = TrainingConfig(
        name="cat",
        kind="characters",
        architecture=Architecture("gru", embedding_size=4, hidden_size=8, num_layers=1, reset="after"),
        schedule=Schedule(8, 1e-2, 1e-3, warmup_steps=1, validate_every_steps=4),
        batches=Batches(rows=4, steps=16),
    )
    trained = train(config, corpus, tmp_path / "runs" / "cat")
    config = dataclasses.replace(config, default_temperature=0.7)  # chosen after the run
    text = dataclasses.replace(TEXT, usage="Say meow.")
    model = publish(config, text, corpus, tmp_path / "runs" / "cat", tmp_path / "models" / "tom")
    card = (tmp_path / "models" / "tom" / "README.md").read_text(encoding="utf-8")
    assert "- name: tom\n" in card
    assert "gruve train --config models/tom/training.toml --corpus corpus.txt --out runs/tom\n" in card
    assert (model.license, model.description) == ("cc0-1.0", "Says little.")
    assert dataclasses.replace(model.config, default_temperature=None) == trained.config
    assert all(torch.equal(weight, trained.weights[name]) for name, weight in model.weights.items())
    assert "| default temperature | 0.7 (used by the commands; the API's default is 1.0) |" in card
    assert "## Use\n\nSay meow." in card
    assert model.digest in card
    assert re.search(r"\| validation \| carried \| 414 \| \d\.\d{4} \|", card)
    assert "8 updates" in card
    assert re.search(r"int8, which changes the loss of the validation part .* by [+-]0\.\d{3}%", card)


def test_a_run_that_has_not_ended_is_not_published(tmp_path: Path) -> None:
    config = read_config(MODELS / "tiny" / "training.toml")
    with pytest.raises(ModelBroken, match=r"there is no finished run in .*: no file config\.json"):
        publish(config, TEXT, tmp_path / "corpus.txt", tmp_path / "run", tmp_path / "models" / "tom")


def test_a_sample_that_is_no_tune_has_no_drawing_and_the_next_one_has(tmp_path: Path) -> None:
    samples = [{"seed": seed, "text": text, "temperature": 1.0} for seed, text in enumerate((UNREADABLE, RIGHT))]
    results = json.loads((MODELS / "tiny" / "results.json").read_text("utf-8")) | {"samples": samples}
    drawings = draw_tunes(results, tmp_path)
    assert drawings == [path.name for path in tmp_path.iterdir()] == ["sample-1.svg"]
    card = render_card(TEXT, results, drawings)
    assert re.findall(r"!\[The tune of seed (.*) in notation\]\((.*)\)", card) == [("1", "sample-1.svg")]


def test_a_card_names_the_pointers_of_each_kind() -> None:
    results = json.loads((MODELS / "tiny" / "results.json").read_text("utf-8"))
    pointers = {"bars": [1, 2], "followers": [], "transposed": [4], "matches": 0, "places": 0, "counts": 0}
    card = render_card(TEXT, results | {"model": results["model"] | {"pointers": pointers}}, [])
    assert "| pointers | the same place 1 and 2 bars ago; the bar 4 bars ago, moved along the scale |" in card


def test_a_card_leaves_out_what_its_text_has_none_of() -> None:
    results = json.loads((MODELS / "tiny" / "results.json").read_text("utf-8"))
    card = render_card(dataclasses.replace(TEXT, language=[], tags=[], limits=[]), results, [])
    assert card.startswith("---\nlicense: cc0-1.0\nlibrary_name: gruve\n")
    assert "tags:" not in card
    assert "## Limits" not in card


@pytest.mark.parametrize("name", ["shakespeare", "folk", "tiny"])
def test_a_shipped_model_loads_and_is_the_one_its_config_describes(name: str) -> None:
    model = load(MODELS / name)
    described = model_config(read_config(MODELS / name / "training.toml"), model.tokenizer)
    assert dataclasses.replace(model.config, files=()) == described
    size = sum(path.stat().st_size for path in (MODELS / name).iterdir())
    assert size < (300_000 if name == "tiny" else 30_000_000)


@pytest.mark.parametrize("name", ["shakespeare", "folk", "tiny"])
def test_a_shipped_card_is_what_its_results_render_to(name: str) -> None:
    folder = MODELS / name
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    drawings = sorted(path.name for path in folder.glob("sample-*.svg"))
    assert render_card(read_card_text(folder / "card.toml"), results, drawings) == (folder / "README.md").read_text(
        "utf-8"
    )
    assert results["model"]["digest"] == load(folder).digest


@pytest.mark.parametrize("name", ["shakespeare", "folk", "tiny"])
def test_a_shipped_card_has_the_int8_loss_of_the_benchmarks(name: str) -> None:
    int8 = json.loads((MODELS / name / "results.json").read_text(encoding="utf-8"))["int8"]
    before, after = int8["nats_float32"], int8["nats_int8"]
    assert abs(after / before - 1) < 5e-4
    figures = f"| {before:.6f} | {after:.6f} | {100 * (after / before - 1):+.3f}% |"
    (row,) = re.findall(rf"^ *\| {name} \| .*$", BENCHMARKS.read_text("utf-8"), re.MULTILINE)
    assert row.endswith(figures)
    assert f"from {before:.6f} to {after:.6f}" in (MODELS / name / "README.md").read_text("utf-8")


def test_a_card_text_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text('titel = "x"\n', encoding="utf-8")
    with pytest.raises(InvalidField, match=r"card\.toml: titel is not known"):
        read_card_text(tmp_path / "card.toml")


def test_a_card_text_with_a_value_that_cannot_be_printed_is_refused(tmp_path: Path) -> None:
    text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in dataclasses.asdict(TEXT).items())
    for wrong, why in (("datasets = []", "at least one"), ('datasets = "cats"', "must be a list of strings")):
        (tmp_path / "card.toml").write_text(text.replace('datasets = ["cats"]', wrong), encoding="utf-8")
        with pytest.raises(InvalidField, match=why):
            read_card_text(tmp_path / "card.toml")
