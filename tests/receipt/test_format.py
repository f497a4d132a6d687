"""The format of receipts is the one that docs/receipts.md specifies."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gruve.errors import KeyFileRefused, ReceiptInvalid
from gruve.receipt import token_hash
from gruve.receipt.file import ReceiptFile
from gruve.receipt.json_form import receipt_json
from gruve.receipt.signing import canonical, canonical_json, is_signed_by, read_private_key, read_public_key
from gruve.receipt.token_hash import TokenHash
from gruve.sessions import receipts
from gruve.v1 import generation_pb2

PAGE = (Path(__file__).parents[2] / "docs" / "receipts.md").read_text()
TRANSCRIPT, CANONICAL = re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
SIGNATURE, PUBLIC_KEY = re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)
READ = (0, 1, 2, 7, 8)
PRIVATE_PREFIX = bytes.fromhex("302e020100300506032b657004220420")
"""PKCS #8 around the 32 bytes of an Ed25519 key (RFC 8410)."""


def message_of(receipt: dict) -> generation_pb2.Receipt:
    """The message of a receipt's JSON, by the field rules of the page."""

    def sampling(fields: dict) -> dict:
        bias = {int(token): value for token, value in fields["logit_bias"].items()}
        return {**fields, "seed": int(fields["seed"]), "logit_bias": {"biases": bias}}

    reason = generation_pb2.FinishReason.Value(f"FINISH_REASON_{receipt['finish_reason'].upper()}")
    hashes = {name: bytes.fromhex(receipt[name]) for name in ("prompt_sha256", "tokens_sha256")}
    changes = [{**change, "sampling": sampling(change["sampling"])} for change in receipt["changes"]]
    fields = {**receipt, **hashes, "sampling": sampling(receipt["sampling"]), "changes": changes}
    return generation_pb2.Receipt(**{**fields, "finish_reason": reason})


def private_key(path: Path, mode: int = 0o600) -> Path:
    body = base64.b64encode(PRIVATE_PREFIX + bytes(range(32))).decode()
    path.write_text(f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
    path.chmod(mode)
    return path


def test_the_hashes_of_the_page_are_those_of_its_transcript():
    tokens = list(enumerate(json.loads(TRANSCRIPT)))
    for name, wanted in (("prompt_sha256", True), ("tokens_sha256", False)):
        entries = [struct.pack("<QI", at, token) for at, token in tokens if (at in READ) == wanted]
        assert json.loads(CANONICAL)[name] == hashlib.sha256(b"".join(entries)).hexdigest()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("encode", [token_hash.encode_entries, receipts.encode_entries], ids=["plain", "numpy"])
def test_the_rolling_hash_is_the_plain_one_however_it_is_cut(seed, encode):
    dice = random.Random(seed)
    tokens = [dice.randrange(65_536) for _ in range(9_000)]
    rolling, at, begin = TokenHash(encode), 0, dice.choice([0, 2**32 - 5])
    while at < len(tokens):
        size = dice.choice([1, 100, 5_000])
        rolling = rolling.copy() if dice.random() < 0.5 else rolling
        rolling.add(begin + at, tokens[at : at + size])
        at += size
    plain = b"".join(struct.pack("<QI", begin + at, token) for at, token in enumerate(tokens))
    assert rolling.digest() == hashlib.sha256(plain).digest()
    assert rolling.position == begin + len(tokens)


def test_a_message_has_the_canonical_form_of_the_page():
    receipt = json.loads(CANONICAL)
    message = message_of(receipt)
    assert canonical(message).decode() == CANONICAL
    assert canonical_json(receipt).decode() == CANONICAL
    assert receipt_json(message) == receipt


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (-1.5, "-1.5"),
        (100.0, "100"),
        (0.000001, "0.000001"),
        (1e-7, "1e-7"),
        (1.25e-9, "1.25e-9"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e21, "1e+21"),
        (1.5e300, "1.5e+300"),
        (5e-324, "5e-324"),
        (0.1 + 0.2, "0.30000000000000004"),
        (333333333.33333329, "333333333.3333333"),
    ],
)
def test_numbers_are_written_as_javascript_writes_them(number, written):
    assert canonical_json(number).decode() == written


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 2**53, "\ud800"])
def test_what_json_cannot_say_has_no_canonical_form(value):
    with pytest.raises(ReceiptInvalid, match="no canonical form"):
        canonical_json({"stop": [value]})


def test_the_signature_of_the_page_is_that_of_its_key(tmp_path):
    sign = read_private_key(private_key(tmp_path / "key.pem"))
    assert base64.b64encode(sign(CANONICAL.encode())).decode() == SIGNATURE
    (tmp_path / "public.pem").write_text(PUBLIC_KEY + "\n")
    key, signature = read_public_key(tmp_path / "public.pem"), base64.b64decode(SIGNATURE)
    assert is_signed_by(key, signature, CANONICAL.encode())
    assert not is_signed_by(key, signature, CANONICAL.replace('"version":1', '"version":2').encode())
    assert not is_signed_by(key, signature[:-1], CANONICAL.encode())


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_key_that_others_may_read_is_refused(tmp_path, mode):
    with pytest.raises(KeyFileRefused, match=f"has mode {mode:04o}"):
        read_private_key(private_key(tmp_path / "key.pem", mode))


