"""Protobuf messages as JSON with the contract's field names, for `--json` and scripts."""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message

TIMESTAMP, DURATION = "google.protobuf.Timestamp", "google.protobuf.Duration"


def print_json(value: object) -> None:
    """Prints one JSON document, indented."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def as_json(message: Message) -> dict[str, Any]:
    """Converts a message to a JSON object.

    Field names are those of the proto file. Integers stay numbers, an enum value is its name in lower case without its
    prefix ("serving"), a timestamp is RFC 3339, a duration is seconds, bytes are base64, a single-precision number is
    the shortest decimal that means it. A field without a value is null if the contract tells absent from zero, else
    its zero.
    """
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return {str(key): value[key] for key in sorted(value)}
        return [_value(field, one) for one in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    if field.message_type is not None:
        kind = field.message_type.full_name
        if kind == TIMESTAMP:
            return value.ToJsonString()
        if kind == DURATION:
            return value.seconds + value.nanos / 1e9
        return as_json(value)
    if field.type == field.TYPE_FLOAT:
        return shortest_float(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def shortest_float(value: float) -> float:
    """The shortest decimal number that is `value` in single precision: 0.9, where protobuf gives 0.8999999761581421."""
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("f", short) == struct.pack("f", value):
            return short
    return value


def enum_name(kind: Any, number: int) -> str | int:
    """The name of an enum value in lower case without the prefix that all its values share; an unknown one as it is."""
    if number not in kind.values_by_number:
        return number
    prefix = "".join(f"_{letter}" if letter.isupper() else letter for letter in kind.name).strip("_").upper() + "_"
    name: str = kind.values_by_number[number].name
    return name.removeprefix(prefix).lower()
