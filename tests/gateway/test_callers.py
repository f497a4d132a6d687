"""A caller's key is passed on, and nothing is read ahead for a caller that stops reading."""

from __future__ import annotations

import asyncio

from certificates import Authority
from gruve.client import Tls
from gruve.gateway.sse import EventResponse, event
from gruve.ports import TlsFiles
from gruve.serve.access import AccessConfig
from gruve.serve.api_keys import add_key
from http_gateway import RunningGateway

COMPLETIONS = "/v1/completions"
TINY = {"model": "tiny", "prompt": "ROMEO:\n", "seed": 7, "max_tokens": 5}


def test_the_key_of_each_caller_is_passed_on_over_tls_and_kept_for_no_other(start, tmp_path):
    authority = Authority(tmp_path)
    keys = tmp_path / "keys.json"
    ann, bob = (add_key(keys, name, name) for name in ("ann", "bob"))
    server = start(access=AccessConfig(keys=keys), tls=TlsFiles(*authority.issue("server")))
    gateway = RunningGateway(server.address, credentials=Tls(authority.ca))

    def post(key: str, **more):
        return gateway.http.post(COMPLETIONS, json={**TINY, **more}, headers={"authorization": f"Bearer {key}"})

    session = post(ann, session="new").json()["choices"][0]["gruve"]["session"]
    assert post(ann, session=session).status_code == 200
    assert post(bob, session=session).json()["error"]["code"] == "SESSION_UNKNOWN"
    for value in (b"", b"Bearer gruve_wrong", b"Bearer gruve_\xe9"):
        refused = gateway.http.post(COMPLETIONS, json=TINY, headers={b"authorization": value})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json()["error"]["type"] == "authentication_error"
    assert gateway.http.get("/health").status_code == 200
    gateway.close()


async def test_a_reader_that_stops_reading_is_not_read_ahead_of_and_its_source_ends_with_it():
    produced, closed = [], []

    async def events():
        try:
            for number in range(1_000):
                produced.append(number)
                yield event(number)
        finally:
            closed.append(True)

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # as a socket whose buffer is full

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    gone = asyncio.Event()
    sending = asyncio.create_task(EventResponse(events())({"type": "http"}, receive, send))
    for _ in range(100):
        await asyncio.sleep(0)
    assert (produced, closed) == ([0], [])
    gone.set()
    await sending
    assert (produced, closed) == ([0], [True])
