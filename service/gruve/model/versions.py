"""The model repository: which models and versions of them its folders hold, and which of them a request means.

    models/<name>/config.json ...               a model without versions: version 0
    models/<name>/<version>/config.json ...     versions, 1 to 999999999

The highest version that can be loaded is the newest; `folk` means that one. `folk@2` means version 2, and
`folk@sha256:` followed by at least 12 hexadecimal digits the version whose digest begins with them. Only each version's
`config.json` is read here: the digest is taken over it, and it holds the hashes of the other files.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from gruve.errors import ModelBroken, ModelUnknown
from gruve.model.config import ModelConfig
from gruve.model.repository import (
    CONFIG,
    Model,
    check_name,
    check_unread,
    load,
    read_card,
    read_config,
    read_tokenizer,
)

NUMBER = re.compile(r"[1-9][0-9]{0,8}")
"""The name of a version's folder."""
DIGEST_PREFIX = re.compile(r"sha256:([0-9a-f]{12,64})")
MAX_LISTED = 20
"""How many names or versions an error lists."""
MAX_REASON_CHARACTERS = 1_000
"""How much is told of why a version is broken: a reason quotes what it found, which may be of any length."""
FORMS = "a version is a number (folk@2) or at least 12 digits of a digest (folk@sha256:0123456789ab)"


