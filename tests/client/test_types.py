"""A type checker in a user's project, strict, accepts the documentation's programs and knows what methods return."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMPLETING = """
from typing import assert_type
from gruve.client import AsyncClient, Client

def check(client: Client) -> None:
    assert_type(client.complete("a", model="m"), str)
    assert_type(client.complete(model="m", temperature=0.5), str)
    assert_type(client.complete("a", model="m", n=1), list[str])
    assert_type(client.complete(["a", "b"], model="m"), list[str])
    assert_type(client.complete(("a", "b"), model="m", n=2), list[list[str]])

async def check_async(client: AsyncClient) -> None:
    assert_type(await client.complete("a", model="m"), str)
    assert_type(await client.complete(["a", "b"], model="m", n=2), list[list[str]])
"""

STREAMING = """
import contextlib
from collections.abc import AsyncIterator
from typing import assert_type
from gruve.client import AsyncClient, AsyncConversation, Chunk, Client, GenerateOptions
from gruve.v1 import generation_pb2

async def handler(client: AsyncClient) -> AsyncIterator[str]:
    options: GenerateOptions = {"max_tokens": 10, "seed": 7}
    async with contextlib.aclosing(client.generate("a", model="m", **options)) as stream:
        async for chunk in stream:
            yield chunk.text
        assert_type(stream.start.sampling.seed, int)
        assert_type(stream.end, generation_pb2.GenerationEnd)
    async with client.converse("a", model="m") as conversation:
        assert_type(conversation, AsyncConversation)
        assert_type(await anext(conversation, None), Chunk | None)
        control = client.control(conversation.start.generation_id)
        assert_type(await control.pause(), generation_pb2.ControlApplied)

def plain(client: Client) -> None:
    with contextlib.closing(client.generate(session_id="s")) as stream:
        assert_type([chunk.position for chunk in stream], list[int])
"""


def programs() -> dict[str, str]:
    """The Python programs of the documentation that use the client, by the name of a module."""
    return {
        f"{page.stem}_{number}".replace("-", "_").lower(): code
        for page in PAGES
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
        if "from gruve.client import" in code
    }


def strictly_checked(folder: Path, sources: dict[str, str]) -> str:
    """What mypy finds in modules of a user, who has no configuration and sees gruve as an installed package."""
    for name, code in sources.items():
        (folder / f"{name}.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(folder / "cache")]
    return subprocess.run([*command, "."], cwd=folder, capture_output=True, text=True, check=False).stdout


@pytest.mark.slow
def test_the_programs_of_the_documentation_are_typed(tmp_path):
    assert len(programs()) > 15
    found = strictly_checked(tmp_path, programs())
    assert found.startswith("Success: "), found


@pytest.mark.slow
def test_what_methods_return_is_known(tmp_path):
    found = strictly_checked(tmp_path, {"completing": COMPLETING, "streaming": STREAMING})
    assert found.startswith("Success: "), found
