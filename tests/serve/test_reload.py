"""ReloadModel: another model takes a name while streams run, and a broken one does not."""

from __future__ import annotations

import concurrent.futures
import os
import resource
import shutil
import sys
import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conversing import Talk
from gruve.v1 import model_pb2 as m
from gruve.v1 import sampling_pb2 as s
from repositories import replace_model, truncate, write_model
from serving import HELD, Gate, Read, refusal, token, until

ASK = {"model": "net", "max_tokens": 200, "ignore_eos": True, "sampling": s.SamplingParameters(seed=5)}
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def models(tmp_path) -> Path:
    """A repository with the model `net`; beside it, in `other`, another of the same tokenizer."""
    write_model(tmp_path / "models" / "net", 1)
    write_model(tmp_path / "other", 2)
    return tmp_path / "models"


def reload(server, name="net") -> m.Model:
    return server.models.ReloadModel(m.ReloadModelRequest(name=name)).model


def get(server, name="net") -> m.Model:
    return server.models.GetModel(m.GetModelRequest(name=name)).model


def health(server, service=""):
    return health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(service=service)).status


def engine_threads() -> int:
    """How many threads decode; other servers of these tests may have some too."""
    return sum(thread.name.startswith("gruve-") for thread in threading.enumerate())


def count_loads(server) -> list[str]:
    """The names that the server loads from now on."""
    loaded, load = [], server.server.models.loaded.load_host

    async def counting(name, version):
        loaded.append(name)
        return await load(name, version)

    server.server.models.loaded.load_host = counting
    return loaded


def test_a_running_stream_finishes_on_the_old_model_while_new_requests_get_the_new_one(start, models):
    server = start(models=models)
    expected, threads = server.read(**ASK).tokens, engine_threads()
    gate = Gate(server.host("net"))
    running = server.generate(**ASK)
    gate.let(1)
    begun = [next(running)]
    old = begun[0].start.model_digest
    replace_model(models / "net", models.parent / "other")
    new = reload(server)
    assert new.digest not in ("", old)
    assert get(server) == new
    fresh = server.read(**ASK)
    assert (fresh.start.model_digest, fresh.tokens == expected) == (new.digest, False)
    gate.open()
    finished = Read(begun + list(running))
    assert (finished.tokens, finished.reason) == (expected, "LENGTH")
    until(lambda: [host.model.digest for host in server.server.models.hosts] == [new.digest])
    until(lambda: engine_threads() <= threads)
    assert server.read(**ASK).tokens == fresh.tokens == start(models=models).read(**ASK).tokens


def test_a_conversation_that_waits_for_credit_keeps_its_model(start, models):
    server = start(models=models)
    expected = server.read(**ASK).tokens
    talk = Talk(server).begin(credit=10, **ASK).until(10)
    replace_model(models / "net", models.parent / "other")
    reload(server)
    talk.grant(1_000)
    assert list(talk.rest().tokens.values()) == expected


def test_what_cannot_be_loaded_is_refused_with_the_reason_and_the_old_model_serves(start, models):
    server = start(models=models)
    before, tokens = get(server), server.read(**ASK).tokens
    config = (models / "net" / "config.json").read_text()

    def break_config(text):
        (models / "net" / "config.json").write_text(text)

    for damage, why in (
        (lambda: truncate(models / "net"), "model.safetensors has 500 bytes"),
        (lambda: break_config(config[:40]), "config.json is not JSON"),
        (lambda: break_config(config.replace('"cell"', '"attention": true, "cell"')), "unknown key 'attention'"),
        (lambda: os.remove(models / "net" / "config.json"), "config.json cannot be read"),
        (lambda: shutil.rmtree(models / "net"), "its folder is gone"),
    ):
        damage()
        failure = refusal(lambda: reload(server))
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RELOAD_REFUSED")
        assert why in failure.message
        assert why in failure.metadata["state_reason"]
        assert (get(server), server.read(**ASK).tokens) == (before, tokens)
        assert health(server) == health(server, "net") == SERVING
    write_model(models / "net", 2)
    assert reload(server).digest != before.digest


def test_files_that_were_copied_in_part_are_refused_until_they_are_whole(start, models):
    server, other = start(models=models), models.parent / "other"
    before = get(server)
    for name in ("README.md", "config.json", "tokenizer.json", "model.safetensors"):
        if (other / name).exists():
            shutil.copy(other / name, models / "net" / name)
            if name != "model.safetensors":
                assert name == "README.md" or refusal(lambda: reload(server)).reason == "RELOAD_REFUSED"
                assert get(server) == before
    assert reload(server).digest != before.digest


def test_reloading_unchanged_files_has_no_effect(start, models):
    server = start(models=models)
    host, loads = server.host("net"), count_loads(server)
    assert reload(server) == get(server)
    assert server.host("net") is host
    assert loads == []


