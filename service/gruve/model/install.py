"""Installs a model in a repository: reads it from a folder or an archive, checks it, and renames it into place.

What is read is bounded before it is read, and nothing is extracted by a path that an archive names: of an archive, the
files with the four names of a model are read into memory, and only uncompressed tar and zip can be read so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final

from gruve.errors import ModelBroken, ModelExists
from gruve.model.config import ModelConfig
from gruve.model.repository import (
    CARD,
    CONFIG,
    MAX_CONFIG_BYTES,
    MAX_TOKENIZER_BYTES,
    TOKENIZER,
    WEIGHTS,
    Model,
    check_name,
    decode_text,
    load,
    max_weight_bytes,
)
from gruve.model.versions import NUMBER, is_model

ARCHIVES: Final = (".tar", ".zip")
MAX_CARD_BYTES: Final = 1 << 20
MAX_MEMBERS: Final = 1_000
"""How many files an archive may hold."""

Open = Callable[[str], IO[bytes] | None]
"""Opens a file of a model by its name; None if there is none."""


def install(source: Path, repository: Path, name: str | None = None) -> Model:
    """Checks the model in a folder or an archive and puts it into a repository, which is created if it is not there.

    Its name is that of the source if no other is given. The entry appears with all of its files or not at all. Raises
    `ModelBroken` for a model that could not be served, `ModelExists` if the repository has something of that name.
    """
    name = default_name(source) if name is None else name
    check_name(name)
    if NUMBER.fullmatch(name):
        raise ModelBroken(f"model name {name!r} is a number, which is the name of a version; give another")
    if repository.is_dir() and is_model(repository):
        raise ModelExists(f"{str(repository)!r} is the folder of one model; a repository is needed, a folder of models")
    entry = repository / name
    if os.path.lexists(entry):
        raise _exists(entry)
    contents = read_model(source)
    repository.mkdir(parents=True, exist_ok=True)
    partial = repository / f".{name}.{uuid.uuid4().hex}.partial"  # a repository does not look at hidden folders
    try:
        _write(partial, contents)
        model = load(partial, name)
        try:
            partial.rename(entry)
        except OSError as error:  # made by another process meanwhile
            if os.path.lexists(entry):
                raise _exists(entry) from error
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _sync(repository)
    return model


def default_name(source: Path) -> str:
    """The name of the model in a folder, or in an archive, whose name ends in .tar or .zip."""
    path = Path(os.path.abspath(source))
    return path.stem if path.suffix in ARCHIVES and not path.is_dir() else path.name


def read_model(source: Path) -> dict[str, bytes]:
    """The files of a model by name; the card is left out if there is none. Raises `ModelBroken`, `OSError`."""
    with _opened(source) as open_file:
        config_bytes = _read(source, open_file, CONFIG, MAX_CONFIG_BYTES)
        config = ModelConfig.from_json(decode_text(CONFIG, config_bytes))
        found = {
            TOKENIZER: _read(source, open_file, TOKENIZER, MAX_TOKENIZER_BYTES),
            WEIGHTS: _read(source, open_file, WEIGHTS, max_weight_bytes(config)),
        }
        card = open_file(CARD)
        if card is not None:
            card.close()
            found[CARD] = _read(source, open_file, CARD, MAX_CARD_BYTES)
        return {**found, CONFIG: config_bytes}


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[Open]:
    """How the files of a model are opened. Raises `ModelBroken` if the source holds none."""
    if source.is_dir():
        yield lambda name: _open_in_folder(source / name)
    elif source.suffix == ".zip":
        try:
            with zipfile.ZipFile(source) as archive:
                yield _open_in_zip(source, archive)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise ModelBroken(f"{source.name} cannot be read as a zip archive: {error}") from error
    elif source.suffix == ".tar":
        try:
            with tarfile.open(source, "r:") as archive:
                yield _open_in_tar(source, archive)
        except tarfile.TarError as error:
            raise ModelBroken(f"{source.name} cannot be read as an uncompressed tar archive: {error}") from error
    elif not source.exists():
        raise ModelBroken(f"there is no folder or file {str(source)!r}")
    else:
        allowed = f"a folder with {CONFIG}, {TOKENIZER} and {WEIGHTS}, or a {' or '.join(ARCHIVES)} archive of one"
        raise ModelBroken(f"{str(source)!r} is no model; allowed: {allowed}")


def _open_in_folder(path: Path) -> IO[bytes] | None:
    if not path.exists():
        return None
    if not stat.S_ISREG(path.stat().st_mode):
        raise ModelBroken(f"{path.name} is no regular file")
    return path.open("rb")


def _open_in_zip(source: Path, archive: zipfile.ZipFile) -> Open:
    folder = _folder(source, [info.filename for info in archive.infolist() if not info.is_dir()])

    def open_member(name: str) -> IO[bytes] | None:
        info = next((info for info in archive.infolist() if info.filename == str(folder / name)), None)
        if info is None:
            return None
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelBroken(f"{name} in {source.name} is compressed by another method than deflate")
        return archive.open(info)

    return open_member


def _open_in_tar(source: Path, archive: tarfile.TarFile) -> Open:
    members: dict[str, tarfile.TarInfo] = {}
    for number, member in enumerate(archive):
        if number >= MAX_MEMBERS:
            raise ModelBroken(f"{source.name} holds more than {MAX_MEMBERS} files")
        if member.isreg():
            members[str(PurePosixPath(member.name))] = member
    folder = _folder(source, list(members))

    def open_member(name: str) -> IO[bytes] | None:
        member = members.get(str(folder / name))
        return None if member is None else archive.extractfile(member)

    return open_member


def _folder(source: Path, names: list[str]) -> PurePosixPath:
    """The folder of an archive in which the model lies. Raises `ModelBroken` unless there is exactly one."""
    if len(names) > MAX_MEMBERS:
        raise ModelBroken(f"{source.name} holds {len(names)} files; at most {MAX_MEMBERS} are allowed")
    folders = [PurePosixPath(name).parent for name in names if PurePosixPath(name).name == CONFIG]
    if len(folders) != 1:
        raise ModelBroken(f"{source.name} holds {len(folders)} files called {CONFIG}; a model has one")
    return folders[0]


def _read(source: Path, open_file: Open, name: str, max_bytes: int) -> bytes:
    """Reads a file; raises `ModelBroken` if it is absent or has more than `max_bytes`."""
    file = open_file(name)
    if file is None:
        raise ModelBroken(f"{str(source)!r} has no {name}")
    with file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ModelBroken(f"{name} has more than {max_bytes} bytes, which is the most that is possible")
    return content


def _write(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in contents.items():
        with (folder / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync(folder)


def _sync(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(entry: Path) -> ModelExists:
    config = entry / CONFIG
    with contextlib.suppress(OSError, ValueError, ModelBroken):
        digest = ModelConfig.from_json(config.read_text()).digest()
        return ModelExists(f"{str(entry)!r} is there already, with digest {digest[:12]}; give another name")
    return ModelExists(f"{str(entry)!r} is there already; give another name")
