"""Training configurations: every mistake is refused with the key and the bound."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gruve.errors import InvalidField
from gruve.training.config import Pointers, Teachers, TrainingConfig, read_config
from gruve.training.trainer import dropout_at, learning_rate

MODELS = Path(__file__).parents[2] / "models"
GOOD = """
name = "x"
kind = "characters"
[architecture]
cell = "lstm"
embedding_size = 8
hidden_size = 16
num_layers = 1
[schedule]
steps = 100
warmup_steps = 10
learning_rate = 1e-2
final_learning_rate = 1e-4
[batches]
rows = 4
[regularisation]
dropout_head = 0.4
final_share = 0.5
"""


DIGEST = "9d40ec3850bbaee3000ebfe31edb4e9c6b9f0aa542853804e571e2e8d18824e4"
"""Of GOOD for tunes, with both weights of the objective, as it was before they were renamed."""


def config(tmp_path: Path, text: str = GOOD) -> TrainingConfig:
    path = tmp_path / "training.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


@pytest.mark.parametrize("name", ["shakespeare", "folk", "tiny"])
def test_the_configs_of_the_shipped_models_are_readable_and_name_their_corpus(name: str) -> None:
    found = read_config(MODELS / name / "training.toml")
    assert found.name == name
    assert len(found.corpus_sha256) == 64


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("rows = 4", "rows = 0", "batches.rows"),
        ("rows = 4", "rows = true", "batches.rows"),
        ("rows = 4", "row = 4", "batches.row"),
        ("steps = 100", "", "schedule.steps"),
        ("steps = 100", "steps = 5", "schedule.warmup_steps"),
        ("learning_rate = 1e-2", "learning_rate = 0", "schedule.learning_rate"),
        ("dropout_head = 0.4", "dropout_head = 1.0", "regularisation.dropout_head"),
        ('kind = "characters"', 'kind = "words"', "kind"),
        ('kind = "characters"', 'kind = "characters"\narithmetic = "bfloat16"', "arithmetic"),
        ('name = "x"', "name = 1", "name"),
        ("hidden_size = 16", "hidden_size = 4", "architecture"),
        ('cell = "lstm"', 'cell = "gru"', "architecture"),
        ("[schedule]", "[pointers]\nfollowers = [33]\n[schedule]", "pointers"),
        ("[schedule]", "[pointers]\nfollowers = [1.0]\n[schedule]", "pointers.followers"),
        ("[schedule]", "[form]\n[schedule]", "form"),
        ("[schedule]", "[objective]\nauxiliary_weight = 0.3\n[schedule]", "objective.auxiliary_weight"),
        ("[schedule]", "[objective]\ntaboo_weight = 5.0\n[schedule]", "objective.taboo_weight"),
        ("[schedule]", "[objective]\nunlikelihood_weight = 5.0\n[schedule]", "objective.unlikelihood_weight"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, names: str) -> None:
    with pytest.raises(InvalidField) as refused:
        config(tmp_path, GOOD.replace(old, new, 1))
    assert refused.value.field == f"{tmp_path / 'training.toml'}: {names}"


def test_a_file_that_is_no_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match=r"none\.toml: cannot be read: No such file"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(InvalidField, match=r"training\.toml is not TOML: Unterminated string"):
        config(tmp_path, 'name = "x')


def test_the_learning_rate_warms_up_and_ends_at_its_final_value(tmp_path: Path) -> None:
    rates = [learning_rate(config(tmp_path), step) for step in range(101)]
    assert rates[:10] == pytest.approx([1e-3 * n for n in range(1, 11)])
    assert rates[10] == max(rates)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(1e-4)


def test_dropout_falls_to_its_final_share_over_the_second_half(tmp_path: Path) -> None:
    heads = [dropout_at(config(tmp_path), step)[0].head for step in (0, 50, 75, 100)]
    assert heads == pytest.approx([0.4, 0.4, 0.3, 0.2])


def test_every_field_is_part_of_the_digest(tmp_path: Path) -> None:
    one = config(tmp_path)
    assert one.digest() == config(tmp_path).digest()
    assert one.digest() != dataclasses.replace(one, seed=2).digest()
    assert one.digest() != dataclasses.replace(one, pointers=Pointers([], [1])).digest()
    assert one.digest() != dataclasses.replace(one, initial_digest="0").digest()
    assert one.digest() != dataclasses.replace(one, teachers=Teachers(["0"])).digest()
    assert one.digest() == dataclasses.replace(one, default_temperature=0.8).digest()  # it changes no weight


def test_a_config_keeps_the_digest_it_had_before_keys_were_renamed_and_added(tmp_path: Path) -> None:
    weights = "[objective]\nauxiliary_weight = 0.3\nunlikelihood_weight = 5.0\n"
    assert config(tmp_path, GOOD.replace("characters", "abc") + weights).digest() == DIGEST


def test_the_default_temperature_is_bounded(tmp_path: Path) -> None:
    assert config(tmp_path, "default_temperature = 1\n" + GOOD).default_temperature == 1
    for wrong, why in (("0.01", "allowed: 0.05 to 2.0"), ("true", "must be a number")):
        with pytest.raises(InvalidField, match=why):
            config(tmp_path, f"default_temperature = {wrong}\n" + GOOD)
