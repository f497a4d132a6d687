"""API keys: a JSON file with the SHA-256 of each key, its tenant, role, weight, limits and expiry.

A key is `gruve_` and 128 random bits. It is shown once, when it is made; the file cannot give it back. A plain hash is
enough, because the bits are random and not a password. A key is looked up by its hash, so the time of a look-up does
not tell how much of a guess is right. The file is read again when it changes.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gruve.errors import CredentialsBroken, InvalidField
from gruve.serve.callers.identity import (
    MAX_TENANT_CHARACTERS,
    MAX_WEIGHT,
    NO_LIMITS,
    ROLE_NAMES,
    Identity,
    Limits,
    Role,
    is_tenant,
)
from gruve.watched_files import WatchedFiles, read_bytes

KEY_PREFIX = "gruve_"
KEY_BYTES = 16
SHOWN_CHARACTERS = 4
"""How much of a key's random part the file and `gruve keys list` show, to tell keys apart."""
VERSION = 1
NAME = re.compile(r"[A-Za-z0-9._@:-]{1,64}")


@dataclasses.dataclass(frozen=True, slots=True)
class ApiKey:
    """What the file holds of a key."""

    name: str
    """Unique in the file; it is in logs."""
    tenant: str
    sha256: str
    """Of the whole key, in hexadecimal."""
    shown: str
    """The key's beginning."""
    created: str
    """The date and time in UTC, ISO 8601."""
    role: Role = Role.USE
    weight: float = 1.0
    limits: Limits = NO_LIMITS
    expires: str | None = None
    """The date and time from which it is refused, as `created`; None for never."""

    def __post_init__(self) -> None:
        """Raises `InvalidField` for a value that is out of range."""
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise InvalidField("name", f"{self.name!r} must be 1 to 64 of letters, digits and . _ @ : -")
        if not is_tenant(self.tenant):
            raise InvalidField("tenant", f"{self.tenant!r} must be 1 to {MAX_TENANT_CHARACTERS} printable characters")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise InvalidField("sha256", f"{self.sha256!r} must be 64 hexadecimal digits")
        if not 0.0 < self.weight <= MAX_WEIGHT:
            raise InvalidField("weight", f"{self.weight} must be above 0 and at most {MAX_WEIGHT:g}")

    @property
    def expires_s(self) -> float:
        """The Unix time from which it is refused."""
        return float("inf") if self.expires is None else datetime.datetime.fromisoformat(self.expires).timestamp()

    @property
    def identity(self) -> Identity:
        """The identity of a caller that shows the key."""
        return Identity(self.tenant, self.role, self.name, self.weight, self.limits)


class ApiKeys:
    """The keys that a server accepts. `clock` gives the Unix time."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Reads the file. Raises `CredentialsBroken`."""
        self._file = WatchedFiles([path], lambda: _by_hash(read_keys(path)), seldom=True)
        self._clock = clock

    def identify(self, key: str) -> Identity | None:
        """The identity of a caller that shows this key; None if it is not one of the file, or has expired."""
        digest = hashlib.sha256(key.encode(errors="replace")).digest()
        found = self._file.current().get(digest)
        return found[0] if found is not None and self._clock() < found[1] else None


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file, in the order in which they were made. Raises `CredentialsBroken`."""
    return _parse(path, read_bytes(path))


def add_key(path: Path, name: str, tenant: str, **fields: Any) -> str:
    """Adds a key to a file, which is made if there is none, and returns it. The file does not hold it.

    `fields` are those of `ApiKey`. Raises `InvalidField`, `CredentialsBroken` or `OSError`.
    """
    key = KEY_PREFIX + base64.b32encode(secrets.token_bytes(KEY_BYTES)).decode().rstrip("=").lower()
    digest = hashlib.sha256(key.encode()).hexdigest()
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    added = ApiKey(name, tenant, digest, key[: len(KEY_PREFIX) + SHOWN_CHARACTERS], created, **fields)
    with _locked(path):
        keys = read_keys(path) if path.exists() else []
        if any(other.name == name for other in keys):
            raise InvalidField("name", f"{name!r} is the name of another key in {str(path)!r}")
        _write(path, [*keys, added])
    return key


def revoke_key(path: Path, name: str) -> bool:
    """Removes a key from a file; returns whether it was there. Raises `CredentialsBroken` or `OSError`."""
    with _locked(path):
        keys = read_keys(path)
        kept = [key for key in keys if key.name != name]
        if len(kept) < len(keys):
            _write(path, kept)
        return len(kept) < len(keys)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps other `gruve keys` from the file: two that read and write it at once would lose a key."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, keys: list[ApiKey]) -> None:
    """Replaces the file at once, so that a server never reads half of it. Only its owner may read it."""
    text = json.dumps({"version": VERSION, "keys": [_plain(key) for key in keys]}, indent=2) + "\n"
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _plain(key: ApiKey) -> dict[str, Any]:
    """A key as JSON, without what is absent."""
    fields = {name: getattr(key, name) for name in ("name", "tenant", "shown", "sha256", "created")}
    limits = {name: value for name, value in dataclasses.asdict(key.limits).items() if value is not None}
    more = {"role": key.role.name.lower(), "weight": key.weight, "limits": limits, "expires": key.expires}
    return fields | {name: value for name, value in more.items() if value}


def _parse(path: Path, data: bytes) -> list[ApiKey]:
    try:
        whole = json.loads(data)
        if whole["version"] != VERSION:
            raise ValueError(f"its version is {whole['version']!r}; this release reads {VERSION}")
        return [_key(f"keys[{number}]", fields) for number, fields in enumerate(whole["keys"])]
    except KeyError as error:
        raise CredentialsBroken(f"{str(path)!r} is not a file of keys: it has no {error}") from error
    except (TypeError, ValueError, InvalidField) as error:
        raise CredentialsBroken(f"{str(path)!r} is not a file of keys: {error}") from error


def _key(place: str, fields: dict[str, Any]) -> ApiKey:
    """The key in an entry of the file. Raises `InvalidField` with its place, `TypeError` or `ValueError`."""
    if not isinstance(fields, dict) or not isinstance(fields.get("limits", {}), dict):
        raise TypeError(f"{place} or its limits are not an object")
    role = fields.get("role", "use")
    try:
        _check_names(fields, ApiKey)
        _check_names(fields.get("limits", {}), Limits, "limits.")
        if role not in ROLE_NAMES:
            raise InvalidField("role", f"is {role!r}; must be one of {', '.join(ROLE_NAMES)}")
        key = ApiKey(**fields | {"role": ROLE_NAMES[role], "limits": Limits(**fields.get("limits", {}))})
    except InvalidField as error:
        raise InvalidField(f"{place}.{error.field}", error.why) from error
    key.expires_s  # noqa: B018 - raises ValueError for what is no date
    return key


def _check_names(fields: dict[str, Any], kind: type[ApiKey] | type[Limits], prefix: str = "") -> None:
    """Raises `InvalidField` for a field that a class does not have, or one without a default that is absent."""
    known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise InvalidField(f"{prefix}{name}", f"is not known; must be one of {', '.join(known)}")
    for name, is_needed in known.items():
        if is_needed and name not in fields:
            raise InvalidField(f"{prefix}{name}", "is absent")


def _by_hash(keys: list[ApiKey]) -> dict[bytes, tuple[Identity, float]]:
    return {bytes.fromhex(key.sha256): (key.identity, key.expires_s) for key in keys}
