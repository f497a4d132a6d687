"""Versions of one model on a server: which one answers, which one a session keeps, and what is said of them."""

from __future__ import annotations

import os
import shutil

import grpc
import pytest

from gruve.serve.models import hosts as model_hosts
from gruve.v1 import model_pb2 as m
from gruve.v1 import sampling_pb2 as s
from repositories import truncate, write_version
from serving import refusal, until

ASK = {"max_tokens": 40, "ignore_eos": True, "sampling": s.SamplingParameters(seed=5)}


@pytest.fixture
def models(tmp_path):
    """A repository with versions 1 and 2 of the model `net`."""
    (tmp_path / "models").mkdir()
    for number in (1, 2):
        write_version(tmp_path / "models" / "net", number, number)
    return tmp_path / "models"


def get(server, name="net"):
    return server.models.GetModel(m.GetModelRequest(name=name)).model


def reload(server):
    return server.models.ReloadModel(m.ReloadModelRequest(name="net")).model


def test_a_name_means_the_highest_version_and_a_number_or_digest_its_own(start, models):
    server = start(models=models)
    newest = get(server)
    first, second = newest.versions
    assert (newest.version, newest.digest) == (2, second.digest)
    assert (first.number, first.state, second.state) == (1, m.MODEL_STATE_UNLOADED, m.MODEL_STATE_SERVING)
    named = {
        "net": second,
        "net@1": first,
        "net@2": second,
        f"net@sha256:{first.digest[:12]}": first,
        f"net@sha256:{second.digest}": second,
    }
    for name, version in named.items():
        stream = server.read(model=name, **ASK)
        assert (stream.start.model, stream.start.model_digest) == ("net", version.digest)
        assert (get(server, name).version, get(server, name).name) == (version.number, "net")
    os.remove(models / "net" / "2" / "config.json")
    assert start(models=models).read(model="net", **ASK).tokens == server.read(model="net@1", **ASK).tokens


def test_metrics_and_sessions_know_the_name_alone(start, models):
    server = start(models=models)
    session = server.create("net@1")
    assert server.session(session).model == "net"
    assert server.session(session).model_digest == get(server, "net@1").digest
    server.read(model="net@1", **ASK)
    server.read(model="net", **ASK)
    labels = {dict(labels)["model"] for labels in server.metrics()["gruve_generation_tokens_total"]}
    assert labels == {"net"}
    assert server.metric("gruve_generation_tokens_total", model="net") == 80


@pytest.mark.parametrize("selector", ["3", "latest", "sha256:" + "0" * 12, "sha256:00", "9" * 9_000])
def test_a_version_that_is_not_there_is_refused_with_those_that_are(start, models, selector):
    server = start(models=models)
    failure = refusal(lambda: server.generate(model=f"net@{selector}"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")
    assert "model 'net' has no version" in failure.message


def test_a_session_keeps_its_version_while_that_is_in_the_repository(start, models):
    shutil.move(models / "net" / "2", models.parent / "2")
    server = start(models=models)
    whole = server.read(model="net", **ASK).tokens
    session = server.create("net")
    ask = {**ASK, "session_id": session, "max_tokens": 10}
    tokens = server.read(**ask).tokens
    shutil.move(models.parent / "2", models / "net" / "2")
    assert reload(server).version == 2
    assert server.read(model="net", **ASK).tokens != whole
    tokens += server.read(**ask).tokens
    assert tokens == whole[:20]
    shutil.rmtree(models / "net" / "1")
    reload(server)
    until(lambda: len(server.server.models.hosts) == 1)
    assert refusal(lambda: server.generate(**ask)).reason == "MODEL_CHANGED"
    assert server.read(**ask, rebase=True).start.model_digest == get(server).digest


def test_a_new_generation_with_rebase_takes_the_newest_version(start, models):
    server = start(models=models)
    session = server.create("net@1")
    server.read(session_id=session, **ASK)
    assert server.session(session).model_digest == get(server, "net@1").digest
    rebased = server.read(session_id=session, **ASK, rebase=True)
    assert rebased.start.model_digest == get(server).digest


def test_a_broken_newest_version_is_listed_and_the_next_lower_one_serves(start, models):
    write_version(models / "net", 3, 3)
    truncate(models / "net" / "3")
    server = start(models=models)
    assert [version.state for version in get(server).versions] == [
        m.MODEL_STATE_UNLOADED,
        m.MODEL_STATE_SERVING,
        m.MODEL_STATE_BROKEN,
    ]
    assert (get(server).version, get(server, "net@3").state) == (2, m.MODEL_STATE_BROKEN)
    failure = refusal(lambda: server.generate(model="net@3"))
    assert failure.reason == "MODEL_NOT_SERVING"
    assert "500 bytes" in failure.metadata["state_reason"]
    assert refusal(lambda: reload(server)).reason == "RELOAD_REFUSED"
    shutil.rmtree(models / "net" / "3")
    assert reload(server).version == 2


def test_an_older_version_leaves_memory_when_it_is_idle(start, models, monkeypatch):
    monkeypatch.setattr(model_hosts, "OLD_VERSION_IDLE_S", 0.0)
    server = start(models=models)
    for _ in range(3):
        server.read(model="net@1", **ASK)
        until(lambda: [host.version.number for host in server.server.models.hosts] == [2])


def test_the_models_are_listed_a_page_at_a_time(start, models):
    for name in ("a", "b", "c", "z"):
        write_version(models / name, 1)
    server = start(models=models)
    names, token = [], ""
    while True:
        page = server.models.ListModels(m.ListModelsRequest(page_size=2, page_token=token))
        assert 1 <= len(page.models) <= 2
        names += [model.name for model in page.models]
        if not (token := page.next_page_token):
            break
    assert names == ["a", "b", "c", "net", "z"]
    whole = server.models.ListModels(m.ListModelsRequest(page_size=5))
    assert (len(whole.models), whole.next_page_token) == (5, "")
    for request, field in (({"page_size": 0}, "page_size"), ({"page_token": "nonsense!"}, "page_token")):
        failure = refusal(lambda request=request: server.models.ListModels(m.ListModelsRequest(**request)))
        assert (failure.reason, failure.violations[0].field) == ("INVALID_FIELD", field)


@pytest.mark.parametrize("numbers", [(2,), (1, 2)])
def test_each_version_that_is_broken_at_the_start_is_logged_once(start, models, caplog, numbers):
    write_version(models / "other", 1, 1)
    for number in numbers:
        truncate(models / "net" / str(number))
    start(models=models)
    logged = [vars(record) for record in caplog.records if record.message == "model is broken"]
    assert [record["model"] for record in logged] == ["net"] * len(numbers)