def test_a_file_that_is_no_key_is_refused_without_its_content(tmp_path):
    path = private_key(tmp_path / "key.pem")
    path.write_text("-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n")
    with pytest.raises(KeyFileRefused, match="is no private key in PEM") as caught:
        read_private_key(path)
    assert "secret" not in str(caught.value)


def test_a_key_of_another_kind_is_refused(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = private_key(tmp_path / "key.pem")
    path.write_bytes(key.private_bytes(*form))
    with pytest.raises(KeyFileRefused, match="must be an Ed25519 key"):
        read_private_key(path)


def test_what_is_no_public_key_of_this_kind_is_refused(tmp_path):
    path = private_key(tmp_path / "key.pem")
    with pytest.raises(KeyFileRefused, match="is no public key in PEM"):
        read_public_key(path)
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    path.write_bytes(public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(KeyFileRefused, match="must be an Ed25519 key"):
        read_public_key(path)


def test_a_file_is_read_as_it_was_written():
    file = ReceiptFile(json.loads(CANONICAL), b"x" * 64, (1, 2), ((3,), (4, 5)))
    assert ReceiptFile.parse(json.dumps(file.to_json())) == file


def test_a_receipt_without_a_signature_and_tokens_is_a_file_without_their_fields():
    receipt = json.loads(CANONICAL)
    assert ReceiptFile(receipt).to_json() == {"receipt": receipt}


def test_a_receipt_of_no_token_is_read():
    receipt = json.loads(CANONICAL) | {"start_position": 1, "next_position": 1}
    assert ReceiptFile.parse(json.dumps({"receipt": receipt})).receipt == receipt


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda f: f.pop("receipt"), "must have receipt"),
        (lambda f: f.update(extra=1), "must have receipt"),
        (lambda f: f["receipt"].update(version=2), "version is 2; this gruve reads version 1"),
        (lambda f: f["receipt"].pop("stop"), "lacks the fields \\['stop'\\]"),
        (lambda f: f["receipt"].update(max_tokens="6"), "receipt.max_tokens is '6'; must be a whole number"),
        (lambda f: f["receipt"].update(max_tokens=True), "must be a whole number"),
        (lambda f: f["receipt"].update(max_tokens=2**60), "must be 0 to"),
        (lambda f: f["receipt"].update(extra=1), "has the unknown fields \\['extra'\\]"),
        (lambda f: f["receipt"].update(tokens_sha256="ab"), "must be 64 hex digits"),
        (lambda f: f["receipt"].update(tokens_sha256="x" * 64), "must be 64 hex digits"),
        (lambda f: f["receipt"].update(next_position=1), "must be start_position"),
        (lambda f: f["receipt"].update(start_position=0), "must be start_position"),
        (lambda f: f["receipt"].update(stop=[1]), "stop is '1'; must be a string"),
        (lambda f: f["receipt"].update(stop_token_ids=[2**32]), "stop_token_ids is 4294967296; must be 0 to"),
        (lambda f: f["receipt"]["sampling"].update(seed="-1"), "must be a whole number as a string"),
        (lambda f: f["receipt"]["sampling"]["logit_bias"].update(x=1), "must be a token id"),
        (lambda f: f["receipt"]["sampling"]["logit_bias"].update({"3": "1"}), "logit_bias is '1'; must be a number"),
        (lambda f: f["receipt"]["sampling"].pop("top_p"), "sampling lacks the fields \\['top_p'\\]"),
        (lambda f: f["receipt"]["changes"][0].pop("inserted"), "changes\\[0\\] lacks"),
        (lambda f: f["receipt"]["changes"][0]["sampling"].pop("seed"), "changes\\[0\\].sampling lacks"),
        (lambda f: f["receipt"].update(changes=[5]), "changes\\[0\\] is '5'; must be an object"),
        (lambda f: f.update(receipt=5), "receipt is '5'; must be an object"),
        (lambda f: f.update(signature="no base64!"), "must be base64"),
        (lambda f: f.update(signature=5), "signature is '5'; must be a string"),
        (lambda f: f.update(token_ids=[-1]), "must be 0 to"),
        (lambda f: f.update(token_ids="12"), "token_ids is '12'; must be a list"),
        (lambda f: f.update(inserted_token_ids=5), "inserted_token_ids is '5'; must be a list"),
    ],
)
def test_a_file_that_is_no_receipt_is_refused_with_the_field(damage, why):
    contents = {"receipt": json.loads(CANONICAL)}
    damage(contents)
    with pytest.raises(ReceiptInvalid, match=why):
        ReceiptFile.parse(json.dumps(contents))


@pytest.mark.parametrize("text", ["", "[", "[]", "5", "NaN", '{"receipt": NaN}', "[" * 100_000])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(ReceiptInvalid):
        ReceiptFile.parse(text)
