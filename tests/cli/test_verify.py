"""`gruve generate --receipt` and `gruve verify`: what a stranger finds with the file, the model and the prompt."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gruve.cli import main
from gruve.receipt.signing import read_private_key

PEM = serialization.Encoding.PEM


def generate(address: str, path, *more: str) -> None:
    options = ("--seed", "5", "--max-tokens", "30", "--ignore-eos", "--quiet", "--receipt", str(path))
    assert main(["generate", "tiny", "ab", "--address", address, *options, *more]) == 0


@pytest.fixture
def receipt(server, tmp_path):
    path = tmp_path / "new" / "receipt.json"
    generate(server.address, path)
    return path


@pytest.fixture
def verify(receipt, tiny_repository, capsys):
    """Runs `gruve verify` with the receipt: (exit code, standard output, standard error)."""

    def run(*more: str, models=tiny_repository) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["verify", str(receipt), "--models", str(models), *more])
        return code, *capsys.readouterr()

    return run


def alter(path, change) -> None:
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def test_a_generation_is_identical(verify):
    assert verify("--prompt", "ab")[:2] == (0, "identical\n")


def test_an_altered_token_is_named_by_its_position(verify, receipt):
    alter(receipt, lambda contents: contents["token_ids"].__setitem__(10, contents["token_ids"][10] ^ 1))
    code, out, _ = verify("--prompt", "ab")
    assert code == 1
    assert out.startswith("differs at position 13: the token is")


def test_without_the_tokens_the_hash_shows_a_difference_without_a_position(verify, receipt):
    alter(receipt, lambda contents: contents.pop("token_ids"))
    assert verify("--prompt", "ab")[0] == 0
    alter(receipt, lambda contents: contents["receipt"]["sampling"].update(seed="6"))
    assert verify("--prompt", "ab")[:2] == (1, "differs: the tokens have another hash than the receipt says\n")


def test_another_prompt_differs_from_a_missing_one(verify):
    assert "--prompt is not what the model read" in verify("--prompt", "ba")[2]
    assert verify("--prompt", "ba")[0] == 1
    assert verify()[0] == 2


def test_a_session_is_checked_with_its_events(server, verify, receipt, tmp_path, capsys):
    session = server.create()
    for _ in range(2):
        generate(server.address, receipt, "--session", session)
    capsys.readouterr()
    assert main(["sessions", "show", session, "--json", "--address", server.address]) == 0
    events = tmp_path / "session.json"
    events.write_text(capsys.readouterr().out)
    assert verify("--events", str(events))[:2] == (0, "identical\n")
    events.write_text("{}")
    assert "has no token_ids" in verify("--events", str(events))[2]
    events.write_bytes(b"MThd\x00\xff" * 10_000)
    code, _, err = verify("--events", str(events))
    assert (code, len(err) < 500, "which is not JSON: it begins with b'MThd" in err) == (1, True, True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda receipt: receipt.update(extra=1), "receipt has the unknown fields ['extra']"),
        (lambda receipt: receipt.pop("stop"), "receipt lacks the fields ['stop']"),
        (
            lambda receipt: receipt["sampling"].update(x=receipt["sampling"].pop("seed")),
            "sampling lacks the fields ['seed'] and has the unknown fields ['x']",
        ),
    ],
)
def test_of_an_edited_receipt_only_what_is_true_is_said(verify, receipt, change, why):
    alter(receipt, lambda contents: change(contents["receipt"]))
    code, _, err = verify("--prompt", "ab")
    assert (code, err) == (1, f"gruve: {why}\n")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda file: file["receipt"].update(next_position=2**53 - 1), "next_position is 9007199254740991; must be"),
        (lambda file: file["receipt"].update(min_tokens=2**32), "min_tokens is 4294967296; must be"),
        (lambda file: file["receipt"]["sampling"].update(logit_bias={"66": 1.0}), "token id 66 does not exist"),
        (lambda file: file.update(inserted_token_ids=[[2**32]]), "inserted_token_ids is 4294967296; must be"),
        (lambda file: file.update(token_ids=[66] * 30) or file["receipt"].update(computed_from=33), "token 66 is not"),
    ],
)
def test_numbers_that_no_generation_has_are_refused(verify, receipt, change, why):
    alter(receipt, change)
    code, out, err = verify("--prompt", "ab")
    assert (code, out) == (1, "")
    assert why in err


@pytest.mark.parametrize(
    ("field", "why"), [("model_digest", "has no model with digest"), ("numerics_id", "this machine has")]
)
def test_what_cannot_be_checked_here_says_why(verify, receipt, field, why):
    alter(receipt, lambda contents: contents["receipt"].update({field: "0" * 16}))
    code, out, err = verify("--prompt", "ab")
    assert (code, out) == (3, "")
    assert why in err


def test_a_signed_receipt_is_checked_with_the_public_key(start, verify, receipt, tmp_path):
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    options = ("--prompt", "ab", "--public-key", str(public))
    assert "the receipt is not signed" in verify(*options)[2]
    generate(start(sign_receipt=read_private_key(private)).address, receipt)
    assert verify(*options)[:2] == (0, "identical\n")
    alter(receipt, lambda contents: contents["receipt"]["sampling"].update(top_p=0.999999))
    code, _, err = verify(*options)
    assert code == 1
    assert "or the receipt was altered after it was signed" in err


def test_a_receipt_is_of_one_generation(server, tmp_path, capsys):
    arguments = ["generate", "tiny", "--n", "2", "--receipt", str(tmp_path / "r"), "--address", server.address]
    assert main(arguments) == 2
    assert "--n is 2; --receipt is for one generation" in capsys.readouterr().err
