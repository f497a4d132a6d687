"""`/v1/tune`: the text of a model of tunes as complete ABC, as `gruve generate` writes it, or as a MIDI file.

`/v1/tune/beginning` is the way in: any ABC as the beginning that such a model reads. Neither asks a server, so they
need no key. A gateway reads one tune at a time, in a thread.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from gruve.errors import TuneError
from gruve.gateway.errors import InvalidField
from gruve.gateway.fields import Fields, json_fields
from gruve.gateway.forms import json_response
from gruve.tune.beginning import read_beginning
from gruve.tune.generated import on_root, read_generated
from gruve.tune.keys import KeyRequest, parse_key_request, root_name
from gruve.tune.play import midi_file
from gruve.tune.score import Note, Tune
from gruve.tune.write import BARS_PER_LINE, complete, write_tune

MAX_CHARACTERS = 8_192
MAX_REMARKS = 8
MAX_BARS_PER_LINE = 16
FORMATS = ("abc", "midi")


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """A text to read as a tune, and how to write it. `remarks` are its `N:` fields."""

    text: str
    title: str
    remarks: tuple[str, ...]
    key: KeyRequest | None
    bars_per_line: int
    format: str


async def tune(request: Request) -> Response:
    """Answers with the tune; 400 if the text has none."""
    asked = await _asked(request)
    async with request.app.state.tune_turn:
        return await asyncio.to_thread(_answer, asked)


async def beginning(request: Request) -> Response:
    """Answers with the beginning on C and with what it names; 400 if it cannot be read."""
    fields = await json_fields(request)
    text = _text(fields, "must be ABC, complete or the beginning of a tune")
    fields.refuse_rest()
    async with request.app.state.tune_turn:
        return await asyncio.to_thread(_begin, text)


def _begin(text: str) -> Response:
    try:
        read = read_beginning(text)
    except TuneError as error:
        raise InvalidField("text", str(error)) from None
    return json_response(
        {
            "text": read.text,
            "title": read.title,
            "root": read.key and root_name(read.key),
            "mode": read.key and read.key.mode,
            "notes": [finding.message for finding in read.findings],
        }
    )


async def _asked(request: Request) -> TuneRequest:
    fields = await json_fields(request)
    text, title, key = _text(fields, "must be ABC as a model writes it"), fields.string("title"), fields.string("key")
    remarks, form = fields.strings("remarks"), fields.string("format")
    bars_per_line = fields.integer("bars_per_line", 1, MAX_BARS_PER_LINE)
    fields.refuse_rest()
    if remarks is not None and len(remarks) > MAX_REMARKS:
        raise InvalidField("remarks", f"has {len(remarks)} entries; at most {MAX_REMARKS} are written")
    wanted = None if key is None else parse_key_request(key)
    if key is not None and wanted is None:
        raise InvalidField("key", f"is {key[:20]!r}; must be a root from A to G, with # or b: G, Bb")
    if form is not None and form not in FORMATS:
        raise InvalidField("format", f"is {form[:20]!r}; must be one of {', '.join(FORMATS)}")
    return TuneRequest(
        text, title or "", tuple(remarks or ()), wanted, bars_per_line or BARS_PER_LINE, form or FORMATS[0]
    )


def _text(fields: Fields, what: str) -> str:
    """The field `text`; `what` says what it must be."""
    text = fields.string("text")
    if text is None:
        raise InvalidField("text", f"is absent; {what}")
    if len(text) > MAX_CHARACTERS:
        raise InvalidField("text", f"has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    return text


def _answer(asked: TuneRequest) -> Response:
    try:
        read, repaired = read_generated(asked.text)
    except TuneError as error:
        raise InvalidField("text", str(error)) from None
    if asked.key:
        read, _ = on_root(read, asked.key)
    done = complete(read)
    if asked.format == "midi":
        return Response(midi_file(done), media_type="audio/midi")
    remarks = [("N", remark) for remark in asked.remarks]
    abc = write_tune(done, title=asked.title, fields=remarks, bars_per_line=asked.bars_per_line)
    return json_response({"abc": abc, "notes": _notes(done), "repaired": repaired or None})


def _notes(tune: Tune) -> int:
    """How many notes are written, rests not counted."""
    return sum(isinstance(event, Note) and event.pitch is not None for event in tune.events)
