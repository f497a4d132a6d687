"""Server-sent events of a generation: read as a browser's EventSource does, which connects again with the last id."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from commands import started
from gruve.bench.chaos.replicas import free_port
from gruve.client import Client
from http_gateway import RunningGateway, gateway_url
from server_process import Process
from serving import PATIENCE_S

PROMPT = "ROMEO:\n"
GENERATE = "/v1/generate"
FIELDS = {"model": "tiny", "prompt": PROMPT, "max_tokens": 120, "max_tokens_per_second": 400}


@dataclass
class Event:
    name: str
    id: str
    data: dict


class EventSource:
    """What a browser does with a stream: keeps the last id, and sends it when it connects again."""

    def __init__(self, **fields) -> None:
        self.fields = fields
        self.last_id = ""
        self.text = ""
        self.tokens: list[int] = []
        self.names: list[str] = []
        self.seeds: list[int] = []

    def read(self, url: str, events: int | None = None) -> int:
        """Reads a number of events, or all; returns the status."""
        headers = {"last-event-id": self.last_id} if self.last_id else {}
        with httpx.stream("GET", url + GENERATE, params=self.fields, headers=headers, timeout=PATIENCE_S) as answer:
            for number, event in enumerate(parsed(answer), 1):
                self.names.append(event.name)
                self.seeds += [event.data["seed"]] if event.name == "start" else []
                self.last_id = event.id or self.last_id
                self.text += event.data.get("text", "")
                self.tokens += event.data.get("token_ids", [])
                if number == events:
                    break
            return answer.status_code

    def read_to_the_end(self, url: str) -> None:
        """Connects again until the end has come."""
        give_up_s = time.monotonic() + PATIENCE_S
        while self.last_id != "end":
            assert time.monotonic() < give_up_s
            try:
                self.read(url)
            except httpx.TransportError:
                time.sleep(0.1)


def parsed(answer: httpx.Response) -> Iterator[Event]:
    found: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if line:
            found[name] = value
        elif "data" in found:
            yield Event(found.get("event", "message"), found.get("id", ""), json.loads(found["data"]))
            found = {}


@pytest.fixture(scope="module")
def other(server):
    running = RunningGateway(server.address)
    yield running
    running.close()


def test_events_carry_the_generation_and_how_it_ended(server, gateway):
    reader = EventSource(**FIELDS, seed=7)
    assert reader.read(gateway.url) == 200
    with Client(server.address) as client:
        assert reader.text == client.generate(PROMPT, model="tiny", seed=7, max_tokens=120).text()
    assert (reader.names[0], reader.names[-1], reader.last_id) == ("start", "end", "end")
    assert reader.read(gateway.url) == 204  # which ends an EventSource


@pytest.mark.parametrize("fields", [{"seed": 7}, {}, {"stop": "zzz"}], ids=["seed", "drawn", "withheld"])
def test_a_reader_that_connects_to_another_gateway_goes_on_at_the_next_token(gateway, other, fields):
    reader = EventSource(**FIELDS, **fields)
    for url in (gateway.url, other.url, gateway.url):
        reader.read(url, events=4)
    reader.read_to_the_end(other.url)
    whole = EventSource(**{**FIELDS, **fields, "seed": reader.seeds[0]})
    whole.read(gateway.url)
    assert (reader.text, reader.tokens) == (whole.text, whole.tokens)
    assert set(reader.seeds) == {whole.seeds[0]}


def test_a_generation_of_a_session_is_continued_and_not_begun_again(server, gateway, other):
    session = server.create()
    reader = EventSource(
        session_id=session, prompt=PROMPT, generation_id="first", max_tokens=100, max_tokens_per_second=400
    )
    reader.read(gateway.url, events=5)
    reader.read_to_the_end(other.url)
    with Client(server.address) as client:
        kept = client.get_session(session)
    assert (kept.text, len(kept.generations)) == (PROMPT + reader.text, 1)


def test_post_takes_tokens_and_the_last_id_too(server, gateway):
    with Client(server.address) as client:
        ids = client.tokenize(PROMPT, model="tiny")
    body = {"model": "tiny", "prompt": ids, "max_tokens": 20, "seed": 7}
    with gateway.http.stream("POST", GENERATE, json=body, headers={"last-event-id": "18"}) as answer:
        events = list(parsed(answer))
    assert next(event.data["position"] for event in events if event.name != "start") == 18
    assert (events[-1].data["next_position"], events[-1].data["finish_reason"]) == (28, "length")


@pytest.mark.parametrize(
    ("fields", "last", "param"),
    [
        ({"model": "tiny", "session_id": "x", "generation_id": "y"}, "", "model"),
        ({"session_id": "x"}, "", "generation_id"),
        ({"model": "tiny"}, "5", "seed"),
        ({"model": "tiny", "seed": "1"}, "five", "last-event-id"),
        ({"model": "tiny", "max_tokens": "many"}, "", "max_tokens"),
        ({"model": "tiny", "sede": "1"}, "", "sede"),
    ],
)
def test_what_could_not_be_resumed_is_refused_and_named(gateway, fields, last, param):
    answer = gateway.http.get(GENERATE, params=fields, headers={"last-event-id": last} if last else {})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "tiny", "session_id": "x", "generation_id": "y"}, "is 'tiny', and session_id is given too"),
        ({}, "is absent, and so is session_id"),
    ],
)
def test_a_model_or_a_session_is_needed(gateway, fields, why):
    message = gateway.http.get(GENERATE, params=fields).json()["error"]["message"]
    assert message == f"model {why}; give one of the two"


def test_connecting_again_while_no_server_answers_is_told_to_come_back(gateway):
    fields = {"model": "tiny", "seed": "1"}
    with gateway_url(f"127.0.0.1:{free_port()}") as url:
        first = httpx.get(url + GENERATE, params=fields, timeout=PATIENCE_S)
        answer = httpx.get(url + GENERATE, params=fields, headers={"last-event-id": "5"}, timeout=PATIENCE_S)
    assert first.status_code == 503
    assert (answer.status_code, answer.text) == (200, "retry: 500\n\n")
    assert answer.headers["content-type"].startswith("text/event-stream")
    refused = gateway.http.get(GENERATE, params={"model": "none", "seed": "1"}, headers={"last-event-id": "5"})
    assert refused.status_code == 404  # to come back would not help


@pytest.mark.slow
def test_a_killed_gateway_and_a_killed_server_cost_a_reader_nothing(tiny_repository, tmp_path):
    port, http_port = free_port(), free_port()
    serve = ("--port", str(port), "--store", f"sqlite:{tmp_path}/sessions.db")
    run_gateway = ("gateway", "--address", f"127.0.0.1:{port}", "--port", str(http_port))
    url = f"http://127.0.0.1:{http_port}"
    with Process(tiny_repository, *serve) as server, started(*run_gateway) as gateway:
        assert server.line
        assert gateway.stdout.readline()
        with Client(f"127.0.0.1:{port}") as client:
            session = client.create_session("tiny").id
        reader = EventSource(
            session_id=session, prompt=PROMPT, generation_id="g", seed=3, max_tokens=600, max_tokens_per_second=300
        )
        reader.read(url, events=5)
        gateway.send_signal(signal.SIGKILL)
    with Process(tiny_repository, *serve) as server, started(*run_gateway) as gateway:
        assert server.line
        assert gateway.stdout.readline()
        reader.read(url, events=5)
        server.signal(signal.SIGKILL)
        server.end()
        with Process(tiny_repository, *serve) as again:
            assert again.line
            reader.read_to_the_end(url)
            with Client(f"127.0.0.1:{port}") as client:
                whole = client.generate(PROMPT, model="tiny", seed=3, max_tokens=600).text()
    assert reader.text == whole
