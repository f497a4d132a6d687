"""`/v1/tune`: complete ABC and MIDI files of a model's text, as the command line writes them; and abcjs, unchanged."""

from __future__ import annotations

import hashlib

import pytest

from gruve.gateway.page import STATIC
from gruve.gateway.tune import MAX_CHARACTERS
from gruve.tune.beginning import read_beginning
from gruve.tune.keys import parse_key_request
from gruve.tune.parse import parse_tune
from gruve.tune.play import midi_file
from gruve.tune.score import Note
from gruve.tune.tokens import tokenize
from gruve.tune.transpose import to_key
from gruve.tune.write import complete, write_tune

TEXT = "L:1/8\nM:6/8\nK:Cdor\n|: C2EGAG| G2cAGF|1 E2CGEC:|2 D3D2E|]\n"
PARSED = parse_tune(f"X:1\n{TEXT}")
ROUTE = "/v1/tune"
ABCJS_SHA256 = "3290ef44c918d5e882029d3a47ad3dd63c16c8819da5abe921f3d1e642b4f4f0"
"""Of dist/abcjs-basic-min.js in the npm package abcjs 6.7.2."""


def test_a_tune_is_written_as_the_command_line_writes_it(gateway):
    answer = gateway.post(ROUTE, text=TEXT, title="A tune", remarks=["by hand"]).json()
    assert answer["abc"] == write_tune(complete(PARSED), title="A tune", fields=[("N", "by hand")])
    assert answer["notes"] == sum(isinstance(event, Note) for event in PARSED.events)
    assert answer["repaired"] is None


def test_a_tune_is_transposed_and_broken_into_lines_as_asked_for(gateway):
    answer = gateway.post(ROUTE, text=TEXT, key="Bb", bars_per_line=1).json()
    target = parse_key_request("Bb")
    assert target is not None
    expected = to_key(complete(PARSED), target.key)
    assert answer["abc"] == write_tune(expected, bars_per_line=1)
    assert "K:Bbdor\n" in answer["abc"]
    assert len(answer["abc"].splitlines()) > len(write_tune(expected).splitlines())


def test_a_midi_file_is_the_command_lines(gateway):
    answer = gateway.post(ROUTE, text=TEXT, format="midi")
    assert (answer.headers["content-type"], answer.content) == ("audio/midi", midi_file(complete(PARSED)))


def test_every_beginning_of_a_tune_with_a_note_is_read(gateway):
    tokens = tokenize(PARSED)
    first = next(place for place, token in enumerate(tokens, 1) if token == "C")
    texts = ["".join(tokens[:length]) for length in range(first, len(tokens) + 1)]
    counts = [gateway.post(ROUTE, text=text).json()["notes"] for text in texts]
    assert counts == sorted(counts)
    assert counts[0] == 1


def test_a_beginning_in_any_key_is_brought_to_what_a_model_reads(gateway):
    abc = 'X:1\nT:The Lark\nM:6/8\nL:1/8\nK:Am\n|: "Am"A2c e2a|'
    answer = gateway.post(f"{ROUTE}/beginning", text=abc).json()
    read = read_beginning(abc)
    assert answer["text"] == read.text == "L:1/8\nM:6/8\nK:Cmin\n|: C2EG2c| "
    assert (answer["title"], answer["root"], answer["mode"]) == ("The Lark", "A", "min")
    assert answer["notes"] == [finding.message for finding in read.findings] != []


def test_a_beginning_of_headers_alone_keeps_its_mode_where_it_has_no_meter(gateway):
    answer = gateway.post(f"{ROUTE}/beginning", text="K:Cdor\n").json()
    assert answer == {"text": "", "title": "", "root": "C", "mode": "dor", "notes": []}


@pytest.mark.parametrize("text", [None, "C" * (MAX_CHARACTERS + 1), "M:6/8\nK:C\nC3|\nM:3/4\nC6|"])
def test_a_beginning_that_cannot_be_read_is_refused(gateway, text):
    response = gateway.post(f"{ROUTE}/beginning", **({} if text is None else {"text": text}))
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("text")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "text is absent"),
        ({"text": "To be"}, "text: the text is not a tune"),
        ({"text": "L:1/8\nM:6/8\nK:Cdor\n|: "}, "text: the text is not a tune"),
        ({"text": "C" * (MAX_CHARACTERS + 1)}, f"has {MAX_CHARACTERS + 1} characters; at most {MAX_CHARACTERS}"),
        ({"text": TEXT, "key": "H"}, "key is 'H'; must be a root from A to G"),
        ({"text": TEXT, "format": "svg"}, "format is 'svg'; must be one of abc, midi"),
        ({"text": TEXT, "bars_per_line": 0}, "bars_per_line is 0; must be 1 to 16"),
        ({"text": TEXT, "remarks": ["a"] * 9}, "remarks has 9 entries; at most 8"),
        ({"text": TEXT, "titel": "A"}, "titel is not known here; did you mean title?"),
    ],
)
def test_a_wrong_field_is_refused_with_its_value_and_bound(gateway, fields, why):
    answer = gateway.post(ROUTE, **fields)
    assert answer.status_code == 400
    assert why in answer.json()["error"]["message"]


def test_abcjs_is_the_published_file_and_has_its_licence_beside_it():
    assert hashlib.sha256((STATIC / "abcjs-basic-min.js").read_bytes()).hexdigest() == ABCJS_SHA256
    assert "Permission is hereby granted" in (STATIC / "abcjs-basic-min.js.LICENSE").read_text()
