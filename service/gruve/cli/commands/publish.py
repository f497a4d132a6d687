"""`gruve publish`: a finished run into the repository of models, measured, with its card."""

from __future__ import annotations

import argparse
from pathlib import Path

from gruve.cli.exit_codes import USAGE
from gruve.cli.flags.parser import Parser, add_command, add_flag, bounded, check_model_folder
from gruve.cli.output.terminal import Failure, say_note

DESCRIPTION = """Measure a finished run and put it into a repository of models with its card.

The text of the card comes from a TOML file. Its figures are measured now: the losses on the held-out parts of the
corpus and, for a model of tunes, how many of --samples generated tunes are right. The config is copied into the folder
as training.toml."""
EXAMPLES = """\
example:
  gruve publish --config models/folk/training.toml --card models/folk/card.toml --corpus abc \\
    --run runs/folk --out models/folk
"""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "publish", DESCRIPTION, EXAMPLES, run, extra="train")
    for name, what in (
        ("config", "the run's config, in TOML"),
        ("card", "the text of the card, in TOML"),
        ("corpus", "the run's corpus: a text, or a folder of ABC books"),
        ("run", "the run's folder"),
        ("out", "the folder to write; its name becomes the model's name"),
    ):
        metavar = "DIR" if name in ("run", "out") else "PATH"
        parser.add_argument(f"--{name}", type=Path, required=True, metavar=metavar, help=what, dest=f"{name}_path")
    add_flag(
        parser,
        "--samples",
        bounded(int, 1, None),
        1000,
        "with a model of tunes, number of tunes to generate and judge",
        metavar="N",
    )


def run(args: argparse.Namespace) -> int:
    """Measures and writes."""
    from gruve.training.card import read_card_text
    from gruve.training.config import read_config
    from gruve.training.publish import publish

    check_model_folder("--out", args.out_path)
    if args.out_path.resolve() == args.run_path.resolve():
        raise Failure(f"--out is {str(args.out_path)!r}, the folder of --run; give another", USAGE)
    config, card = read_config(args.config_path), read_card_text(args.card_path)
    training = args.config_path.read_bytes()
    model = publish(config, card, args.corpus_path, args.run_path, args.out_path, samples=args.samples)
    (args.out_path / "training.toml").write_bytes(training)
    say_note(f"{model.name} is in {args.out_path}, digest {model.digest}")
    return 0
