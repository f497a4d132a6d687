"""`gruve generate`: streams one generation, and writes tunes to files."""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.calls import ReconnectNotes, check_session_model, connected, default_temperature, find_model
from gruve.cli.compose import Composer, TuneOptions, add_tune_flags, writes_tunes
from gruve.cli.exit_codes import USAGE
from gruve.cli.flags.credentials import add_address, client_options
from gruve.cli.flags.parser import Parser, add_command, add_flag, bounded
from gruve.cli.flags.sampling import add_numerics_change, add_sampling, sampling_options
from gruve.cli.interrupts import interrupt_cancels
from gruve.cli.output.summary import cancelled, summary
from gruve.cli.output.terminal import Failure, piped_text, say_note, say_nothing, standard_output

if TYPE_CHECKING:
    from gruve.client import Client, GenerateOptions, TokenStream

DESCRIPTION = """Continue a prompt with a model, streamed token by token.

Standard output has the generated text alone; a terminal shows the prompt before it. Notes, such as the seed, go to
standard error. Ctrl-C cancels the generation, and its seed and session are still noted.

With a model of tunes it prints a complete tune in ABC notation: the prompt and what follows it, a title, a tempo, and
N: lines that say how it was made. A terminal first shows the model's tokens, dimmed, as they come. With --raw it prints
these tokens alone: the headers L:, M: and K:, then the music, always on the root C.

The prompt for such a model may be any ABC tune or a part of one, in any key, with headers in any order or none. It is
transposed to C for the model, and the result is transposed back. What the model cannot read, such as chord symbols, is
left out, and a note says so. Headers alone set the meter (M:6/8), or the meter and the key (M:6/8 and K:G, one a
line)."""
START_ID, END_ID = 0, 1
"""Tokens around a tune in every tokenizer of kind abc."""
EXAMPLES = """\
examples:
  gruve generate shakespeare "ROMEO:" --max-tokens 400 --temperature 0.8
  gruve generate shakespeare "ROMEO:" --seed 7 > romeo.txt      write the text alone into a file
  gruve generate folk > tune.abc                                write a complete tune in ABC notation
  gruve generate folk --max-tokens-per-second 30                watch a tune being written
  gruve generate folk --n 3 --key Am                            three tunes in A minor
  gruve generate folk --out tune.svg --out tune.mid --key G     draw and play it, in G
  gruve generate folk - < begun.abc                             continue a tune of your own
  gruve generate folk --raw                                     print the model's tokens as they are
  gruve generate shakespeare "ROMEO:" --session new             keep a session; a note at the end names its id
  gruve generate shakespeare --session ID                       continue that session
  gruve generate shakespeare "ROMEO:" --receipt receipt.json    write a receipt for `gruve verify`
  fortune | gruve generate shakespeare                          take the prompt from standard input
"""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "generate", DESCRIPTION, EXAMPLES, run)
    parser.add_argument("model", metavar="MODEL", help="the model's name; `gruve models` lists them")
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        help="the text to continue; absent or -, standard input if that is no terminal",
    )
    add_address(parser)
    add_sampling(parser)
    add_flag(
        parser,
        "--min-tokens",
        int,
        None,
        "least number of tokens: before it neither the model nor --stop ends the text",
        metavar="N",
    )
    parser.add_argument(
        "--ignore-eos", action="store_true", help="never let the model end the text; --max-tokens or --stop does"
    )
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end when this text is generated, and do not print it; may be given up to 16 times",
    )
    parser.add_argument(
        "--session", metavar="ID|new", help="continue the session ID; with new, keep this generation as a session"
    )
    add_numerics_change(parser)
    add_flag(
        parser,
        "--timeout",
        bounded(float, 0.001, None),
        None,
        "give up after so many seconds; absent, never",
        metavar="S",
    )
    parser.add_argument("--echo", action="store_true", help="print the prompt before the generated text")
    add_tune_flags(parser)
    add_flag(parser, "--receipt", Path, None, "write the receipt, which `gruve verify` checks", metavar="FILE")
    parser.add_argument("--quiet", action="store_true", help="no notes on standard error")


