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


@pytest.mark.parametrize("store", ["foo", "sqlite:", "http://cache", "redis:cache"])
def test_a_store_that_is_none_is_wrong_usage(store, tiny_repository, caplog, capsys, monkeypatch):
    monkeypatch.setattr("gruve.cli.commands.serve.log_to_standard_error", lambda _: None)
    assert main(["serve", "--models", str(tiny_repository), "--store", store]) == 2
    kind = store.partition(":")[0]
    assert caplog.messages[-1].startswith(f"store: '{kind}' is not a session store; use memory, sqlite:PATH")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://u:s3cret@cache:x", "'redis://cache:x' cannot be used: Port could not be cast to integer"),
        ("redis://u:s3cret@cache:65536", "'redis://cache:65536' cannot be used: Port out of range 0-65535"),
        ("redis://u:s3cret@cache/db", "'redis://cache/db' cannot be used: its database is 'db'; must be a number"),
        ("redis://u:s3cret@[::1", "'redis://[::1' cannot be used: Invalid IPv6 URL"),
        ("redis://u:s3cret@cache?no=1", "'redis://cache' cannot be used: "),
        ("redis://u:s3/cret@cache", "'redis://cache' cannot be used: write / ? and # in a password as %2F, %3F"),
    ],
)
def test_a_redis_url_that_is_none_is_wrong_usage_and_hides_its_password(url, why, tiny_repository, caplog, monkeypatch):
    monkeypatch.setattr("gruve.cli.commands.serve.log_to_standard_error", lambda _: None)
    assert main(["serve", "--models", str(tiny_repository), "--store", url]) == 2
    assert caplog.messages[-1].startswith(f"store: {why}")
    assert ("s3" in caplog.text, "cret" in caplog.text) == (False, False)


@pytest.mark.parametrize("flag", ["--session-key-file", "--sign-receipts", "--access-log"])
def test_a_file_that_cannot_be_opened_is_named_with_its_flag(flag, tiny_repository, tmp_path, capsys):
    path = tmp_path / "absent" / "file"
    assert main(["serve", "--models", str(tiny_repository), flag, str(path)]) == 1
    line = f"gruve: {flag} is '{path}', which cannot be opened: No such file or directory\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(("value", "tenant"), [("", None), ("ann", "ann")])
def test_an_empty_variable_is_none(monkeypatch, value, tenant):
    monkeypatch.setenv("GRUVE_TENANT", value)
    assert make_parser().parse_args(["models"]).tenant == tenant


@pytest.mark.parametrize(("value", "on"), [("", False), ("0", False), ("1", True)])
def test_a_switch_is_on_with_1(monkeypatch, value, on):
    monkeypatch.setenv("GRUVE_OTEL", value)
    assert make_parser().parse_args(["serve"]).otel is on
    assert make_parser().parse_args(["serve", "--otel"]).otel is True


def test_a_switch_that_is_neither_on_nor_off_is_wrong_usage(monkeypatch, capsys):
    monkeypatch.setenv("GRUVE_OTEL", "true")
    with pytest.raises(SystemExit) as ended:
        main(["serve"])
    assert (ended.value.code, capsys.readouterr().err) == (
        2,
        "gruve: --otel is 'true' in GRUVE_OTEL; must be one of 0, 1; see `gruve serve --help`\n",
    )


def test_the_help_of_an_action_has_its_own_examples_alone(capsys):
    with pytest.raises(SystemExit):
        main(["sessions", "rewind", "--help"])
    examples = capsys.readouterr().out.partition("examples:")[2].splitlines()
    assert [line.split()[:3] for line in examples if line] == [["gruve", "sessions", "rewind"]]


def test_the_list_of_commands_keeps_the_case_of_an_abbreviation(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert "gateway   HTTP through a gateway" in capsys.readouterr().out
