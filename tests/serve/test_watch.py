"""A server that watches its repository: what has changed and come to rest is reloaded, what is broken is not."""

from __future__ import annotations

import os
import shutil

import pytest

from gruve.serve.models.watch import Changes, ModelWatch, fingerprints
from gruve.v1 import model_pb2 as m
from gruve.v1 import sampling_pb2 as s
from repositories import replace_model, truncate, write_model, write_version
from serving import until

ASK = {"model": "net", "max_tokens": 40, "ignore_eos": True, "sampling": s.SamplingParameters(seed=5)}
ONE, TWO, THREE = ((("config.json", size, 0, 0),) for size in (1, 2, 3))


@pytest.fixture
def models(tmp_path):
    write_model(tmp_path / "models" / "net", 1)
    return tmp_path / "models"


def get(server, name="net"):
    return server.models.GetModel(m.GetModelRequest(name=name)).model


def test_a_folder_is_named_once_when_it_has_changed_and_stayed_the_same_for_one_look():
    changes = Changes({"a": ONE, "b": ONE})
    looks = [
        ({"a": ONE, "b": ONE}, []),
        ({"a": TWO, "b": ONE}, []),
        ({"a": THREE, "b": ONE}, []),
        ({"a": THREE, "b": ONE}, ["a"]),
        ({"a": THREE, "b": ONE}, []),
        ({"a": THREE, "b": ONE, "new": ONE}, []),
        ({"a": THREE, "b": ONE, "new": ONE}, ["new"]),
        ({"a": THREE}, []),
        ({"a": THREE, "b": ()}, []),
        ({"a": THREE, "b": ()}, []),
        ({"a": ONE, "b": TWO}, []),
        ({"a": ONE, "b": TWO}, ["a", "b"]),
        ({"a": ONE, "b": TWO}, []),
    ]
    assert [changes.settled(now) for now, _ in looks] == [names for _, names in looks]


def test_a_fingerprint_changes_with_every_file_of_a_model_and_its_versions(models):
    write_version(models / "net", 1)
    seen = [fingerprints(models)["net"]]
    for change in (
        lambda: (models / "net" / "README.md").write_text("a card"),
        lambda: (models / "net" / "1" / "config.json").write_text("{}"),
        lambda: os.utime(models / "net" / "model.safetensors", ns=(1, 1)),
        lambda: write_version(models / "net", 2),
        lambda: shutil.rmtree(models / "net" / "1"),
    ):
        change()
        seen.append(fingerprints(models)["net"])
        assert fingerprints(models)["net"] == seen[-1]
    assert len(set(seen)) == len(seen)
    os.symlink("nowhere", models / "dangling")
    assert fingerprints(models)["dangling"] == ()


def test_changed_files_are_reloaded_and_half_copied_ones_do_not_take_the_model_down(start, models):
    server = start(models=models, watch_s=0.02)
    old, tokens = get(server).digest, server.read(**ASK).tokens
    write_model(models.parent / "other", 2)
    reloads = count_reloads(server)
    replace_model(models / "net", models.parent / "other")
    truncate(models / "net")
    until(lambda: reloads)
    assert (get(server).digest, server.read(**ASK).tokens) == (old, tokens)
    replace_model(models / "net", models.parent / "other")
    until(lambda: get(server).digest != old)
    shutil.rmtree(models / "net")
    write_model(models / "young", 3)
    until(lambda: "young" in server.server.models.served and get(server, "young").state == m.MODEL_STATE_SERVING)
    assert server.read(**ASK).tokens != tokens
    write_version(models / "young", 1, 4)
    until(lambda: get(server, "young").version == 1)


async def test_a_repository_that_is_gone_is_logged_once_until_it_is_back(models, caplog):
    async def reload(name):
        reloaded.append(name)

    reloaded, watch = [], ModelWatch(models, reload, 1.0)
    await watch.begin()
    models.rename(models.parent / "moved")
    for _ in range(3):
        await watch.look()
    assert [record.why for record in caplog.records] == [f"no model repository at {str(models)!r}: not a folder"]
    write_model(models / "net", 2)
    await watch.look()
    await watch.look()
    assert reloaded == ["net"]


def count_reloads(server) -> list[str]:
    """The names that the server reloads from now on, once each reload has ended."""
    names, watch = [], server.server._watch
    reload = watch._reload

    async def counting(name):
        try:
            await reload(name)
        finally:
            names.append(name)

    watch._reload = counting
    return names
