"""The tree of exceptions that errors.py opens with is the tree that it defines."""

from __future__ import annotations

import inspect
import re

from gruve import errors


def test_every_exception_is_drawn_below_its_base():
    drawn = [(0, "GruveError")]
    for lead, name in re.findall(r"^([│ ]*[├└]── )(\w+)", errors.__doc__, re.MULTILINE):
        drawn.append((len(lead) // 4, name))
    bases = {
        name: next(above for d, above in reversed(drawn[:at]) if d == depth - 1) if depth else "Exception"
        for at, (depth, name) in enumerate(drawn)
    }
    defined = {
        name: kind.__base__.__name__
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__module__ == errors.__name__
    }
    assert bases == defined
