"""Finishes a generated tune: repaired, in the key asked for, with its origin; and writes it to files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gruve.cli.output.terminal import Failure
from gruve.errors import TuneError

if TYPE_CHECKING:
    from gruve.client import TokenStream
    from gruve.tune.keys import KeyRequest
    from gruve.tune.score import Tune
    from gruve.v1.model_pb2 import Model

KINDS = (".abc", ".svg", ".mid")


def write_tune_files(abcs: Sequence[str], paths: Sequence[Path], note: Callable[[str], None]) -> None:
    """Writes tunes in ABC to each path in the form that its ending names; `note` gets a line for each file.

    An `.abc` file takes all of them. Of several tunes each picture and each MIDI file is one of its own: `tune-1.svg`.
    """
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".abc":
            path.write_text("\n".join(abcs), encoding="utf-8")
            note(f"wrote {path}")
            continue
        for number, abc in enumerate(abcs, 1):
            own = path.with_stem(f"{path.stem}-{number}") if len(abcs) > 1 else path
            own.write_bytes(_midi(abc) if path.suffix == ".mid" else _picture(abc))
            note(f"wrote {own}")


def _midi(abc: str) -> bytes:
    from gruve.tune.parse import parse_tune
    from gruve.tune.play import midi_file

    return midi_file(parse_tune(abc))


def _picture(abc: str) -> bytes:
    from gruve.tune.draw import draw

    return draw(abc).svg.encode()


def finished_tune(text: str, note: Callable[[str], None]) -> Tune:
    """The tune of generated text, repaired if need be; `note` is told. Raises `Failure` if the text has none."""
    from gruve.tune.generated import read_generated

    try:
        tune, repaired = read_generated(text)
    except TuneError as error:
        raise Failure(str(error)) from None
    if repaired:
        note(repaired)
    return tune


def in_key(tune: Tune, request: KeyRequest, note: Callable[[str], None]) -> Tune:
    """The tune on the root asked for, in its own mode; `note` is told which key that is, and what could not be."""
    from gruve.tune.generated import on_root

    transposed, told = on_root(tune, request)
    note(told)
    return transposed


def origin(stream: TokenStream, model: Model) -> list[tuple[str, str]]:
    """`N:` fields that say what made a tune: enough to make it again, if it was made from no session."""
    if not stream.started:
        return []
    sampling = stream.start.sampling
    words = [f"seed {sampling.seed}"]
    if stream.ended and stream.end.usage.prompt_tokens:
        words.append(f"from a beginning of {stream.end.usage.prompt_tokens} tokens")
    usual = {"temperature": None, "top_k": model.vocabulary_size, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    for name, default in usual.items():
        if sampling.HasField(name) and getattr(sampling, name) != default:
            words.append(f"{name.replace('_', ' ')} {getattr(sampling, name):g}")
    if sampling.logit_bias.biases:
        words.append(f"{len(sampling.logit_bias.biases)} logit biases")
    return [
        ("N", f"made by gruve with {stream.start.model}: {', '.join(words)}"),
        ("N", f"model digest {stream.start.model_digest}"),
    ]
