"""Hostile model folders: each is listed with its reason, none is executed, and the other models are served."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct

import pytest

from gruve.v1 import model_pb2 as m
from serving import TINY, refusal

CANARY = "executed"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def bomb(folder):
    return pickle.dumps(Bomb(folder.parent.parent / CANARY))


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace(folder, name, content):
    """Replaces a file and puts its hash into the config, so that only its contents are wrong."""
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    edit(folder, files=config["files"] | {name: hashlib.sha256(content).hexdigest()})


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def weights(content):
    return lambda folder: replace(folder, "model.safetensors", content)


def pickled(name):
    return lambda folder: replace(folder, name, bomb(folder))


def linked(name, target):
    def link(folder):
        (folder / name).unlink()
        os.symlink(target, folder / name)

    return link


def piped(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def sparse(name):
    return lambda folder: os.truncate(folder / name, 1 << 40)


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def path_in_files(folder):
    config = json.loads((folder / "config.json").read_text())
    edit(folder, files=config["files"] | {"../../../etc/passwd": "0" * 64})


HUGE = {"dtype": "F16", "shape": [1 << 40], "data_offsets": [0, 1 << 41]}
HOSTILE = {
    "pickled-weights": (pickled("model.safetensors"), "safetensors"),
    "pickled-tokenizer": (pickled("tokenizer.json"), "not UTF-8"),
    "pickled-config": (
        lambda f: written("config.json", pickle.dumps(Bomb(f.parent.parent / CANARY)))(f),
        "config.json",
    ),
    "no-header": (weights(b"1234"), "its header does not fit"),
    "endless-header": (weights(struct.pack("<Q", (1 << 63) - 1) + b"{}"), "its header does not fit"),
    "deep-header": (weights(safetensors(b"[" * 200_000)), "no readable safetensors header"),
    "list-header": (weights(safetensors([1, 2])), "no readable safetensors header"),
    "huge-tensor": (weights(safetensors({"embedding.weight": HUGE})), "tensor"),
    "other-tensors": (weights(safetensors({})), "lacks tensor"),
    "device-weights": (linked("model.safetensors", "/dev/zero"), "no regular file"),
    "device-config": (linked("config.json", "/dev/zero"), "no regular file"),
    "link-to-itself": (linked("config.json", "config.json"), "cannot be read"),
    "pipe": (piped, "no regular file"),
    "sparse-weights": (sparse("model.safetensors"), "at most"),
    "sparse-config": (sparse("config.json"), "at most"),
    "path-in-files": (path_in_files, "must name"),
    "deep-config": (written("config.json", b"[" * 100_000), "config.json"),
    "huge-layers": (lambda f: edit(f, hidden_size=1 << 40, num_layers=1 << 40), "allowed: 8 to 4096"),
    "huge-number": (written("config.json", b'{"hidden_size": ' + b"9" * 10_000 + b"}"), "config.json"),
    "not-text": (written("config.json", b"\xff\xfe\x00"), "not UTF-8"),
    "long-key": (lambda f: edit(f, **{"x" * 900_000: 1}), "unknown key"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "models"
    shutil.copytree(TINY, folder / "tiny")
    for name, (spoil, _) in HOSTILE.items():
        shutil.copytree(TINY, folder / name)
        spoil(folder / name)
    return folder


def test_hostile_models_are_listed_with_their_reasons_and_nothing_is_executed(start, hostile):
    server = start(models=hostile)
    assert server.serving.models == ("tiny",)
    listed = {model.name: model for model in server.models.ListModels(m.ListModelsRequest()).models}
    assert set(listed) == {*HOSTILE, "tiny"}
    for name, (_, why) in HOSTILE.items():
        assert listed[name].state == m.MODEL_STATE_BROKEN
        assert why in listed[name].state_reason, name
        assert len(listed[name].state_reason) <= 1_000
        assert refusal(lambda: server.generate(model=name)).reason == "MODEL_NOT_SERVING"  # noqa: B023
    assert not (hostile.parent / CANARY).exists()
    assert len(server.read(max_tokens=20).tokens) == 20


def test_the_canary_would_sing(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / CANARY))).close()
    assert (tmp_path / CANARY).exists()
