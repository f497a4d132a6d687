"""The pages of keys: config.json and a training configuration, from the dataclasses that read them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from typing import Any, Literal

from gruve.model.config import ModelConfig
from gruve.model.pointers import PointerConfig
from gruve.training import config as training

TRAINING = """# Training configuration

Every key of the configuration that `gruve train --config` takes, generated from `service/gruve/training/config.py`. A
configuration is one TOML file. Keys without a table come first, and a key that is not listed is refused.
[Models](../models.md#train-your-own) walks through one.

"""
MODEL = """# Model format

Every key of a model's `config.json`, generated from `service/gruve/model/config.py` and `pointers.py`.
[Models](../models.md#the-format) describes the files of a model's folder and the names and shapes of its weights.

## config.json

"""


def training_page() -> str:
    """The keys of a training configuration, table by table."""
    kinds = {field.name: field.type for field in dataclasses.fields(training.TrainingConfig)}
    parts = [TRAINING, "## Keys without a table\n\n", *_table(training.TrainingConfig, skip=_tables(kinds))]
    for name, kind in _tables(kinds).items():
        parts.append(f"## [{name}] {{: #{name} }}\n\n{_sentence(kind)}\n\n")
        parts += _table(kind)
    return "".join(parts)


def model_format_page() -> str:
    """The keys of config.json, and of its object `pointers`."""
    parts = [MODEL, *_table(ModelConfig), f"## pointers {{: #pointers }}\n\n{_sentence(PointerConfig)}\n\n"]
    return "".join([*parts, *_table(PointerConfig)])


def _tables(kinds: dict[str, Any]) -> dict[str, type[Any]]:
    """The keys whose value is a table, with its dataclass."""
    found: dict[str, type[Any]] = {}
    for name, kind in kinds.items():
        table = getattr(training, str(kind).removesuffix(" | None"), None)
        if isinstance(table, type) and dataclasses.is_dataclass(table):
            found[name] = table
    return found


def _sentence(kind: type[Any]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").replace("<", "&lt;")


def _table(kind: type[Any], skip: dict[str, Any] | None = None) -> list[str]:
    docs = _field_docs(kind)
    lines = ["| key | type | default | |\n|---|---|---|---|\n"]
    for field in dataclasses.fields(kind):
        if field.name in (skip or {}) or not field.init:
            continue
        shown = _type(kind, field.name, str(field.type))
        lines.append(f"| `{field.name}` | {shown} | {_default(field)} | {docs.get(field.name, '')} |\n")
    return [*lines, "\n"]


def _type(kind: type[Any], name: str, written: str) -> str:
    """The type of a field; of a literal, its values."""
    hint = typing.get_type_hints(kind)[name]
    for alternative in (hint, *typing.get_args(hint)):
        if typing.get_origin(alternative) is Literal:
            return ", ".join(f"`{_toml(value)}`" for value in typing.get_args(alternative))
    return written.removesuffix(" | None").replace("|", "&#124;")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return "absent" if field.default is None else f"`{_toml(field.default)}`"
    return "empty" if field.default_factory is not dataclasses.MISSING else "required"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return {'""': '""', "()": "[]"}.get(repr(value).replace("'", '"'), repr(value).replace("'", '"'))


def _field_docs(kind: type[Any]) -> dict[str, str]:
    """The string below each field of a dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)  # noqa: S101 - the source of a class
    docs: dict[str, str] = {}
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        match node, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as text)):
                docs[name] = re.sub(r"\s+", " ", text).replace("|", "&#124;")
    return docs
