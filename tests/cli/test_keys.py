"""`gruve keys`, and what `gruve serve` demands before it listens to other machines."""

from __future__ import annotations

import json

import pytest

from commands import gruve
from gruve.cli import main
from gruve.serve.callers.api_keys import read_keys


def refused(arguments, file, capsys):
    """What a command that does not run says; in this process, because each start of another takes a second."""
    try:
        code = main([str(file) if argument == "FILE" else argument for argument in arguments])
    except SystemExit as error:
        code = error.code
    assert code in (1, 2)
    return capsys.readouterr().err


def test_keys_are_added_listed_and_revoked(tmp_path):
    file = str(tmp_path / "keys.json")
    added = gruve("keys", "add", "ann", "--keys", file, "--tenant", "acme", "--streams", "4", "--expires", "90d")
    key = added.stdout.strip()
    assert (added.returncode, key[:6], len(key)) == (0, "gruve_", 32)
    listed = gruve("keys", "list", "--json", GRUVE_KEYS=file)
    assert key not in listed.stdout
    (entry,) = json.loads(listed.stdout)
    assert (entry["name"], entry["tenant"], entry["role"], entry["expired"]) == ("ann", "acme", "use", False)
    assert entry["limits"] == {"streams": 4}
    assert "ann\tgruve_" in gruve("keys", "list", "--keys", file).stdout
    assert gruve("keys", "revoke", "ann", "--keys", file).returncode == 0
    again = gruve("keys", "revoke", "ann", "--keys", file)
    assert (again.returncode, "no key named 'ann'" in again.stderr) == (1, True)


@pytest.mark.parametrize("closed", [False, True])
def test_a_key_that_cannot_be_printed_is_removed_again(tmp_path, capsys, monkeypatch, closed):
    file = tmp_path / "keys.json"
    assert main(["keys", "add", "ann", "--keys", str(file)]) == 0
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", None if closed else full)
        assert main(["keys", "add", "bob", "--keys", str(file)]) == 1
    assert "the key 'bob' cannot be printed (" in capsys.readouterr().err
    assert [key.name for key in read_keys(file)] == ["ann"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["add", "a b", "--keys", "FILE"], "'a b' must be 1 to 64"),
        (["add", "a", "--keys", "FILE", "--expires", "soon"], "such as 90d"),
        (["add", "a", "--keys", "FILE", "--expires", "2001-01-01"], "must be in the future"),
        (["add", "a", "--keys", "FILE", "--weight", "0"], "must be 0.001 to 1000"),
        (["add", "a"], "give --keys FILE or set GRUVE_KEYS"),
        (["list", "--keys", "absent.json"], "'absent.json' cannot be read"),
    ],
)
def test_a_wrong_argument_is_explained(tmp_path, arguments, complaint, capsys, monkeypatch):
    monkeypatch.delenv("GRUVE_KEYS", raising=False)
    assert complaint in refused(["keys", *arguments], tmp_path / "keys.json", capsys)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--host", "0.0.0.0"], "has no TLS and no authentication"),
        (["--host", "0.0.0.0", "--keys", "FILE"], "has no TLS;"),
        (["--host", "0.0.0.0", "--tls-cert", "a", "--tls-key", "b"], "has no authentication;"),
        (["--tls-cert", "a"], "--tls-cert is given without --tls-key"),
        (["--tls-client-ca", "a"], "without --tls-cert and --tls-key"),
        (["--jwks", "FILE"], "--jwks needs --jwt-issuer and --jwt-audience"),
    ],
)
def test_a_server_does_not_start_with_what_would_not_protect_it(tmp_path, arguments, complaint, capsys):
    assert complaint in refused(["serve", "--models", str(tmp_path), *arguments], tmp_path / "keys.json", capsys)
