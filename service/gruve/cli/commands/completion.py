"""`gruve completion`: prints the script with which a shell completes gruve's commands and flags."""

from __future__ import annotations

import argparse

from gruve.cli.flags.parser import Parser, add_command
from gruve.cli.output.terminal import Failure

DESCRIPTION = """Print the completion script of a shell.

It completes commands, flags, the values of flags that have a fixed set, and file names."""
EXAMPLES = """\
examples:
  gruve completion bash > ~/.local/share/bash-completion/completions/gruve
  gruve completion zsh > "${fpath[1]}/_gruve"
  gruve completion fish > ~/.config/fish/completions/gruve.fish
"""
SHELLS = ("bash", "zsh", "fish")


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declare the command."""
    parser = add_command(commands, "completion", DESCRIPTION, EXAMPLES, run)
    parser.add_argument(
        "shell", metavar="SHELL", choices=SHELLS, help=" or ".join((", ".join(SHELLS[:-1]), SHELLS[-1]))
    )


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    try:
        import shtab
    except ImportError as error:
        raise Failure("completion needs the package shtab: pip install shtab") from error
    from gruve.cli import make_parser

    print(shtab.complete(make_parser(), args.shell))
    return 0
