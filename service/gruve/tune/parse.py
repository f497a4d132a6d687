"""Parses one ABC tune into its normal form, which everything else works on."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gruve.tune.read import read_tune
from gruve.tune.repeats import fold_repeats
from gruve.tune.score import Mode, Tune

COMMON_MODE: Final[dict[Mode, Mode]] = {"lyd": "maj", "phr": "min", "loc": "min"}
"""The rare modes -> the common mode with the same third, whose key such a tune takes; its notes stay."""


def parse_tune(text: str) -> Tune:
    """One ABC tune in normal form, in its own key; raises TuneError where there is none."""
    raw = read_tune(text)
    key = replace(raw.key, mode=COMMON_MODE.get(raw.key.mode, raw.key.mode))
    return Tune(raw.meter, key, fold_repeats(raw.events), raw.title, raw.source, raw.rhythm, raw.tempo)
