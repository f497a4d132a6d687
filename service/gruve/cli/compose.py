"""`gruve generate` with a model of tunes: complete ABC on standard output, in the key asked for, and files."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeGuard, get_args

from gruve.cli.exit_codes import DONE, FAILED, USAGE
from gruve.cli.extras import require_extra
from gruve.cli.flags.parser import Parser, add_flag
from gruve.cli.interrupts import interrupt_cancels
from gruve.cli.output.summary import cancelled, default_title
from gruve.cli.output.terminal import Failure, TextOut, say_error, standard_output
from gruve.cli.tunes import KINDS, finished_tune, in_key, origin, write_tune_files

if TYPE_CHECKING:
    from gruve.client import Client, TokenStream
    from gruve.tune.beginning import Beginning
    from gruve.tune.keys import KeyRequest
    from gruve.tune.score import Mode
    from gruve.v1.model_pb2 import Model

Note = Callable[[str], None]
Start = Callable[[str | None, int | None, Mapping[int, float] | None], "TokenStream"]
"""Begins a generation: of a prompt, with a seed and with biases of logits, where there are any."""

TUNE_TOKENIZER: Final = "abc"
MAX_TUNES: Final = 1_000
_NEVER: Final = -100.0
"""Added to a logit: such a token is not drawn at any usual temperature."""
SHOWN_CHARACTERS: Final = 60


def add_tune_flags(parser: Parser) -> None:
    """Declares the flags that only models of tunes take."""
    tunes = parser.add_argument_group("tunes", "for models that write ABC notation, such as folk")
    tunes.add_argument(
        "--out",
        action="append",
        type=Path,
        metavar="FILE",
        help=f"also write the tune to a file of this kind: {', '.join(KINDS)}; may be given more than once",
    )
    tunes.add_argument(
        "--key", metavar="KEY", help="transpose the tune to this root, such as G or Bb; Am or Ddor ask for the mode too"
    )
    tunes.add_argument("--title", metavar="TEXT", help="the title; absent, the model's name and the seed")
    add_flag(tunes, "--n", int, 1, f"number of tunes, 1 to {MAX_TUNES}; each has a seed of its own", metavar="N")
    tunes.add_argument(
        "--raw", action="store_true", help="read and print the model's tokens as they are: on C, without X:, T: and Q:"
    )


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """The checked values of the flags of `add_tune_flags`."""

    paths: tuple[Path, ...]
    key: KeyRequest | None
    title: str
    n: int
    raw: bool

    @classmethod
    def of(cls, args: argparse.Namespace) -> TuneOptions:
        """Checks the flags; raises `Failure` with exit code 2."""
        from gruve.tune.keys import parse_key_request

        for path in args.out or ():
            if path.suffix not in KINDS:
                raise Failure(f"--out is {str(path)!r}; its name must end in one of {', '.join(KINDS)}", USAGE)
            if path.suffix == ".svg":
                require_extra("draw", f"--out {path}")
        key = parse_key_request(args.key) if args.key is not None else None
        if args.key is not None and key is None:
            raise Failure(
                f"--key is {args.key!r}; must be a root from A to G, with # or b, and a mode or none: G, Bb, Am, Ddor",
                USAGE,
            )
        if not 1 <= args.n <= MAX_TUNES:
            raise Failure(f"--n is {args.n}; must be 1 to {MAX_TUNES}", USAGE)
        if args.n > 1 and args.session not in (None, "new"):
            raise Failure(f"--n is {args.n}; a session is continued by one tune", USAGE)
        if args.raw and args.key and not args.out:
            why = "has no effect on --raw, which prints tokens on C; give --out FILE too, for the tune in that key"
            raise Failure(f"--key {why}", USAGE)
        return cls(tuple(args.out or ()), key, args.title or "", args.n, args.raw)

    def refuse_for(self, model: str) -> None:
        """Raises `Failure` if a flag was given that a model of text has no use for."""
        given = {"--out": self.paths, "--key": self.key, "--title": self.title, "--n": self.n > 1, "--raw": self.raw}
        for flag, value in given.items():
            if value:
                raise Failure(f"{flag} is for models of tunes; {model!r} writes other text", USAGE)


def writes_tunes(model: Model | None) -> TypeGuard[Model]:
    """Whether a model writes ABC notation."""
    return model is not None and model.tokenizer == TUNE_TOKENIZER


@dataclass(frozen=True, slots=True)
class Composer:
    """Generates tunes, prints each, and writes the files when all are there."""

    client: Client
    model: Model
    options: TuneOptions
    start: Start
    summary: Callable[[TokenStream, float], str]
    note: Note

    def run(self, prompt: str | None, before: str, seed: int | None) -> int:
        """Returns the exit code. `before` is what a session that is continued already has of the tune.

        Of several tunes, one that cannot be read is told of and left out, and the exit code is 1. Raises `Failure` if
        none can be read.
        """
        from gruve.client import UnknownCharacter

        out, given = standard_output(), prompt
        beginning = self._beginning(prompt, before)
        prompt = beginning.text or None
        bias = None if before else self._mode_bias(beginning)
        abcs: list[str] = []
        for number in range(1, self.options.n + 1):
            try:
                stream = self.start(prompt, None if seed is None else (seed + number - 1) % 2**64, bias)
                abcs.append(self._one(stream, before + beginning.text, beginning, number, out))
            except UnknownCharacter as error:
                if prompt in (None, given):
                    raise
                shown = prompt if len(prompt) <= SHOWN_CHARACTERS else prompt[:SHOWN_CHARACTERS] + "..."
                why = f"in the form that {self.model.name} reads, the beginning is {shown!r}: {error.message}"
                raise Failure(why, USAGE) from None
            except Failure as error:
                if not abcs and number == self.options.n:
                    raise
                say_error(f"tune {number}: {error}")
        write_tune_files(abcs, self.options.paths, self.note)
        return DONE if len(abcs) == self.options.n else FAILED

    def _beginning(self, prompt: str | None, before: str) -> Beginning:
        """The prompt as the model reads it; raises `Failure` if it contradicts --key."""
        from gruve.tune.beginning import Beginning, read_beginning
        from gruve.tune.keys import key_words

        if not prompt or self.options.raw or before:
            return Beginning(prompt or "")
        beginning = read_beginning(prompt)
        for finding in beginning.findings:
            self.note(f"the beginning: {finding}")
        key, wanted = beginning.key, self.options.key
        if key and wanted and wanted.mode and wanted.mode != key.mode:
            raise Failure(
                f"--key asks for {key_words(wanted.key)}; the beginning is in {key_words(key)}: "
                "name the root alone, or change its K:",
                USAGE,
            )
        return beginning

    def _one(self, stream: TokenStream, before: str, beginning: Beginning, number: int, out: TextOut) -> str:
        """One tune as complete ABC, printed; a tune that Ctrl-C cuts short is printed too."""
        if number > 1:
            out.write("\n")
        parts: list[str] = []
        began = time.monotonic()
        try:
            with interrupt_cancels(stream), stream:
                for chunk in stream:
                    parts.append(chunk.text)
                    self._show(chunk.text, out)
        except KeyboardInterrupt:
            out.end_line()
            self.note(cancelled(stream))
            if parts and not self.options.raw:
                with contextlib.suppress(Failure):  # it has no note yet
                    self._print(self._abc(stream, before + "".join(parts), beginning, number), out)
            raise
        out.end_line()
        self.note(self.summary(stream, time.monotonic() - began))
        if self.options.raw and not self.options.paths:
            return ""
        abc = self._abc(stream, before + "".join(parts), beginning, number)
        if not self.options.raw:
            self._print(abc, out)
        return abc

    def _show(self, text: str, out: TextOut) -> None:
        """Tokens as they come: what is asked for with --raw, else something to watch on a terminal."""
        if self.options.raw:
            out.write(text)
        elif out.is_terminal:
            out.write(text, "dim")

    @staticmethod
    def _print(abc: str, out: TextOut) -> None:
        out.write("\n" + abc if out.is_terminal else abc)

    def _abc(self, stream: TokenStream, text: str, beginning: Beginning, number: int) -> str:
        from gruve.tune.write import complete, write_tune

        tune = beginning.finish(finished_tune(text, self.note))
        if self.options.key:
            tune = in_key(tune, self.options.key, self.note)
        title = self._title(stream, beginning.title, number)
        return write_tune(complete(tune), title=title, number=number, fields=origin(stream, self.model))

    def _title(self, stream: TokenStream, given: str, number: int) -> str:
        title = self.options.title or given
        if title:
            return f"{title} {number}" if self.options.n > 1 else title
        return default_title(stream)

    def _mode_bias(self, beginning: Beginning) -> Mapping[int, float] | None:
        """Biases that leave of the model's `K:` tokens the mode asked for; None where none is asked for.

        A beginning whose text has its `K:` needs none.
        """
        from gruve.tune.score import Mode

        wanted = self.options.key.mode if self.options.key else None
        wanted = wanted or (beginning.key.mode if beginning.key else None)
        if wanted is None or "K:" in beginning.text:
            return None
        tokens = {mode: self._token(mode) for mode in get_args(Mode)}
        known = {mode: token for mode, token in tokens.items() if token is not None}
        if wanted not in known:
            asker = "--key" if self.options.key and self.options.key.mode else "the beginning"
            raise Failure(f"{asker} asks for {wanted}; {self.model.name} writes {', '.join(known)}", USAGE)
        return {token: _NEVER for mode, token in known.items() if mode != wanted}

    def _token(self, mode: Mode) -> int | None:
        """The id of the header of a mode, or None if the vocabulary lacks it."""
        from gruve.client import CallFailed

        try:
            return self.client.tokenize(f"K:C{mode}\n", model=self.model.name)[0]
        except CallFailed as error:
            if error.reason == "UNKNOWN_CHARACTER":
                return None
            raise
