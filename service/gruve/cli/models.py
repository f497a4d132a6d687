"""`gruve models`: lists the models of a server, and has it read one again."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gruve.cli.calls import connected, default_temperature
from gruve.cli.credentials import add_address, client_options
from gruve.cli.flags import Parser, add_command, add_json
from gruve.cli.json_output import as_json, print_json
from gruve.cli.terminal import print_tabs, print_wide

if TYPE_CHECKING:
    from gruve.v1.model_pb2 import Model

DESCRIPTION = """List the models of a server.

On a terminal, a table, and below each model what it was trained for or why it is broken. Elsewhere one line for each
model with tabs between the columns, whose names and order stay the same: name, state, tokens, vocabulary, cell, size,
parameters, backend, digest, about, temperature: the recommended one, empty if there is none. --json has every field of
the API.

`gruve models reload NAME` has the server read the model's files again. Running streams finish with the old model."""
EXAMPLES = """\
examples:
  gruve models
  gruve models --address replica:50051 | cut -f1
  gruve models --json | jq -r '.[] | select(.state == "broken") | .state_reason'
  gruve models reload folk                       serve the files of models/folk as they are now
"""
COLUMNS = (
    "name",
    "state",
    "tokens",
    "vocabulary",
    "cell",
    "size",
    "parameters",
    "backend",
    "digest",
    "about",
    "temperature",
)
TERMINAL_COLUMNS = ("name", "state", "tokens", "vocabulary", "model", "parameters", "backend")


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(commands, "models", DESCRIPTION, EXAMPLES, run)
    add_address(parser)
    add_json(parser)
    actions = parser.add_subparsers(metavar="ACTION")
    reload = add_command(actions, "reload", "Serve a model's files as they are now.", EXAMPLES, _reload)
    reload.add_argument("name", metavar="NAME", help="the model's name; `gruve models` has them")
    add_address(reload)
    add_json(reload)


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    with connected(args.address, client_options(args)) as client:
        models = client.models()
    if args.json:
        print_json([as_json(model) for model in models])
    else:
        _print(models)
    return 0


def _reload(args: argparse.Namespace) -> int:
    """Reload a model and print what serves then."""
    with connected(args.address, client_options(args)) as client:
        model = client.reload_model(args.name)
    if args.json:
        print_json(as_json(model))
    else:
        _print([model])
    return 0


def _print(models: list[Model]) -> None:
    """Print models as a table, or with tabs where the output is no terminal."""
    import sys

    rows = [_row(model) for model in models]
    if not sys.stdout.isatty():
        print_tabs(COLUMNS, rows)
        return
    print_wide(TERMINAL_COLUMNS, [((*row[:4], f"{row[4]} {row[5]}".strip(), *row[6:8]), _note(row)) for row in rows])


def _note(row: tuple[str, ...]) -> str:
    """What stands below a row on a terminal: what the model is for or why it is broken, and its temperature."""
    about, temperature = row[9], row[10]
    return f"{about} Recommended temperature: {temperature}.".strip() if temperature else about


def _row(model: Model) -> tuple[str, ...]:
    from gruve.v1 import model_pb2

    if model.state == model_pb2.MODEL_STATE_BROKEN:
        return (
            model.name,
            "broken",
            model.tokenizer,
            "",
            "",
            "",
            "",
            model.backend,
            model.digest[:12],
            model.state_reason,
            "",
        )
    temperature = default_temperature(model)
    return (
        model.name,
        "unloaded" if model.state == model_pb2.MODEL_STATE_UNLOADED else "serving",
        model.tokenizer,
        str(model.vocabulary_size),
        model_pb2.Cell.Name(model.cell).removeprefix("CELL_").lower(),
        f"{model.num_layers}x{model.hidden_size}",
        f"{model.parameter_count:,}",
        model.backend,
        model.digest[:12],
        model.description,
        "" if temperature is None else f"{temperature:g}",
    )
