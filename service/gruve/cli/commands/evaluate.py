"""`gruve evaluate`: how well a model predicts a text, or tunes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gruve.cli.exit_codes import USAGE
from gruve.cli.flags.parser import Parser, add_command, add_flag, add_json, bounded
from gruve.cli.output.json_output import print_json
from gruve.cli.output.terminal import Failure, print_table
from gruve.errors import UnknownCharacter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gruve.model.repository import Model
    from gruve.training.evaluate import TextReport, TunesReport
    from gruve.tune.books import Kept

DESCRIPTION = """Measure how well a model predicts a corpus, in nats and bits per token, and how well it composes.

A text is measured by three protocols. `carried` takes the state from the first character to the last. `cold` begins
anew every 256 characters, with a start token. `cold, as nanoGPT` does so without the start token, as nanoGPT's own
evaluation does. Tunes are measured one by one, from the start token to the end token. Then the model generates tunes
without a prompt, and their form is compared with that of the corpus. No server is needed."""
EXAMPLES = """\
examples:
  gruve evaluate models/shakespeare input.txt                   the last tenth, which training has not seen
  gruve evaluate models/shakespeare other.txt --part all
  gruve evaluate models/folk abc                                a folder of ABC books: its test part, and the form
  gruve evaluate models/folk abc --part validation --samples 0  the loss alone
  gruve evaluate models/folk abc --json | jq .form.model        every figure, unrounded
"""
PARTS = ("validation", "test", "train", "all")
Report = dict[str, Any]
"""What --json prints: the model, the losses, and of tunes the form."""
COLUMNS = ("part", "protocol", "tokens", "nats per token", "bits per token")


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "evaluate", DESCRIPTION, EXAMPLES, run, extra="train")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="the model's folder")
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="a text in UTF-8, or a folder of ABC books")
    what = "which part of the corpus; absent, test for tunes, and validation for a text"
    add_flag(parser, "--part", str, None, what, choices=PARTS)
    add_flag(
        parser,
        "--samples",
        bounded(int, 0, None),
        200,
        "with a model of tunes, number of tunes to generate; 0 for none",
        metavar="N",
    )
    add_flag(
        parser,
        "--temperature",
        bounded(float, 0, 100),
        None,
        "temperature of these tunes, 0 to 100; absent, the one that the model recommends",
        metavar="T",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a row for each protocol, and of tunes the form."""
    from gruve.model.repository import load_given

    if not args.corpus.exists():
        raise Failure(f"there is no corpus at {str(args.corpus)!r}")
    model = load_given(args.model)
    report = _tunes(model, args) if args.corpus.is_dir() else _text(model, args)
    if args.json:
        print_json(report)
    else:
        _print(report)
    return 0


def _text(model: Model, args: argparse.Namespace) -> Report:
    from gruve.training.corpus import read_text
    from gruve.training.evaluate import PROTOCOLS, evaluate_text

    part = args.part or "validation"
    corpus = read_text(args.corpus)
    parts = {"validation": corpus.validation, "train": corpus.train, "all": corpus.train + corpus.validation}
    if part not in parts:
        raise Failure(f"--part is {part!r}; a text has the parts {', '.join(parts)}", USAGE)
    try:
        reports = [evaluate_text(model, parts[part], protocol) for protocol in PROTOCOLS]
    except UnknownCharacter as error:
        offset = error.offset + (len(corpus.train) if part == "validation" else 0)
        raise Failure(f"{args.corpus}: {UnknownCharacter(error.found, parts['all'], offset)}") from None
    return _report(model, [_loss(part, report.protocol, report) for report in reports])


def _tunes(model: Model, args: argparse.Namespace) -> Report:
    from gruve.training.evaluate import encode_tunes, evaluate_tunes
    from gruve.tune.books import read_books

    part, books = args.part or "test", read_books(args.corpus)
    scored = [tune for tune in books.kept if part in ("all", tune.part)]
    if not scored:
        raise Failure(f"there is no tune for the part {part} in {str(args.corpus)!r}: {books.summary()}")
    tunes = books.kept if args.samples else scored  # form compares with all of them
    encoded = list(zip(tunes, encode_tunes(model, tunes), strict=True))
    measured = evaluate_tunes(model, [ids for tune, ids in encoded if part in ("all", tune.part)])
    found = _report(model, [{**_loss(part, "whole tunes", measured), "tunes": measured.tunes}])
    return {**found, "form": _form(model, encoded, args)} if args.samples else found


def _report(model: Model, losses: list[dict[str, Any]]) -> Report:
    return {"model": model.name, "digest": model.digest, "losses": losses}


def _loss(part: str, protocol: str, report: TextReport | TunesReport) -> dict[str, Any]:
    return {
        "part": part,
        "protocol": protocol,
        "tokens": report.scored,
        "nats_per_token": report.nats_per_token,
        "bits_per_token": report.bits_per_token,
    }


def _form(model: Model, tunes: Sequence[tuple[Kept, list[int]]], args: argparse.Namespace) -> dict[str, Any]:
    """The form of free tunes and of the corpus, each figure by its name."""
    from gruve.training.form_report import TuneParts, corpus_form, model_form
    from gruve.training.quality import draw_samples

    parts: dict[str, list[tuple[int, ...]]] = {"train": [], "validation": [], "test": []}
    for tune, ids in tunes:
        parts[tune.part].append(tuple(ids))
    temperature = args.temperature
    if temperature is None:
        temperature = model.config.default_temperature or 1.0
    corpus = TuneParts(model.tokenizer.vocabulary, **parts)
    samples = draw_samples(model, args.samples, temperature=temperature)
    return {
        "samples": args.samples,
        "temperature": temperature,
        "corpus": corpus_form(corpus),
        "model": model_form(model, samples, corpus, temperature),
    }


def _print(report: Report) -> None:
    """The tables: a row for each loss, then a row for each figure of the form."""
    rows = []
    for loss in report["losses"]:
        protocol = f"{loss['tunes']} whole tunes" if "tunes" in loss else loss["protocol"]
        nats, bits = f"{loss['nats_per_token']:.4f}", f"{loss['bits_per_token']:.4f}"
        rows.append((loss["part"], protocol, str(loss["tokens"]), nats, bits))
    print_table(COLUMNS, rows)
    if form := report.get("form"):
        from gruve.training.form_report import form_table

        title = f"{form['samples']} free tunes, temperature {form['temperature']}"
        print_table(("form", "corpus", title), form_table(form["corpus"], [form["model"]]))
