"""The flags that say how tokens are chosen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gruve.cli.flags.parser import Parser, add_flag, bounded

if TYPE_CHECKING:
    from gruve.client import GenerateOptions

ABOUT_TEMPERATURE = (
    "0 always takes the most probable token, 1 leaves the model's probabilities as they are, more is wilder, at most "
    "100; absent, the temperature that the model recommends, or 1"
)
TEMPERATURE = bounded(float, 0, 100)
SEED = bounded(int, 0, 2**64 - 1)
MAX_TOKENS = bounded(int, 1, 65_536)
PACE = bounded(float, 0.01, 1_000_000)
"""The kinds of flags, with the server's bounds."""


def add_sampling(parser: Parser, max_tokens: int | None = None) -> None:
    """The flags that say how tokens are chosen; a flag that is absent leaves it to the session or the server.

    `--temperature` is the exception: of what is begun anew, the model's recommendation is sent.
    """
    add_flag(parser, "--temperature", TEMPERATURE, None, ABOUT_TEMPERATURE, metavar="X")
    add_flag(parser, "--top-k", int, None, "sample among the K most probable tokens", metavar="K")
    add_flag(
        parser,
        "--top-p",
        float,
        None,
        "sample among the most probable tokens that together have probability P, above 0 to 1",
        metavar="P",
    )
    add_flag(
        parser,
        "--min-p",
        float,
        None,
        "sample among tokens at least P times as probable as the best one, 0 to 1",
        metavar="P",
    )
    add_flag(
        parser,
        "--repetition-penalty",
        float,
        None,
        "above 1 makes tokens of the last 64 less probable, 1 changes nothing; 0.01 to 100",
        metavar="X",
    )
    add_flag(
        parser,
        "--seed",
        SEED,
        None,
        "the same seed gives the same text, 0 to 2^64-1; absent, the server draws one, which a note names",
        metavar="N",
    )
    most = "maximum number of tokens to generate, up to 65536" + ("" if max_tokens else "; absent, 1024")
    add_flag(parser, "--max-tokens", MAX_TOKENS, max_tokens, most, metavar="N")
    pace = "maximum number of tokens per second; absent, no limit"
    add_flag(parser, "--max-tokens-per-second", PACE, None, pace, metavar="N")


def sampling_options(args: argparse.Namespace) -> GenerateOptions:
    """The values of the flags of `add_sampling`."""
    return {
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        "seed": args.seed,
        "max_tokens": args.max_tokens,
        "max_tokens_per_second": args.max_tokens_per_second,
    }


def add_numerics_change(parser: Parser) -> None:
    """The flag that lets a session of other arithmetic continue."""
    parser.add_argument(
        "--allow-numerics-change",
        action="store_true",
        help="continue a session that another --arithmetic or version of the server has computed",
    )
