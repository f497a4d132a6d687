"""`gruve verify`: recomputes a generation from its receipt, without a server."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.exit_codes import CANNOT_CHECK, DONE, FAILED, USAGE
from gruve.cli.flags.model_folder import add_models, models_folder
from gruve.cli.flags.parser import Parser, add_command
from gruve.cli.output.terminal import Failure, say_note

if TYPE_CHECKING:
    from gruve.decode import Backend
    from gruve.model.repository import Model
    from gruve.receipt.file import ReceiptFile
    from gruve.sessions.receipts import Receipt
    from gruve.sessions.verification import Evidence

DESCRIPTION = """Recompute a generation from its receipt and compare, without a server.

Prints `identical`, or the first position that differs. The model of the receipt must be in --models, and this machine
must have the arithmetic that it names (`numerics_id`); otherwise the exit code is 3. A receipt does not contain the
prompt, so --prompt or --events gives it, unless there was none."""
EXAMPLES = """\
examples:
  gruve generate shakespeare "ROMEO:" --receipt receipt.json
  gruve verify receipt.json --prompt "ROMEO:"
  gruve sessions show ID --json > session.json
  gruve verify receipt.json --events session.json            for a generation of a session
  gruve verify receipt.json --prompt "ROMEO:" --public-key server.pub
"""


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declares the command."""
    parser = add_command(commands, "verify", DESCRIPTION, EXAMPLES, run, extra="serve")
    parser.add_argument("file", metavar="FILE", type=Path, help="the receipt; `gruve generate --receipt` writes one")
    add_models(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", metavar="TEXT", help="what the model read before it generated")
    what.add_argument(
        "--events",
        metavar="FILE",
        type=Path,
        help="the session, as `gruve sessions show ID --json` prints it, instead of --prompt",
    )
    parser.add_argument(
        "--public-key", metavar="FILE", type=Path, help="require the signature of this Ed25519 key, in PEM"
    )


def run(args: argparse.Namespace) -> int:
    """Reads, finds the model and its arithmetic, recomputes, compares."""
    from gruve.receipt.file import ReceiptFile
    from gruve.sessions.receipts import parse_receipt
    from gruve.sessions.verification import verify

    file = ReceiptFile.parse(args.file.read_bytes())
    if args.public_key is not None:
        _check_signature(file, args.public_key)
    receipt = parse_receipt(file.receipt)
    model = _find_model(models_folder(args.models), receipt)
    evidence = _evidence(args, file, receipt, model)
    if not evidence.matches_prompt(receipt):
        source = "--events" if args.events else "--prompt" if args.prompt is not None else "no prompt"
        raise Failure(f"{source} is not what the model read: prompt_sha256 is {receipt.prompt_sha256.hex()[:16]}…")
    verdict = verify(receipt, evidence, model, _find_backend(model, receipt))
    if not verdict.identical:
        place = "differs" if verdict.position is None else f"differs at position {verdict.position}"
        print(f"{place}: {verdict.reason}")
        return FAILED
    if receipt.computed_from > receipt.start_position:
        say_note(f"tokens before position {receipt.computed_from} were computed with another model or arithmetic")
    print("identical")
    return DONE


def _check_signature(file: ReceiptFile, path: Path) -> None:
    """Raises `Failure` unless the receipt is signed with the key whose public half is in the file."""
    from gruve.receipt.signing import canonical_json, is_signed_by, read_public_key

    if not file.signature:
        raise Failure("the receipt is not signed; `gruve serve --sign-receipts KEYFILE` signs them")
    if not is_signed_by(read_public_key(path), file.signature, canonical_json(file.receipt)):
        raise Failure(f"the signature is not that of {path}, or the receipt was altered after it was signed")
    say_note(f"signed with the key of {path}")


def _find_model(folder: Path, receipt: Receipt) -> Model:
    from gruve.model.versions import find_entries, listed, load_version

    versions = [(entry.name, version) for entry in find_entries(folder).values() for version in entry.versions]
    for name, version in versions:
        if version.digest == receipt.model_digest:
            return load_version(name, version)
    known = listed(f"{name} {version.digest[:16]}" for name, version in versions if version.digest)
    raise Failure(
        f"it cannot be checked: {str(folder)!r} has no model with digest {receipt.model_digest[:16]}; "
        f"it has {known or 'none'}",
        CANNOT_CHECK,
    )


def _find_backend(model: Model, receipt: Receipt) -> Backend:
    """The backend with the receipt's arithmetic, of those that this machine has."""
    found = []
    for backend in _backends(model):
        if backend.numerics_id == receipt.numerics_id:
            return backend
        found.append(f"{backend.numerics_id} ({backend.name})")
    raise Failure(
        f"it cannot be checked: it was computed with numerics_id {receipt.numerics_id}; this machine has "
        f"{', '.join(found)}",
        CANNOT_CHECK,
    )


def _backends(model: Model) -> Iterator[Backend]:
    from gruve.decode.choose import DecodeConfig, choose_backend
    from gruve.errors import InvalidField, ModelBroken

    for config in (
        DecodeConfig("cpu", 1),
        DecodeConfig("cpu", 1, arithmetic="float32"),
        DecodeConfig("cuda", 1, arithmetic="float32"),
        DecodeConfig("cpu", 1, native=False, arithmetic="float32"),
    ):
        with contextlib.suppress(InvalidField, ModelBroken):
            yield choose_backend(model, config)


def _evidence(args: argparse.Namespace, file: ReceiptFile, receipt: Receipt, model: Model) -> Evidence:
    """What the receipt has only hashes of."""
    from gruve.sessions.record import START_TOKEN
    from gruve.sessions.verification import Evidence

    inserted = file.inserted_token_ids
    if args.events is not None:
        transcript = _transcript(args.events, model)
        context = transcript[: receipt.start_position]
        places = [(change.position, change.position + change.inserted) for change in receipt.changes]
        inserted = tuple(tuple(transcript[begin:end]) for begin, end in places if end > begin)
    elif args.prompt is not None:
        context = [START_TOKEN, *model.tokenizer.encode(args.prompt)]
    elif receipt.start_position == 1:
        context = [START_TOKEN]
    else:
        raise Failure(
            f"the model read {receipt.start_position - 1} tokens before it generated; give --prompt or --events", USAGE
        )
    return Evidence(context, inserted, file.token_ids)


def _transcript(path: Path, model: Model) -> list[int]:
    """The tokens of a session in JSON. Raises `Failure` if there are none, or one that the model does not have."""
    data = path.read_bytes()
    try:
        contents = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Failure(f"--events is {str(path)!r}, which is not JSON: it begins with {data[:20]!r}; {error}") from error
    if not isinstance(contents, dict) or "token_ids" not in contents:
        raise Failure(f"--events is {str(path)!r}, which has no token_ids; `gruve sessions show ID --json` prints them")
    ids = contents["token_ids"]
    size = model.tokenizer.size
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < size for token in ids):
        raise Failure(f"token_ids of {str(path)!r} must be a list of token ids from 0 to {size - 1}")
    return ids
