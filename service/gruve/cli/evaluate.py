"""`gruve evaluate`: how well a model predicts a text, or tunes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.flags import Parser, add_command, add_flag
from gruve.cli.terminal import Failure, print_table

if TYPE_CHECKING:
    from gruve.model.repository import Model

DESCRIPTION = """Measure how well a model predicts a corpus, in nats and bits per token.

A text is measured in two ways: `carried` takes the state from the first character to the last; `cold` begins anew every
256 characters, as the models of fixed context do that it is compared with. Tunes are measured whole, each from nothing,
their end included. No server is needed."""
EXAMPLES = """\
examples:
  gruve evaluate models/shakespeare input.txt                   the last tenth, which training has not seen
  gruve evaluate models/shakespeare other.txt --part all
  gruve evaluate models/folk abc --part test                    a folder of ABC books
"""
PARTS = ("validation", "test", "train", "all")
COLUMNS = ("part", "protocol", "tokens", "nats per token", "bits per token")


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "evaluate", DESCRIPTION, EXAMPLES, run)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="the model's folder")
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="a text in UTF-8, or a folder of ABC books")
    add_flag(
        parser, "--part", str, "validation", "which part of the corpus; only tunes have a test part", choices=PARTS
    )


def run(args: argparse.Namespace) -> int:
    """Prints a row for each protocol."""
    from gruve.model.repository import load

    if not args.corpus.exists():
        raise Failure(f"there is no corpus at {str(args.corpus)!r}")
    model = load(args.model)
    rows = _tunes(model, args) if args.corpus.is_dir() else _text(model, args)
    print_table(COLUMNS, rows)
    return 0


def _text(model: Model, args: argparse.Namespace) -> list[tuple[str, ...]]:
    from gruve.training.corpus import read_text
    from gruve.training.evaluate import evaluate_text

    corpus = read_text(args.corpus)
    parts = {"validation": corpus.validation, "train": corpus.train, "all": corpus.train + corpus.validation}
    if args.part not in parts:
        raise Failure(f"--part is {args.part!r}; a text has the parts {', '.join(parts)}", exit_code=2)
    reports = [evaluate_text(model, parts[args.part], protocol) for protocol in ("carried", "cold")]
    return [
        (args.part, report.protocol, str(report.scored), f"{report.nats_per_token:.4f}", f"{report.bits_per_token:.4f}")
        for report in reports
    ]


def _tunes(model: Model, args: argparse.Namespace) -> list[tuple[str, ...]]:
    from gruve.training.evaluate import evaluate_tunes
    from gruve.tune.books import read_books
    from gruve.tune.tokens import join

    tunes = [join(tune.tokens) for tune in read_books(args.corpus).kept if args.part in ("all", tune.part)]
    if not tunes:
        raise Failure(f"there is no tune to measure in {str(args.corpus)!r}")
    report = evaluate_tunes(model, tunes)
    nats, bits = f"{report.nats_per_token:.4f}", f"{report.bits_per_token:.4f}"
    return [(args.part, f"{report.tunes} whole tunes", str(report.scored), nats, bits)]
