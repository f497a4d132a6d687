"""Parses one ABC tune into its normal form, which all other modules use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from gruve.tune.raw import Findings, RawEvent, RawTune
from gruve.tune.read import read_any_tune, read_tune
from gruve.tune.repeats import fold_repeats
from gruve.tune.score import Event, Mode, Tune
from gruve.tune.written_out import written_out

COMMON_MODE: Final[dict[Mode, Mode]] = {"lyd": "maj", "phr": "min", "loc": "min"}
"""The rare modes -> the common mode with the same third, whose key such a tune takes; its notes stay."""


def parse_tune(text: str) -> Tune:
    """One ABC tune in normal form, in its own key; raises TuneError if the text is not a tune.

    Strict: meant for corpora and for the text of a model.
    """
    raw = read_tune(text)
    return _tune(raw, fold_repeats(raw.events))


@dataclass(frozen=True, slots=True)
class AnyTune:
    """A tune that was read tolerantly, and its remaining header fields as names and values."""

    tune: Tune
    fields: tuple[tuple[str, str], ...]


def parse_any_tune(text: str, findings: Findings, *, open_end: bool = False) -> AnyTune:
    """Any ABC tune in normal form, read tolerantly; `findings` receives every correction and everything left out.

    With `open_end` the text is a beginning: it may end anywhere and may have no note. Raises TuneError if the text is
    not a tune.
    """
    raw = read_any_tune(text, findings, open_end=open_end)
    events: list[RawEvent] = written_out(raw.events, raw.order, findings, open_end=open_end)
    return AnyTune(_tune(raw, fold_repeats(events, open_end=open_end)), raw.fields)


def _tune(raw: RawTune, events: tuple[Event, ...]) -> Tune:
    key = replace(raw.key, mode=COMMON_MODE.get(raw.key.mode, raw.key.mode))
    return Tune(raw.meter, key, events, raw.title, raw.rhythm, raw.tempo, raw.free_meter)