def test_reloads_at_the_same_time_load_once(start, models):
    server = start(models=models)
    loads = count_loads(server)
    replace_model(models / "net", models.parent / "other")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: reload(server), range(8)))
    assert loads == ["net"]
    assert all(answer == answers[0] for answer in answers)


def test_a_name_that_is_no_folder_of_the_repository_is_unknown(start, models):
    server = start(models=models)
    for name in ("", ".", "..", "../other", "net/", "net\0", "n" * 10_000):
        failure = refusal(lambda name=name: reload(server, name))
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")
        assert "the server has: net" in failure.message


def test_a_model_is_served_on_when_the_whole_repository_is_gone(start, models):
    server = start(models=models)
    models.rename(models.parent / "moved")
    failure = refusal(lambda: reload(server, "net"))
    assert failure.reason == "RELOAD_REFUSED"
    assert "serves as before: its folder is gone from the repository" in failure.message
    assert len(server.read(**ASK).tokens) == 200


def test_a_new_model_is_loaded_and_a_broken_one_is_repaired(start, models):
    server = start(models=models)
    write_model(models / "young", 3)
    truncate(models / "young")
    assert "500 bytes" in refusal(lambda: reload(server, "young")).message
    assert get(server, "young").state == m.MODEL_STATE_BROKEN
    assert health(server, "young") == NOT_SERVING
    write_model(models / "young", 3)
    assert reload(server, "young").state == m.MODEL_STATE_SERVING
    until(lambda: health(server, "young") == SERVING)
    assert len(server.read(**{**ASK, "model": "young"}).tokens) == 200
    assert [x.name for x in server.models.ListModels(m.ListModelsRequest()).models] == ["net", "young"]


def test_a_session_keeps_its_model_while_that_is_loaded_and_is_refused_afterwards(start, models):
    server = start(models=models)
    whole = server.read(**ASK).tokens
    session = server.create("net")
    ask = {"session_id": session, "sampling": ASK["sampling"], "ignore_eos": True}
    tokens = server.read(**ask, max_tokens=20).tokens
    other = server.generate(**ASK, max_tokens_per_second=HELD)
    token(other)
    replace_model(models / "net", models.parent / "other")
    new = reload(server)
    tokens += server.read(**ask, max_tokens=20).tokens
    assert tokens == whole[:40]
    other.cancel()
    until(lambda: len(server.server.models.hosts) == 1)
    failure = refusal(lambda: server.generate(**ask))
    assert (failure.reason, failure.metadata["model_digest"]) == ("MODEL_CHANGED", new.digest)
    rebased = server.read(**ask, max_tokens=5, rebase=True)
    assert rebased.start.model_digest == server.session(session).model_digest == new.digest


def test_a_model_whose_engine_has_failed_is_loaded_again_from_unchanged_files(start, models):
    server = start(models=models)
    tokens = server.read(**ASK).tokens
    server.host("net").engine._fail("broken")
    until(lambda: health(server) == health(server, "net") == NOT_SERVING)
    assert refusal(lambda: server.generate(**ASK)).reason == "ENGINE_FAILED"
    reload(server)
    assert server.read(**ASK).tokens == tokens
    until(lambda: health(server) == health(server, "net") == SERVING)


def test_metrics_show_the_model_that_serves_and_go_on_counting(start, models):
    server = start(models=models)
    old = get(server)
    server.read(**ASK)
    replace_model(models / "net", models.parent / "other")
    new = reload(server)
    server.read(**ASK)
    labels = {"model": "net", "backend": new.backend, "numerics_id": new.numerics_id}
    until(lambda: len(server.server.models.hosts) == 1)
    until(lambda: not server.metric("gruve_backend_info", **labels, digest=old.digest[:16]))
    assert server.metric("gruve_backend_info", **labels, digest=new.digest[:16]) == 1.0
    assert server.metric("gruve_generation_tokens_total", model="net") == 400


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_threads_return_after_reloads(start, tmp_path):
    models, sizes = tmp_path / "models", {"V": 64, "H": 256}
    for seed in (1, 2):
        write_model(tmp_path / str(seed), seed, **sizes)
    replace_model(models / "net", tmp_path / "1")
    server = start(models=models)
    resident, threads = [], []
    for turn in range(40):
        replace_model(models / "net", tmp_path / str(2 - turn % 2))
        reload(server)
        server.read(**{**ASK, "max_tokens": 3})
        until(lambda: len(server.server.models.hosts) == 1 and not server.server.models.loaded.closing)
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
        threads.append(engine_threads())
    one_model = 2 * 4 * server.host("net").model.config.parameter_count()
    # The allocator moves by a model or two; half of each model's weights, kept 20 times, would be more.
    assert max(resident[20:]) - max(resident[:20]) < 4 * one_model
    assert max(threads[20:]) <= max(threads[:20])
