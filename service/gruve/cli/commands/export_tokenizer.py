"""`gruve export-tokenizer`: a model's tokenizer in Hugging Face's form."""

from __future__ import annotations

import argparse
from pathlib import Path

from gruve.cli.flags.parser import Parser, add_command
from gruve.cli.output.terminal import Failure, say_note

DESCRIPTION = """Write a model's tokenizer as a folder that Hugging Face's transformers loads by its path.

It is for load generators and evaluation programs that count tokens by themselves. It encodes and decodes as gruve does:
the same ids, and no start token before them. A text with a character or an ABC token that the model does not have is an
error; with --skip-unknown such characters are left out, for programs that make prompts from a text of their own. Files
of the same names in DIR are replaced. No server is needed."""
EXAMPLES = """\
examples:
  gruve export-tokenizer models/shakespeare build/shakespeare
  gruve export-tokenizer models/shakespeare build/shakespeare --skip-unknown
"""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "export-tokenizer", DESCRIPTION, EXAMPLES, run, extra="serve")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="the model's folder")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where tokenizer.json and tokenizer_config.json go")
    parser.add_argument("--skip-unknown", action="store_true", help="leave unknown characters out instead of failing")


def run(args: argparse.Namespace) -> int:
    """Checks the model and writes the folder."""
    from gruve.model.huggingface import export_tokenizer
    from gruve.model.repository import load_given

    if args.folder.resolve() == args.model.resolve():
        raise Failure(
            f"DIR is {str(args.folder)!r}, the model's own folder, which has a tokenizer.json of gruve's form"
        )
    tokenizer = load_given(args.model).tokenizer
    export_tokenizer(tokenizer, args.folder, skip_unknown=args.skip_unknown)
    say_note(f"the {tokenizer.size} tokens of {args.model} are in {args.folder}")
    return 0