def run(args: argparse.Namespace) -> int:
    """Streams, notes, writes."""
    note: Callable[[str], None] = say_nothing if args.quiet else say_note
    tune_options = TuneOptions.of(args)
    if args.receipt is not None and args.n > 1:
        raise Failure(f"--n is {args.n}; --receipt is for one generation", USAGE)
    prompt = piped_text(args.prompt) if args.prompt in (None, "-") else args.prompt
    reconnects = ReconnectNotes(note)
    with connected(args.address, client_options(args), timeout_s=args.timeout, on_reconnect=reconnects) as client:
        model = find_model(client, args.model)
        reconnects.established()
        if args.temperature is None and args.session in (None, "new"):
            args.temperature = default_temperature(model)
        if writes_tunes(model):
            start = functools.partial(_begin_tune, client, args)
            told = functools.partial(_summary_with_receipt, args, note)
            composer = Composer(client, model, tune_options, start, told, note)
            return composer.run(prompt, _tune_so_far(client, args), args.seed)
        tune_options.refuse_for(args.model)
        stream, before = _begin(client, args, prompt), time.monotonic()
        try:
            _print(stream, prompt, args)
        except KeyboardInterrupt:
            note(cancelled(stream))
            raise
        note(_summary_with_receipt(args, note, stream, time.monotonic() - before))
    return 0


def _summary_with_receipt(
    args: argparse.Namespace, note: Callable[[str], None], stream: TokenStream, seconds: float
) -> str:
    """The summary of a stream that has ended, after its receipt was written, if that is wanted."""
    if args.receipt is not None:
        receipt = stream.receipt()
        args.receipt.parent.mkdir(parents=True, exist_ok=True)
        args.receipt.write_text(json.dumps(receipt.to_json(), indent=1) + "\n")
        note(f"wrote {args.receipt}")
    return summary(stream, seconds)


def _begin(
    client: Client, args: argparse.Namespace, prompt: str | None, bias: Mapping[int, float] | None = None
) -> TokenStream:
    session = None if args.session == "new" else args.session
    if session:
        check_session_model(client, session, args.model)
    options: GenerateOptions = {
        **sampling_options(args),
        "allow_numerics_change": args.allow_numerics_change,
        "logit_bias": bias,
        "min_tokens": args.min_tokens,
        "ignore_eos": args.ignore_eos,
        "stop": args.stop,
        "echo": args.echo,
    }
    return client.generate(
        prompt or None,
        model=None if session else args.model,
        session_id=session,
        new_session=args.session == "new",
        timeout_s=args.timeout,
        **options,
    )


def _begin_tune(
    client: Client, args: argparse.Namespace, prompt: str | None, seed: int | None, bias: Mapping[int, float] | None
) -> TokenStream:
    again = argparse.Namespace(**{**vars(args), "seed": seed, "echo": False})
    return _begin(client, again, prompt, bias)


def _tune_so_far(client: Client, args: argparse.Namespace) -> str:
    """The text of a continued session's last tune; empty if that tune has ended."""
    if args.session in (None, "new"):
        return ""
    ids = list(client.get_session(args.session).token_ids)
    last = max((place for place, token in enumerate(ids) if token in (START_ID, END_ID)), default=-1)
    return client.detokenize(ids[last + 1 :], model=args.model) if ids[last + 1 :] else ""


def _print(stream: TokenStream, prompt: str | None, args: argparse.Namespace) -> None:
    """Prints the stream as it comes."""
    out = standard_output()
    try:
        with interrupt_cancels(stream), stream:
            if out.is_terminal and prompt and not args.echo:
                out.write(prompt, "dim")
            for chunk in stream:
                out.write(chunk.text)
    finally:
        out.end_line()
