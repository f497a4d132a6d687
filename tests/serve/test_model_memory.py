"""A limit on the memory of models: each is loaded by the first request for it, and idle ones leave for others."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import os
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from gruve.decode.choose import DecodeConfig
from gruve.errors import ModelBroken, ModelUnknown
from gruve.model.repository import TOKENIZER, WEIGHTS, read_config
from gruve.serve import metrics
from gruve.serve.models.memory import least_recently_used, model_bytes
from gruve.v1 import model_pb2 as m
from gruve.v1 import sampling_pb2 as s
from repositories import replace_model, truncate, write_model, write_version
from serving import Gate, broken, refusal, until

ASK = {"max_tokens": 40, "ignore_eos": True, "sampling": s.SamplingParameters(seed=5)}
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def models(tmp_path) -> Path:
    """A repository with five models of one size, each with weights of its own."""
    for seed, name in enumerate(NAMES):
        write_model(tmp_path / "models" / name, seed)
    return tmp_path / "models"


@pytest.fixture
def start_limited(start, models):
    """Starts a server of these models with room for `room` of them."""

    def start_one(room: float = 2, **fields):
        return start(models=models, model_memory_bytes=int(room * size_of(models / "a")), **fields)

    return start_one


def size_of(folder: Path) -> int:
    return model_bytes(read_config(folder), DecodeConfig("cpu", 8))


def loaded(server) -> list[str]:
    return sorted(host.model.name for host in server.server.models.hosts)


def get(server, name) -> m.Model:
    return server.models.GetModel(m.GetModelRequest(name=name)).model


def reload(server, name) -> m.Model:
    return server.models.ReloadModel(m.ReloadModelRequest(name=name)).model


def health(server, service=""):
    return health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(service=service)).status


def damage(folder: Path) -> None:
    """Changes the last weight, which only reading them shows."""
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def test_a_model_that_stays_unloaded_leaves_the_metrics_and_begins_again_at_0(start_limited, monkeypatch):
    server = start_limited(1)

    def tokens():
        return {labels[0][1]: n for labels, n in server.metrics().get("gruve_generation_tokens_total", {}).items()}

    for name in ("a", "b", "a", "b"):
        server.read(model=name, **ASK)
    assert tokens() == {"a": 80, "b": 80}
    monkeypatch.setattr(metrics, "UNUSED_S", 0.0)
    server.read(model="c", **ASK)
    until(lambda: "b" not in tokens())
    assert tokens() == {"a": 80, "c": 40}  # a was unloaded when series stayed for longer
    found = [labels for series in server.metrics().values() for labels in series]
    assert not [labels for labels in found if ("model", "b") in labels]
    server.read(model="a", **ASK)
    until(lambda: "c" not in tokens())
    server.read(model="b", **ASK)
    until(lambda: "a" not in tokens())  # its first removal was put off when it was loaded again
    assert tokens() == {"b": 40}


class HeldLoads:
    """Stops each load of a server until the test lets it go on, and keeps their names."""

    def __init__(self, server) -> None:
        self._server, self.names, self._go_on = server, [], asyncio.Event()
        self._load = server.server.models.loaded.load_host
        server.server.models.loaded.load_host = self._held

    async def _held(self, name, version):
        self.names.append(name)
        await self._go_on.wait()
        return await self._load(name, version)

    def let(self) -> None:
        self._server._loop.call_soon_threadsafe(self._go_on.set)

    def waiting(self) -> int:
        """How many calls wait for a model."""
        return sum(self._server.server.models.loaded.wanted.values())


def test_more_models_than_fit_all_answer_as_with_all_of_them_loaded(start, start_limited, models):
    expected = {name: start(models=models).read(model=name, **ASK).tokens for name in NAMES}
    server = start_limited(2)
    assert (server.serving.models, loaded(server)) == (tuple(NAMES), [])
    for name in 2 * NAMES:
        assert server.read(model=name, **ASK).tokens == expected[name]
        assert name in loaded(server)
        assert len(loaded(server)) <= 2
    shown, size = server.metrics(), size_of(models / "a")
    one = {name: shown[f"gruve_{name}"][()] for name in ("models_loaded", "model_loads_total", "model_unloads_total")}
    assert one == {"models_loaded": 2, "model_loads_total": 10, "model_unloads_total": 8}
    assert shown["gruve_model_memory_bytes"][()] == shown["gruve_model_memory_limit_bytes"][()] == 2 * size


def test_the_model_that_was_not_used_for_longest_leaves(start_limited):
    server = start_limited(2)
    for name, after in (("a", ["a"]), ("b", ["a", "b"]), ("a", ["a", "b"]), ("c", ["a", "c"]), ("b", ["b", "c"])):
        server.read(model=name, **ASK)
        assert loaded(server) == after


def test_a_model_that_is_not_loaded_is_listed_as_such_and_healthy(start_limited):
    server = start_limited(2)
    assert health(server) == health(server, "a") == SERVING
    before = get(server, "a")
    assert (before.state, before.vocabulary_size, before.tokenizer) == (m.MODEL_STATE_UNLOADED, 13, "characters")
    server.read(model="a", **ASK)
    states = [model.state for model in server.models.ListModels(m.ListModelsRequest()).models]
    assert states == [m.MODEL_STATE_SERVING] + 4 * [m.MODEL_STATE_UNLOADED]
    assert get(server, "a").digest == before.digest


def test_models_in_use_stay_and_others_are_refused_until_one_is_idle(start_limited):
    server = start_limited(2)
    expected = {name: server.read(model=name, **ASK).tokens for name in ("a", "b")}
    gates = [Gate(server.host(name)) for name in ("a", "b")]
    streams = [server.generate(model=name, **ASK) for name in ("a", "b")]
    until(lambda: sum(host.users for host in server.server.models.hosts) == 2)
    failure = refusal(lambda: server.generate(model="c", **ASK))
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    assert (failure.metadata["limit"], failure.retry_after_s) == ("model_memory", 1.0)
    assert "model 'c' takes" in failure.message
    assert loaded(server) == ["a", "b"]
    gates[0].open()
    assert [t for message in streams[0] for t in message.token_ids] == expected["a"]
    assert server.read(model="c", **ASK).reason == "LENGTH"
    assert loaded(server) == ["b", "c"]
    gates[1].open()
    assert [t for message in streams[1] for t in message.token_ids] == expected["b"]


def test_requests_for_a_model_that_is_not_loaded_load_it_once(start_limited):
    server = start_limited(1)
    held = HeldLoads(server)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(server.read, model="a", **ASK) for _ in range(8)]
        until(lambda: held.waiting() == 8)
        held.let()
        assert all(read.result().tokens == reads[0].result().tokens for read in reads)
    assert held.names == ["a"]


@pytest.mark.parametrize("broken", [False, True])
def test_a_request_that_comes_at_the_very_end_of_a_load_gets_its_outcome(start_limited, broken):
    server = start_limited(1)
    models, late = server.server.models, []
    load = models.loaded.load_host

    async def end_with_a_request(name, version):
        host = await load(name, version)
        late.append(asyncio.ensure_future(models.acquire(name)))  # it runs before anything that waits for the load
        if broken:
            await host.close()
            raise ModelBroken("broken for this test")
        return host

    models.loaded.load_host = end_with_a_request
    if broken:
        assert refusal(lambda: server.generate(model="a", **ASK)).reason == "MODEL_NOT_SERVING"
    else:
        assert server.read(model="a", **ASK).reason == "LENGTH"
    until(lambda: late[0].done())
    if broken:
        assert isinstance(late[0].exception(), ModelBroken)
    else:
        assert late[0].result() is server.host("a")


def test_requests_that_wait_for_a_model_keep_it_from_being_unloaded_before_they_use_it(start_limited):
    server = start_limited(1)
    held = HeldLoads(server)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.read, model="a", **ASK)
        until(lambda: held.waiting() == 1)
        second = pool.submit(refusal, lambda: server.generate(model="b", **ASK))
        until(lambda: held.waiting() == 2)
        held.let()
        assert first.result().reason == "LENGTH"
        second.result()  # a model that is being loaded for another request is not idle
    assert held.names == ["a"]


def test_a_deadline_that_passes_during_a_load_ends_the_call_and_not_the_load(start_limited):
    server = start_limited(1)
    held = HeldLoads(server)
    failure = refusal(lambda: server.generate(model="a", timeout=0.05, **ASK))
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: held.waiting() == 0)
    held.let()
    assert server.read(model="a", **ASK).reason == "LENGTH"
    assert held.names in (["a"], [])  # the call may have ended before it asked for the model


def test_a_session_goes_on_after_its_model_was_unloaded(start_limited):
    server = start_limited(1)
    whole = server.read(model="a", **ASK).tokens
    session = server.create("a")
    ask = {**ASK, "session_id": session, "max_tokens": 10}
    tokens = []
    for other in ("b", "c", "d"):
        tokens += server.read(**ask).tokens
        server.read(model=other, **ASK)
        assert loaded(server) == [other]
    assert tokens == whole[:30]


def test_a_text_is_cut_into_tokens_without_its_models_weights(start_limited, models):
    server = start_limited(1)
    ids = [3, 4, 5]
    text = server.models.Detokenize(m.DetokenizeRequest(model="a", token_ids=ids)).text
    assert list(server.models.Tokenize(m.TokenizeRequest(model="a", text=text)).token_ids) == ids
    assert loaded(server) == []
    (models / "b" / TOKENIZER).write_text((models / "b" / TOKENIZER).read_text() + " ")
    failure = refusal(lambda: server.models.Tokenize(m.TokenizeRequest(model="b", text=text)))
    assert failure.reason == "MODEL_NOT_SERVING"
    assert "sha256" in failure.message


def test_what_is_damaged_answers_why_and_costs_the_other_models_nothing(start_limited, models):
    truncate(models / "a")
    damage(models / "b")
    server = start_limited(2)
    assert [name for name, why in server.serving.broken] == ["a"]
    assert "500 bytes" in get(server, "a").state_reason
    assert (get(server, "b").state, health(server, "b")) == (m.MODEL_STATE_UNLOADED, SERVING)
    for _ in range(2):
        failure = refusal(lambda: server.generate(model="b", **ASK))
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_SERVING")
        assert "sha256" in failure.metadata["state_reason"]
    until(lambda: health(server, "b") == NOT_SERVING)
    assert server.server.models.loaded.memory.used_bytes == 0
    for name in ("c", "d"):
        assert server.read(model=name, **ASK).reason == "LENGTH"
    assert (loaded(server), health(server)) == (["c", "d"], SERVING)


def test_a_model_larger_than_the_limit_is_named_at_the_start_and_refused(start, start_limited, models):
    write_model(models / "large", V=64, H=64)
    server = start_limited(1)
    [(name, why)] = server.serving.broken
    assert (name, health(server, "large")) == ("large", NOT_SERVING)
    assert "with 8 slots; all models together may take" in why
    failure = refusal(lambda: server.generate(model="large", **ASK))
    assert (failure.reason, failure.metadata["state_reason"]) == ("MODEL_NOT_SERVING", why)
    assert server.read(model="a", **ASK).reason == "LENGTH"
    with pytest.raises(ModelUnknown, match="all models together may take"):
        start(models=models, model_memory_bytes=1)


def test_versions_are_loaded_by_number_and_digest_like_models(start, models):
    for number in (1, 2):
        write_version(models / "net", number, 10 + number)
    server = start(models=models, model_memory_bytes=size_of(models / "a"))
    first, second = get(server, "net").versions
    tokens = {
        name: server.read(model=name, **ASK).tokens
        for name in ("net", "net@1", f"net@sha256:{second.digest[:12]}", f"net@sha256:{first.digest}")
    }
    by_digest = list(tokens.values())
    assert by_digest[0] == by_digest[2] != by_digest[1] == by_digest[3]
    assert [host.version.number for host in server.server.models.hosts] == [1]


def test_a_reload_switches_a_model_that_is_not_loaded_and_refuses_a_damaged_one(start_limited, models):
    server = start_limited(2)
    old = get(server, "a").digest
    tokens = server.read(model="b", **ASK).tokens
    replace_model(models / "a", models / "b")
    damage(models / "a")
    assert "sha256" in refusal(lambda: reload(server, "a")).metadata["state_reason"]
    assert get(server, "a").digest == old
    replace_model(models / "a", models / "b")
    new = reload(server, "a")
    assert (new.state, new.digest) == (m.MODEL_STATE_UNLOADED, get(server, "b").digest)
    assert server.read(model="a", **ASK).tokens == tokens


@pytest.mark.parametrize(("room", "state"), [(2, m.MODEL_STATE_SERVING), (1, m.MODEL_STATE_UNLOADED)])
def test_a_reload_loads_beside_a_model_in_use_where_there_is_room(start_limited, models, room, state):
    server = start_limited(room)
    old, new = (server.read(model=name, **ASK).tokens for name in ("b", "a"))
    server.read(model="b", **ASK)
    gate = Gate(server.host("b"))
    stream = server.generate(model="b", **ASK)
    until(lambda: server.host("b").users)
    replace_model(models / "b", models / "a")
    assert reload(server, "b").state == state
    gate.open()
    assert [t for message in stream for t in message.token_ids] == old
    assert server.read(model="b", **ASK).tokens == new


def test_a_model_whose_engine_has_failed_is_healthy_again_once_it_was_unloaded_or_reloaded(start_limited):
    server = start_limited(1)
    tokens = server.read(model="a", **ASK).tokens
    for recover in (lambda: server.read(model="b", **ASK), lambda: reload(server, "a")):
        server.read(model="a", **ASK)
        server.host("a").engine._fail("broken")
        until(lambda: health(server) == health(server, "a") == NOT_SERVING)
        recover()
        until(lambda: health(server) == health(server, "a") == SERVING)
        assert server.read(model="a", **ASK).tokens == tokens


def test_a_server_that_shuts_down_refuses_those_who_wait_for_a_model(start_limited):
    server = start_limited(2)
    held = HeldLoads(server)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(broken, lambda name=name: server.generate(model=name, **ASK)) for name in ("a", "b")]
        until(lambda: held.waiting() == 2)
        closing = server.close()
        until(lambda: server.server.models.loaded.ended)
        held.let()
        assert any(call.result()[1] is not None for call in calls)  # the one that did not load
        closing.result()
    assert len(held.names) == 1
    assert server.server.models.loaded.memory.used_bytes == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_returns_when_models_are_unloaded(start, tmp_path):
    models = tmp_path / "models"
    for name, seed in (("a", 1), ("b", 2)):
        write_model(models / name, seed, V=64, H=256)
    server = start(models=models, model_memory_bytes=size_of(models / "a"))
    resident = []
    for turn in range(16):
        server.read(model="ab"[turn % 2], **{**ASK, "max_tokens": 3})
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"))
    one_model = 2 * 4 * server.host("b").model.config.parameter_count()
    # The allocator moves by a model or two; the weights of 8 models that were kept would be more.
    assert max(resident[8:]) - max(resident[:8]) < 4 * one_model
    assert server.server.models.loaded.memory.used_bytes == size_of(models / "a")


@dataclasses.dataclass(frozen=True)
class Idle:
    memory_bytes: int
    idle_since_s: float


IDLE = st.lists(st.builds(Idle, st.integers(1, 9), st.integers(0, 5).map(float)), max_size=6)


@given(IDLE, st.integers(-5, 40))
def test_the_models_to_unload_are_the_longest_idle_and_no_more_than_are_needed(idle, missing):
    chosen = least_recently_used(idle, missing)
    if chosen is None:
        assert sum(model.memory_bytes for model in idle) < missing
        return
    assert chosen == sorted(idle, key=lambda model: model.idle_since_s)[: len(chosen)]
    assert sum(model.memory_bytes for model in chosen) >= missing
    assert not chosen or sum(model.memory_bytes for model in chosen[:-1]) < missing
