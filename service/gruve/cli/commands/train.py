"""`gruve train`: a corpus and a config in, a model out, with the progress shown."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.flags.parser import Parser, add_command, check_model_folder
from gruve.cli.interrupts import deferred_interrupt
from gruve.cli.output.progress_bar import progress_bar
from gruve.cli.output.terminal import say_note

if TYPE_CHECKING:
    from gruve.training.trainer import Progress

DESCRIPTION = """Train a model on a corpus.

It writes the model, its losses (as CSV and as a curve) and checkpoints into the folder of --out. Ctrl-C finishes the
running update and writes a checkpoint, from which --resume continues; a second Ctrl-C stops at once. The same config,
corpus and machine give the same model, interrupted or not."""
EXAMPLES = """\
examples:
  gruve train --config models/tiny/training.toml --corpus input.txt --out runs/tiny
  gruve train --config models/tiny/training.toml --corpus input.txt --out runs/tiny --resume

A run's folder can be served as it is: `gruve serve --models runs`. `gruve evaluate` measures it, `gruve publish` writes
its card. models/*/training.toml are examples of configs, service/gruve/training/config.py says what each key means.
"""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "train", DESCRIPTION, EXAMPLES, run, extra="train")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="what to train and how, in TOML")
    parser.add_argument(
        "--corpus", type=Path, required=True, metavar="PATH", help="a text in UTF-8, or a folder of ABC books"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the run's folder; its name becomes the model's name"
    )
    parser.add_argument(
        "--initial",
        type=Path,
        metavar="DIR",
        help="the folder of the model to begin with, if the config has initial_digest",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="the folder of a teacher; give one for each digest of the config's [teachers], in that order",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the folder's last checkpoint")


def run(args: argparse.Namespace) -> int:
    """Trains, shows how far it is."""
    from gruve.training.checkpoint import FILE
    from gruve.training.config import read_config
    from gruve.training.trainer import train

    check_model_folder("--out", args.out)
    config = read_config(args.config)
    with progress_bar() if sys.stderr.isatty() else nullcontext(_say_validation) as show:
        try:
            model = train(
                config,
                args.corpus,
                args.out,
                resume=args.resume,
                initial=args.initial,
                teachers=args.teacher,
                note=say_note,
                progress=show,
                deferring=deferred_interrupt(),
            )
        except KeyboardInterrupt:
            kept = f"--resume continues from the checkpoint in {args.out}"
            say_note(
                f"interrupted; {kept if (args.out / FILE).exists() else 'before the first update: nothing is kept'}"
            )
            raise
    say_note(f"{model.name}: {model.config.parameter_count():,} parameters in {args.out}")
    return 0


def _say_validation(progress: Progress) -> None:
    if progress.validation_loss is not None:
        say_note(
            f"step {progress.step} of {progress.steps}: {progress.tokens_per_second:,.0f} tokens/s, "
            f"loss {progress.train_loss:.4f}, validation {progress.validation_loss:.4f} nats per token"
        )
