"""`gruve models`: what a server serves."""

from __future__ import annotations

import argparse

from gruve.cli.calls import connected
from gruve.cli.flags import Parser, add_address, add_command
from gruve.cli.terminal import print_table

DESCRIPTION = """List the models of a server.

A table on a terminal; elsewhere tabs between columns and a line for each model, broken ones with their reason."""
EXAMPLES = """\
examples:
  gruve models
  gruve models --address replica:50051 | cut -f1
"""
COLUMNS = ("name", "state", "tokens", "vocabulary", "cell", "size", "parameters", "backend", "digest", "about")


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    add_address(add_command(commands, "models", DESCRIPTION, EXAMPLES, run))


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    with connected(args.address) as client:
        models = client.models()
    from gruve.v1 import model_pb2

    rows = []
    for model in models:
        serving = model.state == model_pb2.MODEL_STATE_SERVING
        cell = model_pb2.Cell.Name(model.cell).removeprefix("CELL_").lower() if serving else ""
        rows.append(
            (
                model.name,
                "serving" if serving else "broken",
                model.tokenizer,
                str(model.vocabulary_size) if serving else "",
                cell,
                f"{model.num_layers}x{model.hidden_size}" if serving else "",
                f"{model.parameter_count:,}" if serving else "",
                model.backend,
                model.digest[:12],
                model.description if serving else model.state_reason,
            )
        )
    print_table(COLUMNS, rows)
    return 0
