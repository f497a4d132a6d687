"""`gruve models`: lists the models of a server, has it read one again, and adds one to a folder of models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.calls import connected, default_temperature
from gruve.cli.flags.credentials import add_address, client_options
from gruve.cli.flags.model_folder import USUAL
from gruve.cli.flags.parser import Parser, add_command, add_flag, add_json, check_model_name
from gruve.cli.output.json_output import as_json, print_json
from gruve.cli.output.terminal import print_tabs, print_wide, say_note

if TYPE_CHECKING:
    from gruve.v1.model_pb2 import Model

DESCRIPTION = """List the models of a server.

A terminal shows a table; below each model stands its description, or why it is broken. Elsewhere each model is one
line with tabs between the columns, whose order does not change: name, state, tokenizer, vocabulary, cell, size,
parameters, backend, digest, about, temperature (the recommended one, or empty). --json has every field of the API.

`gruve models reload NAME` makes the server read the model's files again. Running streams finish with the old model.
`gruve models add SOURCE` checks a model and puts it into a folder of models; it needs no server."""
EXAMPLES = """\
examples:
  gruve models
  gruve models --address replica:50051 | cut -f1
  gruve models --json | jq -r '.[] | select(.state == "broken") | .state_reason'
  gruve models reload folk                       read the files of models/folk again
  gruve models add folk.zip                      check the model in it and put it into models/folk
"""
ADD_DESCRIPTION = """Check a model and put it into a folder of models.

SOURCE is a folder with config.json, tokenizer.json and model.safetensors, or a .zip or uncompressed .tar archive of
one. Sizes, the sha256 of each file, and the weights' names, shapes, types and finiteness are checked first. The model
appears under its name with all of its files or not at all; a name that is taken is refused. No file of the model is
executed, and nothing else of an archive is extracted. No server is needed; one that is running serves the model after
`gruve models reload NAME`."""
ADD_EXAMPLES = """\
examples:
  gruve models add runs/mine                     models/mine
  gruve models add ~/Downloads/folk.zip --name reels
  gruve models add folk --models /srv/models
"""
COLUMNS = (
    "name",
    "state",
    "tokenizer",
    "vocabulary",
    "cell",
    "size",
    "parameters",
    "backend",
    "digest",
    "about",
    "temperature",
)
TERMINAL_COLUMNS = ("name", "state", "tokenizer", "vocabulary", "model", "parameters", "backend")


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(commands, "models", DESCRIPTION, EXAMPLES, run)
    add_address(parser)
    add_json(parser)
    actions = parser.add_subparsers(metavar="ACTION")
    reload = add_command(actions, "reload", "Make the server read a model's files again.", EXAMPLES, _reload)
    reload.add_argument("name", metavar="NAME", help="the model's name; `gruve models` has them")
    add_address(reload)
    add_json(reload)
    adding = add_command(actions, "add", ADD_DESCRIPTION, ADD_EXAMPLES, _add, extra="serve")
    adding.add_argument("source", metavar="SOURCE", type=Path, help="the model's folder, or a .zip or .tar of it")
    add_flag(adding, "--models", Path, USUAL, "the folder of models", variable="GRUVE_MODELS", metavar="DIR")
    adding.add_argument("--name", metavar="NAME", help="the model's name; absent, that of SOURCE")
    add_json(adding)


def run(args: argparse.Namespace) -> int:
    """Prints the list."""
    with connected(args.address, client_options(args)) as client:
        models = client.models()
    if args.json:
        print_json([as_json(model) for model in models])
    else:
        _print(models)
    return 0


def _reload(args: argparse.Namespace) -> int:
    """Reloads a model and prints what serves then."""
    with connected(args.address, client_options(args)) as client:
        model = client.reload_model(args.name)
    if args.json:
        print_json(as_json(model))
    else:
        _print([model])
    return 0


def _add(args: argparse.Namespace) -> int:
    """Adds a model and says where it is."""
    from gruve.model.install import install

    if args.name is not None:
        check_model_name("--name", args.name, args.name)
    model = install(args.source, args.models, args.name)
    folder = args.models / model.name
    if args.json:
        print_json({"name": model.name, "folder": str(folder), "digest": model.digest})
    else:
        say_note(f"{model.name} is in {folder}, digest {model.digest}")
    return 0


def _print(models: list[Model]) -> None:
    """Prints models as a table, or with tabs where the output is no terminal."""
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
