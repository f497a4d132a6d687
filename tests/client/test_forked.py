"""A client that a forked process has inherited says so; it used to hang at its first call."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, os, signal, sys
from gruve.client import AsyncClient, Client

ADDRESS = sys.argv[1]
FAST = {"model": "tiny", "max_tokens": 2}
SLOW = {"model": "tiny", "max_tokens": 1000, "max_tokens_per_second": 20}

def fork(act):
    process = os.fork()
    if process:
        os.waitpid(process, 0)
        return
    signal.alarm(30)
    try:
        act()
        print("works", flush=True)
    except Exception as error:
        print(str(error).replace(str(os.getppid()), "PARENT"), flush=True)
    os._exit(0)
"""
MADE_ITS_CALL = "this client made its first call in process PARENT, from which this one was forked"
WAS_OPEN = "an AsyncClient was open in process PARENT, from which this one was forked"


def said(address: str, *lines: str) -> list[str]:
    """What the forked processes of a program say; the program itself must end well, and so it does not hang."""
    command = [sys.executable, "-c", PROGRAM + "\n".join(lines), address]
    # gRPC's own support of forks may end a forked process with a failed check before it comes to a call.
    environment = os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return [line.partition(", where")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "call",
    ["client.models()", "client.generate('O', **FAST).text()", "client.complete('O', n=3, **FAST)", "next(stream)"],
)
def test_an_inherited_client_refuses_every_call_and_its_owner_goes_on(server, call):
    assert said(
        server.address,
        "with Client(ADDRESS) as client, client.generate('O', **SLOW) as stream:",
        "    next(stream)",
        f"    fork(lambda: {call})",
        "    assert next(stream).token_ids and client.models()",
    ) == [MADE_ITS_CALL]


def test_leaving_the_blocks_of_an_inherited_client_disturbs_nobody(server):
    assert said(
        server.address,
        "with Client(ADDRESS) as client, client.generate('O', **SLOW) as stream:",
        "    next(stream)",
        "    fork(lambda: (stream.close(), client.close()))",
        "    assert next(stream).token_ids and client.models()",
    ) == ["works"]


def test_a_client_without_a_call_before_the_fork_works_after_it(server):
    assert said(
        server.address,
        "client, other = Client(ADDRESS), AsyncClient(ADDRESS)",
        "fork(client.models)",
        "fork(lambda: asyncio.run(other.models()))",
        "client.models()",
    ) == ["works", "works"]


def test_an_inherited_async_client_refuses_every_call(server):
    call, read = said(
        server.address,
        "async def use(what):",
        "    await (stream.__anext__() if what is stream else what.models())",
        "async def main():",
        "    global client, stream",
        "    async with AsyncClient(ADDRESS) as client, client.generate('O', **SLOW) as stream:",
        "        await anext(stream)",
        "        fork(lambda: asyncio.run(use(client)))",
        "        fork(lambda: asyncio.run(use(stream)))",
        "        assert (await anext(stream)).token_ids",
        "asyncio.run(main())",
    )
    assert "used in another event loop" in call
    assert read == MADE_ITS_CALL


def test_an_async_client_of_a_process_that_has_inherited_an_open_one_is_refused(server):
    assert said(
        server.address,
        "async def call():",
        "    async with AsyncClient(ADDRESS) as client:",
        "        await client.models()",
        "async def main():",
        "    async with AsyncClient(ADDRESS) as client:",
        "        await client.models()",
        "        fork(lambda: asyncio.run(call()))",
        "asyncio.run(main())",
    ) == [WAS_OPEN]