@dataclasses.dataclass(frozen=True, slots=True)
class Broken:
    """An entry that is there and cannot be served, and why."""

    name: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Version:
    """One version of a model as its folder says. Its weights have not been read."""

    number: int
    """0 for the files that lie in the model's own folder."""
    folder: Path
    config: ModelConfig | None
    """None if it cannot be read."""
    digest: str = ""
    """The model's digest; "" without a config."""
    why: str = ""
    """Why the config cannot be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class About:
    """What a model's tokenizer and card say of it."""

    tokenizer: str = ""
    """The tokenizer's kind."""
    start_id: int = 0
    end_id: int | None = None
    description: str = ""
    license: str = ""

    @classmethod
    def of(cls, model: Model) -> About:
        """What is said of a loaded model."""
        tokenizer = model.tokenizer
        return cls(tokenizer.kind, tokenizer.start_id, tokenizer.end_id, model.description, model.license)

    @classmethod
    def read(cls, version: Version) -> About:
        """What the files of a version say. Nothing of the tokenizer if it cannot be read."""
        card_license, description = read_card(version.folder)
        try:
            tokenizer = read_tokenizer(version.folder)
        except ModelBroken:
            return cls(description=description, license=card_license)
        return cls(tokenizer.kind, tokenizer.start_id, tokenizer.end_id, description, card_license)


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A model of the repository with its versions, at least one, in the order of their numbers."""

    name: str
    versions: tuple[Version, ...]


def entry_folders(repository: Path) -> list[Path]:
    """The folders of a repository's entries in the order of their names.

    A folder that has a `config.json` itself, or nothing but folders of versions, is one model and the only entry.
    Raises `ModelUnknown` if the folder is not there.
    """
    if not repository.is_dir():
        raise ModelUnknown(f"no model repository at {str(repository)!r}: not a folder")
    if is_model(repository):
        return [_absolute(repository)]
    return sorted(folder for folder in repository.iterdir() if _may_be_entry(folder))


def version_folders(folder: Path) -> list[Path]:
    """The folders of a model's versions in the order of their numbers. Raises `OSError` if they cannot be listed."""
    found = [path for path in folder.iterdir() if NUMBER.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def entry_name(folder: Path) -> str:
    """The name under which a folder is served."""
    return os.fsencode(folder.name).decode(errors="replace")


def find_entries(repository: Path) -> dict[str, Entry]:
    """The entries of a repository in the order of their names. Raises `ModelUnknown` if the folder is not there."""
    entries = [_entry(folder) for folder in entry_folders(repository)]
    return {entry.name: entry for entry in entries}


def find_entry(repository: Path, name: str) -> Entry | None:
    """The entry of that name as it is now; None if there is none."""
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        return None
    try:
        if is_model(repository):
            folder = _absolute(repository)
            return _entry(folder) if folder.name == name else None
        folder = repository / name
        return _entry(folder) if folder.exists() and _may_be_entry(folder) else None
    except OSError:  # no name that a file system takes, or no repository any more
        return None


def scan(repository: Path) -> dict[str, Model | Broken]:
    """Loads the newest version of every entry, in the order of their names; broken ones keep their reason.

    Raises `ModelUnknown` if the folder is not there.
    """
    return {name: load_newest(entry) for name, entry in find_entries(repository).items()}


def load_newest(entry: Entry) -> Model | Broken:
    """The newest version that can be loaded; if none can, the reason of the newest."""
    why = ""
    for version in reversed(entry.versions):
        try:
            return load_version(entry.name, version)
        except ModelBroken as error:
            why = why or str(error)
    return Broken(entry.name, why)


def load_version(name: str, version: Version) -> Model:
    """Loads a version. Raises `ModelBroken` also if its files are not those that were found."""
    if version.config is None:
        raise ModelBroken(version.why)
    try:
        model = load(version.folder, name)
    except ModelBroken as error:
        raise ModelBroken(shorten_reason(error)) from error
    _check_digest(model.digest, version)
    return model


def check_version(name: str, version: Version) -> None:
    """Checks a version without reading its weights. Raises `ModelBroken` also if its config is not the one found."""
    try:
        check_name(name)
        config = check_unread(version.folder)
    except ModelBroken as error:
        raise ModelBroken(shorten_reason(error)) from error
    _check_digest(config.digest(), version)


def _check_digest(found: str, version: Version) -> None:
    if found != version.digest:
        raise ModelBroken(
            f"{CONFIG} has changed since the repository was read: the digest was {version.digest[:16]} and is "
            f"{found[:16]}; reload the model"
        )


def split_reference(reference: str) -> tuple[str, str]:
    """The name and the version of a reference such as `folk@2`; the version is "" for the newest."""
    name, at, selector = reference.partition("@")
    return name, selector if at else ""


def choose_version(name: str, selector: str, versions: Sequence[Version]) -> Version:
    """The version that a selector names, `versions` being in ascending order of their numbers.

    Raises `ModelUnknown`, with the versions that exist, if no version or more than one digest is meant. Of versions
    with equal digests, the last is returned: they are the same model.
    """
    prefix = DIGEST_PREFIX.fullmatch(selector)
    if selector == "0" or NUMBER.fullmatch(selector):
        found = [version for version in versions if version.number == int(selector)]
    elif prefix:
        found = [version for version in versions if version.digest.startswith(prefix[1])]
    else:
        raise ModelUnknown(f"model {name!r} has no version {selector[:80]!r}; {FORMS}")
    digests = sorted({version.digest for version in found})
    if not found:
        have = listed(f"{version.number} ({version.digest[:12] or 'broken'})" for version in versions)
        raise ModelUnknown(f"model {name!r} has no version {selector!r}; it has {have}")
    if len(digests) > 1:
        raise ModelUnknown(
            f"version {selector!r} of model {name!r} is ambiguous; it is the beginning of {listed(digests)}"
        )
    return found[-1]


def listed(names: Iterable[str]) -> str:
    """Names with commas between them, at most `MAX_LISTED`, and how many more there are."""
    every = list(names)
    shown = ", ".join(every[:MAX_LISTED])
    more = len(every) - MAX_LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def shorten_reason(error: ModelBroken) -> str:
    """Why a version is broken, in at most `MAX_REASON_CHARACTERS`."""
    return str(error)[:MAX_REASON_CHARACTERS]


def _absolute(folder: Path) -> Path:
    """The folder with its name, which "." does not show."""
    return Path(os.path.abspath(folder))


def _may_be_entry(folder: Path) -> bool:
    return not folder.is_file() and not folder.name.startswith(".")


def is_model(folder: Path) -> bool:
    """Whether a folder is that of one model, and not a repository."""
    if (folder / CONFIG).exists():
        return True
    inside = [path for path in folder.iterdir() if _may_be_entry(path)]
    return bool(inside) and all(NUMBER.fullmatch(path.name) and (path / CONFIG).exists() for path in inside)


def _entry(folder: Path) -> Entry:
    name = entry_name(folder)
    try:
        numbered = version_folders(folder)
    except OSError:  # a dangling link, or no right to read it
        numbered = []
    versions = [_version(name, int(path.name), path) for path in numbered]
    if not numbered or (folder / CONFIG).exists():
        versions.insert(0, _version(name, 0, folder))
    return Entry(name, tuple(versions))


def _version(name: str, number: int, folder: Path) -> Version:
    try:
        check_name(name)
        config = read_config(folder)
    except ModelBroken as error:
        return Version(number, folder, None, why=shorten_reason(error))
    return Version(number, folder, config, config.digest())
