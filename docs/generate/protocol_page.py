"""The protocol reference, from the descriptors of proto/ and their comments."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ".gruve.v1."
FILES = ("generation", "session", "model", "sampling", "error")
MESSAGE, ENUM, SERVICE = 4, 5, 6
"""Field numbers of FileDescriptorProto; with indices they make the path of a comment."""
FIELD, VALUE, METHOD, ONEOF = 2, 2, 2, 8
"""Field numbers of the elements inside a message, an enum and a service."""
INTRODUCTION = """# Protocol

Every service, message and field of the package `gruve.v1`, generated from the comments of
[proto/gruve/v1](../../proto/gruve/v1/generation.proto). [Concepts](../concepts.md) explains its words.

Beside these services the server has `grpc.health.v1.Health`, server reflection and channelz. Every value of
`ErrorReason` is also on the page [Errors](errors.md).

"""


@functools.cache
def contract() -> dict[str, FileDescriptorProto]:
    """Every file of the contract, comments included, by its name without folder and suffix."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        names = [f"gruve/v1/{name}.proto" for name in FILES]
        command = [sys.executable, "-m", "grpc_tools.protoc", "-Iproto", f"--descriptor_set_out={image}"]
        subprocess.run([*command, "--include_source_info", *names], cwd=ROOT, check=True)  # noqa: S603 - fixed arguments
        files = FileDescriptorSet.FromString(image.read_bytes()).file
    return {Path(file.name).stem: file for file in files}


def comment_of(file: FileDescriptorProto, *path: int) -> str:
    """The comment above an element, without the blank that follows `//`."""
    return _comments(file.name)[path]


@functools.cache
def _comments(name: str) -> dict[tuple[int, ...], str]:
    file = contract()[Path(name).stem]
    return {
        tuple(at.path): re.sub(r"^ ", "", at.leading_comments, flags=re.MULTILINE).strip()
        for at in file.source_code_info.location
    }


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "\n".join("\n".join(_file(contract()[name])) for name in FILES)


def markdown(comment: str) -> str:
    """A comment as Markdown: names of fields and messages link to nothing, tables of statuses keep their form."""
    blocks = []
    for block in re.split(r"\n\s*\n", comment):
        lines = block.splitlines()
        head = [line for line in lines if not line.startswith("  ")]
        table = [line.strip() for line in lines if line.startswith("  ")]
        blocks.append(" ".join(_escape(line) for line in head))
        if table:
            blocks.append("\n".join(["| status | reason |", "|---|---|", *map(_refusal, table)]))
    return "\n\n".join(blocks)


def _refusal(line: str) -> str:
    status, reasons = line.split(maxsplit=1)
    links = ", ".join(f"[{reason}](errors.md#{anchor(reason)})" for reason in reasons.split(", "))
    return f"| {status} | {links} |"


def anchor(reason: str) -> str:
    """The anchor of a reason on the page of errors."""
    return reason.lower()


def _escape(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "&#124;").replace("2^-22", "2<sup>-22</sup>")


def _file(file: FileDescriptorProto) -> Iterator[str]:
    for i, service in enumerate(file.service):
        yield from _service(file, i, service)
    for i, message in enumerate(file.message_type):
        yield from _message(file, i, message)
    for i, enum in enumerate(file.enum_type):
        yield from _enum(file, i, enum)


def _service(file: FileDescriptorProto, i: int, service: ServiceDescriptorProto) -> Iterator[str]:
    yield f"## {service.name} {{: #{service.name} }}\n"
    yield markdown(comment_of(file, SERVICE, i)) + "\n"
    for j, method in enumerate(service.method):
        request = _stream(method.client_streaming) + _type_link(method.input_type)
        response = _stream(method.server_streaming) + _type_link(method.output_type)
        yield f"### {service.name}.{method.name} {{: #{service.name}.{method.name} }}\n"
        yield f"Takes {request}, returns {response}.\n"
        yield markdown(comment_of(file, SERVICE, i, METHOD, j)) + "\n"


def _stream(streaming: bool) -> str:
    return "a stream of " if streaming else ""


def _message(file: FileDescriptorProto, i: int, message: DescriptorProto) -> Iterator[str]:
    yield f"### {message.name} {{: #{message.name} }}\n"
    yield markdown(comment_of(file, MESSAGE, i)) + "\n"
    if not message.field:
        return
    yield "| field | type | number | |\n|---|---|---|---|"
    for j, field in enumerate(message.field):
        told = markdown(comment_of(file, MESSAGE, i, FIELD, j)).replace("\n\n", "<br><br>")
        if field.HasField("oneof_index") and not field.proto3_optional:
            told += f" (one of `{message.oneof_decl[field.oneof_index].name}`)"
        yield f"| `{field.name}` | {_field_type(message, field)} | {field.number} | {told} |"
    yield ""
    real = {f.oneof_index for f in message.field if f.HasField("oneof_index") and not f.proto3_optional}
    for k in sorted(real):
        yield f"`{message.oneof_decl[k].name}`: {markdown(comment_of(file, MESSAGE, i, ONEOF, k))}\n"


def _field_type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    label = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    label = "optional " if field.proto3_optional else label
    if not field.type_name:
        return label + FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f"{message.name}.{nested.name}"):
            key, value = (_field_type(nested, entry) for entry in nested.field)
            return f"map&lt;{key}, {value}&gt;"
    return label + _type_link(field.type_name)


def _type_link(name: str) -> str:
    if name.startswith(PACKAGE):
        short = name.removeprefix(PACKAGE)
        return f"[{short}](#{short})"
    return f"`{name.removeprefix('.')}`"


def _enum(file: FileDescriptorProto, i: int, enum: EnumDescriptorProto) -> Iterator[str]:
    yield f"### {enum.name} {{: #{enum.name} }}\n"
    yield markdown(comment_of(file, ENUM, i)) + "\n"
    yield "| value | number | |\n|---|---|---|"
    for j, value in enumerate(enum.value):
        told = markdown(comment_of(file, ENUM, i, VALUE, j)).replace("\n\n", "<br><br>")
        yield f"| `{value.name}` | {value.number} | {told} |"
    yield ""
