"""The page of errors, from the comments of error.proto, the rpcs that name each reason, and the client's exceptions."""

from __future__ import annotations

import re

import protocol_page as protocol

INTRODUCTION = """# Errors

Every reason that an error of a server can have, generated from [error.proto](../../proto/gruve/v1/error.proto).
[Operating](../operating.md#errors) says what to do about each.

{about}

| reason | status | retry after | answered by |
|---|---|---|---|
"""
ROW = re.compile(r"^ *([A-Z_]+) {2,}([A-Z_, ]+)$", re.MULTILINE)


def reasons() -> dict[str, str]:
    """Every reason that is sent, without its prefix, with its comment."""
    file = protocol.contract()["error"]
    names = [value.name.removeprefix("ERROR_REASON_") for value in file.enum_type[0].value]
    return {name: protocol.comment_of(file, protocol.ENUM, 0, protocol.VALUE, i) for i, name in enumerate(names) if i}


def page() -> str:
    """The whole page."""
    about = protocol.markdown(protocol.comment_of(protocol.contract()["error"], protocol.ENUM, 0))
    answering = _answering()
    rows, sections = [], []
    for name, comment in reasons().items():
        head, _, told = comment.partition(": ")
        status, _, retry = head.partition(", with ")
        links = ", ".join(f"[{rpc}](protocol.md#{at})" for at, rpc in answering.get(name, []))
        wait = "as `RetryInfo` says" if retry else ""
        rows.append(f"| [{name}](#{protocol.anchor(name)}) | {status} | {wait} | {links} |\n")
        told = protocol.markdown(told[:1].upper() + told[1:])
        sections.append(f"## {name} {{: #{protocol.anchor(name)} }}\n\n{head}. {told}\n")
    return INTRODUCTION.format(about=about) + "".join(rows) + "\n" + "\n".join(sections)


def _answering() -> dict[str, list[tuple[str, str]]]:
    """The rpcs that name each reason in their table, as (anchor, name); a service's table is for all of its rpcs."""
    found: dict[str, list[tuple[str, str]]] = {}
    for file in protocol.contract().values():
        for i, service in enumerate(file.service):
            elements: list[tuple[tuple[int, ...], str, str]] = [
                ((protocol.SERVICE, i), service.name, f"all of {service.name}")
            ]
            for j, method in enumerate(service.method):
                elements.append(
                    ((protocol.SERVICE, i, protocol.METHOD, j), f"{service.name}.{method.name}", method.name)
                )
            for path, at, name in elements:
                for _, row in ROW.findall(protocol.comment_of(file, *path)):
                    for reason in row.split(", "):
                        found.setdefault(reason, []).append((at, name))
    return found
