"""The protocol files: lint, compatibility, complete and true comments, and stubs that match."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from gruve.v1 import error_pb2, generation_pb2, sampling_pb2

ROOT = Path(__file__).resolve().parents[2]
STUBS = Path("gruve", "v1")
FILES = sorted(f"gruve/v1/{path.name}" for path in (ROOT / "proto/gruve/v1").glob("*.proto"))
SERVICE_FILES = [name for name in FILES if re.search(r"^service ", (ROOT / "proto" / name).read_text(), re.MULTILINE)]
NAMED = {4: "message", 5: "enum", 6: "service", 2: "member", 3: "message", 8: "oneof"}
"""The field numbers of descriptor.proto under which named elements stand; 2 holds fields, enum values and rpcs."""

STATUSES = {code.name for code in grpc.StatusCode}
REASONS = {value.name.removeprefix("ERROR_REASON_") for value in error_pb2.ErrorReason.DESCRIPTOR.values[1:]}
REFUSAL = re.compile(r"^ {3}([A-Z_]+) {2,}([A-Z_, ]+)$", re.MULTILINE)
"""A line of the tables "Refuses with": a status, then the reasons that come with it."""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(Path(sysconfig.get_path("scripts"), "buf"), *arguments)


def protoc(*arguments: str) -> None:
    done = run(sys.executable, "-m", "grpc_tools.protoc", "-Iproto", *arguments)
    assert done.returncode == 0, done.stderr


def last_tag() -> str:
    return run("git", "describe", "--tags", "--abbrev=0").stdout.strip()


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    """Every proto file, comments included."""
    image = tmp_path_factory.mktemp("contract") / "image.binpb"
    protoc(f"--descriptor_set_out={image}", "--include_source_info", *FILES)
    return list(FileDescriptorSet.FromString(image.read_bytes()).file)


def comments(contract: list[FileDescriptorProto]) -> Iterator[tuple[str, str]]:
    """(place, comment) of every named element; the comment is empty if there is none."""
    for file in contract:
        for location in file.source_code_info.location:
            kinds = location.path[::2]
            if len(location.path) % 2 == 0 and kinds and kinds[0] in (4, 5, 6) and set(kinds) <= NAMED.keys():
                yield f"{file.name}:{location.span[0] + 1} ({NAMED[kinds[-1]]})", location.leading_comments


def element_count(contract: list[FileDescriptorProto]) -> int:
    """How many named elements the descriptors hold, counted without their source locations."""
    count = 0
    for file in contract:
        for message in file.message_type:
            real_oneofs = {f.oneof_index for f in message.field if f.HasField("oneof_index") and not f.proto3_optional}
            count += 1 + len(message.field) + len(real_oneofs)
        count += sum(1 + len(enum.value) for enum in file.enum_type)
        count += sum(1 + len(service.method) for service in file.service)
    return count


def test_the_contract_passes_lint_and_format():
    for arguments in (["lint"], ["format", "--diff", "--exit-code"]):
        done = buf(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_contract_breaks_no_client_of_the_last_release():
    tag = last_tag()
    if not tag:
        pytest.skip("no git tag to compare with: nothing has been released")
    done = buf("breaking", "--against", f".git#tag={tag}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_committed_stubs_are_what_the_contract_generates(tmp_path):
    protoc(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", *FILES)
    protoc(f"--grpc_python_out={tmp_path}", *SERVICE_FILES)
    generated = {path.name: path.read_text() for path in (tmp_path / STUBS).iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "service" / STUBS).glob("*_pb2*.py*")}
    assert committed.keys() == generated.keys(), "run `make proto`"
    assert [name for name in generated if generated[name] != committed[name]] == [], "run `make proto`"


def test_every_element_has_a_comment_of_whole_sentences(contract):
    found = list(comments(contract))
    assert len(found) == element_count(contract)
    for where, comment in found:
        last_line = comment.rstrip().rpartition("\n")[2]
        assert re.match(r" [A-Z0-9`]", comment), f"{where} has no comment, or it does not begin as a sentence does"
        assert last_line.endswith(".") or REFUSAL.match(last_line), f"{where}: {last_line!r} does not end a sentence"


def test_every_constant_that_a_comment_names_exists(contract):
    values = {value.name for file in contract for enum in file.enum_type for value in enum.value}
    prefixes = ("ERROR_REASON_", "FINISH_REASON_")
    known = values | STATUSES | {v.removeprefix(p) for v in values for p in prefixes if v.startswith(p)}
    named = {word for _, comment in comments(contract) for word in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", comment)}
    assert named - known == set()


def test_a_reason_comes_with_the_same_status_wherever_it_is_named(contract):
    (errors,) = (file for file in contract if file.name.endswith("error.proto"))
    told = {tuple(at.path): at.leading_comments for at in errors.source_code_info.location}
    values = dict(enumerate(v.name.removeprefix("ERROR_REASON_") for v in errors.enum_type[0].value))
    status = {name: re.split("[,:]", told[5, 0, 2, i])[0].strip() for i, name in values.items() if i > 0}
    assert set(status.values()) <= STATUSES
    rows = [row for _, comment in comments(contract) for row in REFUSAL.findall(comment)]
    assert len(rows) > 40
    assert [(code, reason) for code, row in rows for reason in row.split(", ") if status.get(reason) != code] == []


def test_every_reason_is_named_by_something_that_answers_it(contract):
    elsewhere = "\n".join(comment for where, comment in comments(contract) if "error.proto" not in where)
    assert {reason for reason in REASONS if not re.search(rf"\b{reason}\b", elsewhere)} == set()


@pytest.mark.parametrize("message", [generation_pb2.GenerateRequest, sampling_pb2.SamplingParameters])
def test_zero_differs_from_absent(message):
    numbers = [f for f in message.DESCRIPTOR.fields if f.type not in (f.TYPE_STRING, f.TYPE_BOOL) and not f.is_repeated]
    assert len(numbers) >= 8
    assert [field.name for field in numbers if not field.has_presence] == []
