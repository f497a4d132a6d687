"""The file of a receipt: what `gruve generate --receipt` writes and `gruve verify` reads."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from typing import Any, NoReturn

from gruve.errors import ReceiptInvalid
from gruve.receipt.json_form import VERSION

MAX_INTEGER = 2**53 - 1
"""Above this, JSON's numbers are not exact in every language."""
MAX_TOKEN_ID = 2**32 - 1
"""A token has four bytes in the hashes."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiptFile:
    """What `gruve generate --receipt` writes and `gruve verify` reads."""

    receipt: dict[str, Any]
    """As `receipt_json` returns it."""
    signature: bytes = b""
    """Ed25519, over the canonical JSON of `receipt`; empty if the server signs none."""
    token_ids: tuple[int, ...] | None = None
    """The generated tokens; None where the hash stands for them."""
    inserted_token_ids: tuple[tuple[int, ...], ...] = ()
    """The tokens of each inserted prompt, if the file has them."""

    def to_json(self) -> dict[str, Any]:
        """The file's contents."""
        contents: dict[str, Any] = {"receipt": self.receipt}
        if self.signature:
            contents["signature"] = base64.b64encode(self.signature).decode()
        if self.token_ids is not None:
            contents["token_ids"] = list(self.token_ids)
        if self.inserted_token_ids:
            contents["inserted_token_ids"] = [list(tokens) for tokens in self.inserted_token_ids]
        return contents

    @classmethod
    def parse(cls, text: str | bytes) -> ReceiptFile:
        """Reads a file's contents. Raises `ReceiptInvalid` for anything that is not a receipt of this version."""
        try:
            contents = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ReceiptInvalid(f"the receipt is not JSON: {error}") from error
        _check(contents, "the file", dict)
        unknown = set(contents) - {"receipt", "signature", "token_ids", "inserted_token_ids"}
        if unknown or "receipt" not in contents:
            raise ReceiptInvalid(f"the file has {sorted(contents)}; must have receipt, and may have token_ids")
        tokens = contents.get("token_ids")
        inserted = contents.get("inserted_token_ids", [])
        _check(inserted, "inserted_token_ids", list)
        return cls(
            receipt=_check_receipt(contents["receipt"]),
            signature=_signature(contents.get("signature", "")),
            token_ids=None if tokens is None else _tokens("token_ids", tokens),
            inserted_token_ids=tuple(_tokens("inserted_token_ids", each) for each in inserted),
        )


_KINDS: dict[str, type] = {
    "version": int,
    "model_digest": str,
    "numerics_id": str,
    "computed_from": int,
    "start_position": int,
    "next_position": int,
    "sampling": dict,
    "changes": list,
    "max_tokens": int,
    "min_tokens": int,
    "ignore_eos": bool,
    "stop": list,
    "stop_token_ids": list,
    "finish_reason": str,
    "prompt_sha256": str,
    "tokens_sha256": str,
}
_SAMPLING_KINDS: dict[str, type] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "repetition_window": int,
    "logit_bias": dict,
    "seed": str,
}


def _check_receipt(receipt: Any) -> dict[str, Any]:
    """The receipt with every field of its type. Raises `ReceiptInvalid` naming the first that is not."""
    _check(receipt, "receipt", dict)
    if receipt.get("version") != VERSION:
        raise ReceiptInvalid(f"version is {receipt.get('version')!r}; this gruve reads version {VERSION}")
    _check_fields(receipt, "receipt", _KINDS)
    _check_sampling(receipt["sampling"], "sampling")
    for number, change in enumerate(receipt["changes"]):
        _check_fields(change, f"changes[{number}]", {"position": int, "sampling": dict, "inserted": int})
        _check_sampling(change["sampling"], f"changes[{number}].sampling")
    for text in receipt["stop"]:
        _check(text, "stop", str)
    _tokens("stop_token_ids", receipt["stop_token_ids"])
    for name in ("prompt_sha256", "tokens_sha256"):
        if len(receipt[name]) != 64 or set(receipt[name]) - set("0123456789abcdef"):
            raise ReceiptInvalid(f"{name} is {receipt[name]!r}; must be 64 hex digits")
    if not 1 <= receipt["start_position"] <= receipt["next_position"]:
        raise ReceiptInvalid(
            f"next_position is {receipt['next_position']}; must be start_position {receipt['start_position']} or more"
        )
    checked: dict[str, Any] = receipt
    return checked


def _check_sampling(sampling: Any, where: str) -> None:
    _check_fields(sampling, where, _SAMPLING_KINDS)
    for token, bias in sampling["logit_bias"].items():
        if not token.isdecimal():
            raise ReceiptInvalid(f"{where}.logit_bias has the key {token!r}; must be a token id")
        _check(bias, f"{where}.logit_bias", float)
    if not sampling["seed"].isdecimal():
        raise ReceiptInvalid(f"{where}.seed is {sampling['seed']!r}; must be a whole number as a string")


def _check_fields(value: Any, where: str, kinds: dict[str, type]) -> None:
    _check(value, where, dict)
    missing, unknown = sorted(set(kinds) - set(value)), sorted(set(value) - set(kinds))
    if missing or unknown:
        faults = {"lacks the fields": missing, "has the unknown fields": unknown}
        told = " and ".join(f"{fault} {str(names)[:80]}" for fault, names in faults.items() if names)
        raise ReceiptInvalid(f"{where} {told}")
    for name, kind in kinds.items():
        _check(value[name], f"{where}.{name}", kind)


def _check(value: Any, where: str, kind: type, most: int = MAX_INTEGER) -> None:
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        names = {dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number"}
        raise ReceiptInvalid(f"{where} is {str(value)[:80]!r}; must be {names.get(kind, 'true or false')}")
    if kind is int and isinstance(value, int) and not 0 <= value <= most:
        raise ReceiptInvalid(f"{where} is {value}; must be 0 to {most}")


def _tokens(where: str, tokens: Any) -> tuple[int, ...]:
    _check(tokens, where, list)
    for token in tokens:
        _check(token, where, int, MAX_TOKEN_ID)
    return tuple(tokens)


def _signature(text: Any) -> bytes:
    _check(text, "signature", str)
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ReceiptInvalid(f"signature is {text[:80]!r}; must be base64") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
