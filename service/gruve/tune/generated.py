"""Reads the text that a model generated as a tune, and transposes it to the key asked for."""

from __future__ import annotations

from dataclasses import replace

from gruve.errors import TuneError, UnknownCharacter
from gruve.tune.keys import KeyRequest, key_words, within_seven_signs
from gruve.tune.parse import parse_tune
from gruve.tune.recover import recovered
from gruve.tune.score import Tune
from gruve.tune.tokens import split
from gruve.tune.transpose import to_key


def read_generated(text: str) -> tuple[Tune, str]:
    """The tune of generated text, and why it had to be repaired, or an empty text; lines and columns are the text's.

    A tune that breaks the rules of notation, as a model's may, and one that is not finished are read as far as they
    make sense. Raises TuneError if the text has no note.
    """
    try:
        return parse_tune(text), ""
    except TuneError as error:
        wrong = error
    try:
        tune = recovered(split(text))
    except UnknownCharacter:
        tune = None
    if tune is None or not tune.events:
        raise TuneError(f"the text is not a tune in ABC notation: {wrong}")
    return tune, f"the model's text was repaired: {wrong}"


def on_root(tune: Tune, request: KeyRequest) -> tuple[Tune, str]:
    """The tune on the root asked for, in its own mode; and a text with its key and with what could not be done."""
    wanted = replace(request.key, mode=tune.key.mode)
    target = within_seven_signs(wanted)
    told = f"the tune is in {key_words(target)}"
    if target != wanted:
        told += f"; {key_words(wanted)} would need more than seven sharps or flats"
    if request.mode and request.mode != tune.key.mode:
        told += f"; its mode is not the one asked for, {key_words(request.key)}"
    return to_key(tune, target), told
