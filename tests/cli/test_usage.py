"""Values that no server could take: refused as wrong usage, before a call."""

from __future__ import annotations

import pytest

from gruve.cli import main, make_parser


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sessions", "list", "--tenant", "nobody é"], "--tenant is 'nobody é'; must be of printable ASCII characters"),
        (["models", "--tenant", "a\nb"], "--tenant is 'a\\nb'; must be of printable ASCII characters"),
    ],
)
def test_a_value_that_cannot_be_sent_is_wrong_usage(fake, arguments, line, capsys):
    assert main([*arguments, "--address", fake.address]) == 2
    err = capsys.readouterr().err
    assert (err.startswith(f"gruve: {line}"), err.count("\n"), fake.requests) == (True, 1, [])


@pytest.mark.parametrize("store", ["foo", "sqlite:", "http://cache"])
def test_a_store_that_is_none_is_wrong_usage(store, tiny_repository, capsys, monkeypatch):
    monkeypatch.setattr("gruve.cli.serve.log_to_standard_error", lambda _: None)
    assert main(["serve", "--models", str(tiny_repository), "--store", store]) == 2
    kind = store.partition(":")[0]
    assert f"gruve: store: '{kind}' is not a session store; use memory, sqlite:PATH" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "tenant"), [("", None), ("ann", "ann")])
def test_an_empty_variable_is_none(monkeypatch, value, tenant):
    monkeypatch.setenv("GRUVE_TENANT", value)
    assert make_parser().parse_args(["models"]).tenant == tenant
