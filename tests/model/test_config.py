"""A model's configuration and its text, `config.json`."""

from __future__ import annotations

import dataclasses

import pytest

from gruve.model.config import ModelConfig
from nets import CELL_NAMES, CELLS, config_of, pointers_of


@pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)
@pytest.mark.parametrize("pointers", [None, pointers_of(13)], ids=["plain", "pointers"])
def test_a_config_is_its_own_text(cell, pointers):
    config = dataclasses.replace(config_of(cell, tied=True, pointers=pointers), default_temperature=0.8)
    assert ModelConfig.from_json(config.to_json()) == config


def test_a_model_without_pointers_is_written_as_before():
    text = config_of(CELLS[0]).to_json()
    assert "pointers" not in text
    assert "default_temperature" not in text
    assert not any("pointers" in name for name in config_of(CELLS[0]).shapes())
