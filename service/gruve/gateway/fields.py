"""Reads the fields of a request, from a JSON body or a query string, each with its type."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from types import UnionType
from typing import Any, NoReturn

from starlette.requests import Request

from gruve.client.messages import Text
from gruve.gateway.errors import InvalidField, Refused

MAX_QUOTED = 40
"""The characters of a value that a message quotes."""


class Fields:
    """The fields of a request. Each is read once; null is the same as absent. Errors are `InvalidField`.

    A query string has its values as text, which is converted to the type that is asked for.
    """

    def __init__(self, values: Mapping[str, Any], *, from_query: bool = False) -> None:
        self._left = dict(values)
        self._known: set[str] = set()
        self._from_query = from_query

    def take(self, name: str) -> Any:
        """The unconverted value; None if it is absent."""
        self._known.add(name)
        return self._left.pop(name, None)

    def string(self, name: str) -> str | None:
        """A text."""
        value: str | None = _checked(name, self.take(name), str, "a string")
        return value

    def integer(self, name: str, minimum: int | None = None, maximum: int | None = None) -> int | None:
        """A whole number within bounds."""
        value: int | None = _checked(name, self._number(name, int), int, "a whole number")
        if value is not None and (
            (minimum is not None and value < minimum) or (maximum is not None and value > maximum)
        ):
            bound = f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"
            raise InvalidField(name, f"is {quoted(value)}; must be {bound}")
        return value

    def number(self, name: str) -> float | None:
        """A number."""
        value = self._number(name, float)
        try:
            return None if value is None else float(_given(name, value, int | float, "a number"))
        except OverflowError:
            raise InvalidField(name, f"is {quoted(value)}; must be within ±{sys.float_info.max:.2g}") from None

    def boolean(self, name: str) -> bool:
        """true or false; false if it is absent."""
        value = self.take(name)
        if self._from_query and isinstance(value, str):
            value = {"true": True, "1": True, "false": False, "0": False}.get(value, value)
        return bool(_checked(name, value, bool, "true or false"))

    def strings(self, name: str) -> list[str] | None:
        """A text or a list of texts."""
        value = self.take(name)
        if value is None or isinstance(value, str):
            return value if value is None else [value]
        wanted = "a string or a list of strings"
        return [_given(name, text, str, wanted) for text in _given(name, value, list, wanted)]

    def integers(self, name: str) -> list[int] | None:
        """A list of whole numbers."""
        value = _checked(name, self.take(name), list, "a list of whole numbers")
        return None if value is None else [_given(name, number, int, "a list of whole numbers") for number in value]

    def mapping(self, name: str, wanted: str = "an object") -> dict[str, Any] | None:
        """An object."""
        value: dict[str, Any] | None = _checked(name, self.take(name), dict, wanted)
        return value

    def refuse_rest(self) -> None:
        """Refuses fields that were not read, because they would have no effect."""
        for name in self._left:
            near = difflib.get_close_matches(name, self._known, n=1)
            raise InvalidField(name[:100], f"is not known here{f'; did you mean {near[0]}?' if near else ''}")

    def _number(self, name: str, kind: type[int] | type[float]) -> Any:
        value = self.take(name)
        if self._from_query and isinstance(value, str):
            try:
                return kind(value)
            except ValueError:
                return value
        return value


async def json_fields(request: Request) -> Fields:
    """The fields of a JSON body. Raises `Refused` if it is not a JSON object in UTF-8."""
    body = await request.body()
    try:
        values = json.loads(body.decode(), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise _malformed(f"it is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise _malformed("it is nested too deeply") from None
    except ValueError as error:
        raise _malformed(str(error).partition(";")[0]) from None  # what follows is advice to Python programs
    if not isinstance(values, dict):
        raise _malformed(f"it is {_kind(values)}")
    return Fields(values)


def text_or_tokens(name: str, value: Any, wanted: str) -> Text | None:
    """A prompt: a text, or a list of token ids; None if it is absent or an empty text."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidField(name, f"is {quoted(value)}; must be {wanted}")
    if not value:
        raise InvalidField(name, f"is an empty list; must be {wanted}")
    for entry in value:
        if not is_token(entry):
            raise InvalidField(name, f"has the entry {quoted(entry)} in a list; must be {wanted}")
    return value


def is_token(value: Any) -> bool:
    """Whether a value can be a token id."""
    return isinstance(value, int) and not isinstance(value, bool)


def quoted(value: Any) -> str:
    """A value as JSON has it, shortened; of an object or a list the kind alone."""
    if isinstance(value, dict | list):
        return _kind(value)
    text = json.dumps(value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def _malformed(why: str) -> Refused:
    return Refused(400, "REQUEST_MALFORMED", f"the body is not a JSON object: {why}")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _checked(name: str, value: Any, kind: type | UnionType, wanted: str) -> Any:
    """A value of a type, or None."""
    return None if value is None else _given(name, value, kind, wanted)


def _given(name: str, value: Any, kind: type | UnionType, wanted: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidField(name, f"is {quoted(value)}; must be {wanted}")
    return value


def _kind(value: Any) -> str:
    """The JSON type of a value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
