"""The access log has a line for each call, and nothing in it that is not its reader's business."""

from __future__ import annotations

import json

import pytest

from gruve.cli.output.logs import AccessLog
from gruve.client import Client
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from gruve.v1 import generation_pb2 as g
from gruve.v1 import session_pb2
from serving import refusal, token, until

FACTS = {"method", "code", "tenant", "duration_s", "request_id"}


@pytest.fixture
def lines():
    return []


@pytest.fixture
def logged(start, lines):
    return start(log_call=lines.append)


def wait(lines, count: int) -> list[dict]:
    until(lambda: len(lines) >= count)
    return lines


def test_a_generation_has_its_tokens_and_times(logged, lines):
    logged.read(text="abc", max_tokens=7, ignore_eos=True)
    (line,) = wait(lines, 1)
    assert line.keys() == FACTS | {"model", "prompt_tokens", "generated_tokens", "queue_s", "first_token_s"}
    assert (line["method"], line["code"]) == ("gruve.v1.GenerationService/Generate", "OK")
    assert (line["model"], line["prompt_tokens"], line["generated_tokens"]) == ("tiny", 3, 7)
    assert 0 <= line["queue_s"] <= line["first_token_s"] <= line["duration_s"]
    assert line["tenant"].startswith("ipv4:127.0.0.1")


def test_every_call_has_one_line_with_the_status_it_ended_with(logged, lines):
    refusal(lambda: logged.generate(model="nothing"))
    refusal(lambda: logged.session("forged"))
    call = logged.generate(text="ab", max_tokens=50, ignore_eos=True, max_tokens_per_second=5)
    token(call)
    call.cancel()
    assert [line["code"] for line in wait(lines, 3)] == ["NOT_FOUND", "NOT_FOUND", "CANCELLED"]


def test_a_call_without_credentials_has_a_line_that_says_where_it_came_from(start, lines, tmp_path):
    add_key(tmp_path / "keys.json", "ann", "ann")
    server = start(log_call=lines.append, access=AccessConfig(tmp_path / "keys.json"))
    assert refusal(server.generate).code.name == "UNAUTHENTICATED"
    (line,) = wait(lines, 1)
    assert (line["code"], line["tenant"].startswith("ipv4:127.0.0.1")) == ("UNAUTHENTICATED", True)


@pytest.mark.parametrize(("given", "kept"), [("a-1.b", True), ("x" * 65, False), ("two words", False)])
def test_a_request_id_is_the_clients_if_it_can_be_logged(logged, lines, given, kept):
    request = g.GenerateRequest(model="tiny", max_tokens=1)
    list(logged.generation.Generate(request, metadata=(("x-request-id", given),)))
    assert (wait(lines, 1)[0]["request_id"] == given) == kept


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_prompt_text_key_or_session_id_is_in_it(start, tmp_path, form):
    path = tmp_path / "access.log"
    write = AccessLog(str(path), form)
    server, prompt, secret = start(log_call=write), "abcabcabcabc", "Bearer-0123456789"
    with Client(server.address) as client:
        text = client.generate(prompt, model="tiny", new_session=True, max_tokens=40, ignore_eos=True, seed=3).text()
        session = next(iter(client.list_sessions())).id
        client.generate(prompt, session_id=session, max_tokens=3).text()
        with client.converse(prompt, model="tiny", max_tokens=3) as stream:
            text += stream.text()
    metadata = (("authorization", secret), ("x-request-id", "id-1"))
    server.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session), metadata=metadata)
    until(lambda: path.read_text().count("\n") == 5)
    write.close()
    log = path.read_text()
    assert all(hidden not in log for hidden in (prompt, text, text[:12], session, session[:9], secret))
    assert "id-1" in log
    assert session[:8] in log
    if form == "json":
        assert {json.loads(line)["method"].partition("/")[2] for line in log.splitlines()} >= {"Generate", "Converse"}


def test_a_file_that_was_moved_away_is_opened_again(tmp_path):
    path = tmp_path / "access.log"
    write = AccessLog(str(path), "text")
    write({"method": "m", "code": "OK", "tenant": "t"})
    path.rename(tmp_path / "old.log")
    write({"method": "m", "code": "OK", "tenant": "u"})
    write.close()
    assert path.read_text().endswith(" m OK tenant=u\n")
    assert (tmp_path / "old.log").read_text().count("\n") == 1
