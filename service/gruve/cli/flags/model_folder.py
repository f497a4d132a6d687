"""The flag `--models`, and the model that comes with gruve for where there is no folder of models."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from gruve.cli.flags.parser import add_flag
from gruve.cli.output.terminal import Failure

USUAL: Final = Path("models")
BUILTIN: Final = Path(__file__).parents[2] / "builtin_models"
"""In an installation a folder of the package; in a clone a link to models/tiny."""
BUILTIN_NAME: Final = "tiny"


def add_models(parser: argparse._ActionsContainer) -> None:
    """Declares the flag."""
    absent = f"default {USUAL}, or without such a folder the model {BUILTIN_NAME!r} that comes with gruve"
    about = f"the folder of models, or of one model; {absent}"
    add_flag(parser, "--models", Path, None, about, variable="GRUVE_MODELS", metavar="DIR")


def models_folder(given: Path | None) -> Path:
    """The folder of models to use. Raises `Failure` if one was given that is not there."""
    if given is None:
        return USUAL if USUAL.is_dir() else BUILTIN
    if not given.is_dir():
        raise Failure(
            f"--models is {str(given)!r}; there is no such folder. Without --models, the model {BUILTIN_NAME!r} that "
            f"comes with gruve is served where there is no folder {str(USUAL)!r}"
        )
    return given
