"""Long texts are tokenized on threads, one of each tenant at a time."""

from __future__ import annotations

import asyncio
import threading

from gruve.serve.callers.identity import Identity, Role, set_identity
from gruve.serve.validation import LONG_TEXT_CHARACTERS, tokenize
from serving import PATIENCE_S

MORE_THAN_THREADS = 40
"""asyncio has at most 32 threads for such work."""


class Blocked:
    """A tokenizer that waits before it answers for a text of `x`."""

    def __init__(self):
        self.go_on = threading.Event()

    def encode(self, text, most=None):
        if text[0] == "x":
            self.go_on.wait(2 * PATIENCE_S)
        return [1]


async def tokenized(tokenizer, tenant, letter):
    set_identity(Identity(tenant, Role.USE))
    return await tokenize(tokenizer, letter * (LONG_TEXT_CHARACTERS + 1))


async def test_the_long_texts_of_a_tenant_do_not_hold_up_those_of_another():
    tokenizer = Blocked()
    many = [asyncio.create_task(tokenized(tokenizer, "a", "x")) for _ in range(MORE_THAN_THREADS)]
    await asyncio.sleep(0)
    try:
        assert await asyncio.wait_for(asyncio.create_task(tokenized(tokenizer, "b", "y")), PATIENCE_S) == [1]
        assert not any(task.done() for task in many)
    finally:
        tokenizer.go_on.set()
    assert await asyncio.gather(*many) == MORE_THAN_THREADS * [[1]]
