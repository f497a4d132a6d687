"""Adding a model to a repository: from folders and archives, checked, whole or not at all, extracting nothing else."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from gruve.cli import main
from gruve.errors import ModelBroken, ModelExists
from gruve.model import install as installing
from gruve.model.install import install
from gruve.model.repository import load

TINY = Path(__file__).parents[2] / "models" / "tiny"
FILES = ("README.md", "config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in FILES:
        shutil.copy(TINY / name, folder)
    return folder


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def contents(prefix: str = "") -> dict[str, bytes]:
    return {prefix + name: (TINY / name).read_bytes() for name in FILES}


def is_empty(repository: Path) -> bool:
    return not repository.exists() or not any(repository.iterdir())


def test_a_folder_is_copied_under_its_name(model, tmp_path):
    added = install(model, tmp_path / "models")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["mine"]
    assert sorted(path.name for path in (tmp_path / "models" / "mine").iterdir()) == sorted(FILES)
    assert added.digest == load(tmp_path / "models" / "mine").digest == load(TINY).digest
    assert install(model, tmp_path / "models", "other").name == "other"


@pytest.mark.parametrize("prefix", ["", "tiny/", "a/b/"])
@pytest.mark.parametrize(("pack", "suffix"), [(zipped, ".zip"), (tarred, ".tar")])
def test_an_archive_is_read_wherever_the_model_lies_in_it(pack, suffix, prefix, tmp_path):
    files = {**contents(prefix), "notes.txt": b"x", "../../evil": b"x", "/evil": b"x"}
    assert install(pack(tmp_path / f"mine{suffix}", files), tmp_path / "deep" / "models").name == "mine"
    assert sorted(path.name for path in (tmp_path / "deep" / "models" / "mine").iterdir()) == sorted(FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", f"mine{suffix}"]


def test_a_name_that_is_taken_is_refused_and_what_is_there_stays(model, tmp_path):
    install(model, tmp_path / "models")
    with pytest.raises(ModelExists, match=f"is there already, with digest {load(TINY).digest[:12]}"):
        install(model, tmp_path / "models")
    (tmp_path / "models" / "file").write_text("x")
    with pytest.raises(ModelExists, match="is there already"):
        install(model, tmp_path / "models", "file")
    with pytest.raises(ModelExists, match="the folder of one model"):
        install(model, tmp_path / "models" / "mine", "inner")


def test_a_name_that_another_process_takes_meanwhile_is_refused(model, tmp_path, monkeypatch):
    def slow_load(folder, name):
        (tmp_path / "models" / "mine").mkdir()
        (tmp_path / "models" / "mine" / "config.json").write_text("x")
        return load(folder, name)

    monkeypatch.setattr(installing, "load", slow_load)
    with pytest.raises(ModelExists, match="is there already"):
        install(model, tmp_path / "models")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda content: content[:-1], "expects"),
        ("model.safetensors", lambda content: content + bytes(5 << 20), "has more than"),
        ("tokenizer.json", lambda content: content.replace(b"!", b"?"), "expects"),
        ("config.json", lambda content: content.replace(b'"gru"', b'"gnu"'), "config.json"),
        ("config.json", lambda content: b"\xff" + content, "is not UTF-8"),
        ("model.safetensors", None, "has no model.safetensors"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_broken_model_is_refused_and_leaves_nothing(kind, name, change, message, model, tmp_path):
    if change is None:
        (model / name).unlink()
    else:
        (model / name).write_bytes(change((model / name).read_bytes()))
    source, files = model, {path.name: path.read_bytes() for path in model.iterdir()}
    if kind != "folder":
        source = (zipped if kind == "zip" else tarred)(tmp_path / f"mine.{kind}", files)
    with pytest.raises(ModelBroken, match=message):
        install(source, tmp_path / "models")
    assert is_empty(tmp_path / "models")


def test_no_more_is_read_of_an_archive_than_a_model_can_have(tmp_path):
    bomb = zipped(tmp_path / "bomb.zip", {**contents(), "tokenizer.json": bytes(64 << 20)})
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(ModelBroken, match="has more than 16777216 bytes"):
        install(bomb, tmp_path / "models")
    many = {f"{number}.txt": b"" for number in range(1_001)}
    for pack, suffix in ((zipped, ".zip"), (tarred, ".tar")):
        with pytest.raises(ModelBroken, match="1000"):
            install(pack(tmp_path / f"many{suffix}", many), tmp_path / "models")


def test_an_archive_of_another_kind_is_refused(tmp_path):
    (tmp_path / "text.zip").write_text("text")
    (tmp_path / "text.tar").write_text("text")
    link = tarfile.TarInfo("config.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        archive.addfile(link)
    sources = {
        tmp_path / "text.zip": "cannot be read as a zip archive",
        tmp_path / "text.tar": "cannot be read as an uncompressed tar archive",
        tarred(tmp_path / "gzipped.tar", contents(), "w:gz"): "cannot be read as an uncompressed tar archive",
        tmp_path / "link.tar": "holds 0 files called config.json",
        zipped(tmp_path / "two.zip", {**contents("a/"), **contents("b/")}): "holds 2 files called config.json",
        zipped(tmp_path / "lzma.zip", contents(), zipfile.ZIP_LZMA): "by another method than deflate",
        TINY / "model.safetensors": "is no model; allowed: a folder with",
        tmp_path / "absent": "there is no folder or file",
    }
    for source, message in sources.items():
        with pytest.raises(ModelBroken, match=message):
            install(source, tmp_path / "models", "mine")
    assert is_empty(tmp_path / "models")


def test_a_pipe_in_a_folder_is_not_waited_for(model, tmp_path):
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    with pytest.raises(ModelBroken, match="is no regular file"):
        install(model, tmp_path / "models")


@pytest.mark.parametrize("name", ["2", "../up", "UPPER", ""])
def test_a_name_that_is_none_is_refused(name, model, tmp_path):
    with pytest.raises(ModelBroken, match="model name"):
        install(model, tmp_path / "models", name)


def test_the_command_adds_a_model(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["models", "add", str(model)]) == 0
    assert "mine is in models/mine, digest" in capsys.readouterr().err
    assert main(["models", "add", str(model)]) == 1
    assert "'models/mine' is there already" in capsys.readouterr().err
    assert main(["models", "add", "mine", "--name", "other", "--json"]) == 0
    assert load(TINY).digest in capsys.readouterr().out
