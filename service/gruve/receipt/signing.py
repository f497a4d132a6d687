"""The canonical form of a receipt, and its signature by Ed25519 (RFC 8032). Keys are PEM files.

The canonical form is JSON by RFC 8785, which every language can write.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gruve.errors import KeyFileRefused, ReceiptInvalid
from gruve.receipt.json_form import receipt_json
from gruve.v1 import generation_pb2

Sign = Callable[[bytes], bytes]
"""From the canonical form of a receipt to its signature, 64 bytes."""
MAKE_KEY = "`openssl genpkey -algorithm ed25519` makes one"


def canonical(receipt: generation_pb2.Receipt) -> bytes:
    """The bytes that are signed: the canonical JSON of a receipt without its signature."""
    return canonical_json(receipt_json(receipt))


def canonical_json(value: Any) -> bytes:
    """The JSON of a value by RFC 8785: keys sorted, no spaces, numbers as ECMAScript writes them.

    Raises `ReceiptInvalid` for a number or a text that it cannot have.
    """
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise ReceiptInvalid(f"it has no canonical form: {error}") from error


def read_private_key(path: Path) -> Sign:
    """The signing function of a private key. Raises `KeyFileRefused`; `OSError` if the file cannot be read.

    The file must be readable by its owner alone, or by its owner and group: a Kubernetes Secret is mounted so.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o027:
        raise KeyFileRefused(f"{path} has mode {mode:04o}; others must have no access to it: `chmod 600 {path}`")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileRefused(f"{path} is no private key in PEM without a password; {MAKE_KEY}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileRefused(f"{path} has a {type(key).__name__}; must be an Ed25519 key; {MAKE_KEY}")
    return key.sign


def read_public_key(path: Path) -> Ed25519PublicKey:
    """A public key. Raises `KeyFileRefused`; `OSError` if the file cannot be read."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileRefused(f"{path} is no public key in PEM; `openssl pkey -in KEY -pubout` makes one") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileRefused(f"{path} has a {type(key).__name__}; must be an Ed25519 key")
    return key


def is_signed_by(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    """Whether `signature` is the key's for the bytes `signed`."""
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True
