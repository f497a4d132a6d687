"""The file of API keys: what it holds, how it is changed, and what is refused in it."""

from __future__ import annotations

import re
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from engines import Clock
from gruve.errors import CredentialsBroken, InvalidField
from gruve.serve.callers.api_keys import ApiKeys, add_key, read_keys, revoke_key
from gruve.serve.callers.identity import Limits, Role


def test_the_file_has_hashes_alone_and_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "keys.json"
    limits = Limits(streams=4, tokens_per_minute=1_000)
    key = add_key(
        path, "ann", "tenant", role=Role.ADMIN, weight=2.0, limits=limits, expires="2099-01-01T00:00:00+00:00"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert re.fullmatch("gruve_[a-z2-7]{26}", key)
    assert key[10:] not in path.read_text()
    identity = ApiKeys(path).identify(key)
    assert (identity.tenant, identity.role, identity.key_name) == ("tenant", Role.ADMIN, "ann")
    assert (identity.weight, identity.limits, identity.owner) == (2.0, limits, "tenant")
    assert [(entry.name, entry.shown) for entry in read_keys(path)] == [("ann", key[:10])]


def test_a_key_is_revoked_once(tmp_path):
    path = tmp_path / "keys.json"
    key = add_key(path, "ann", "ann")
    assert [revoke_key(path, name) for name in ("bob", "ann", "ann")] == [False, True, False]
    assert ApiKeys(path).identify(key) is None


def test_keys_that_are_added_at_once_are_all_kept(tmp_path):
    path, gate = tmp_path / "keys.json", threading.Barrier(8)

    def add(number):
        gate.wait()
        add_key(path, f"key-{number}", "ann")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(8)))
    assert sorted(key.name for key in read_keys(path)) == [f"key-{number}" for number in range(8)]


def test_what_a_killed_command_left_does_not_keep_keys_from_being_added(tmp_path):
    path = tmp_path / "keys.json"
    path.with_name("keys.json.new").write_text("half of a fi")
    key = add_key(path, "ann", "ann")
    assert ApiKeys(path).identify(key) is not None


def test_a_key_expires_at_its_time(tmp_path):
    clock = Clock()
    key = add_key(tmp_path / "keys.json", "ann", "ann", expires="1970-01-01T00:01:00+00:00")
    keys = ApiKeys(tmp_path / "keys.json", clock=clock)
    clock.now = 59.9
    assert keys.identify(key) is not None
    clock.now = 60.0
    assert keys.identify(key) is None


def test_a_name_is_given_once_and_values_are_checked(tmp_path):
    path = tmp_path / "keys.json"
    add_key(path, "ann", "ann")
    for name, fields in [("ann", {}), ("a b", {}), ("b", {"weight": 0.0})]:
        with pytest.raises(InvalidField):
            add_key(path, name, "ann", **fields)
    assert len(read_keys(path)) == 1


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"admin"', '"root"', "keys[0].role is 'root'; must be one of use, admin"),
        ('"streams"', '"stream"', "keys[0].limits.stream is not known; must be one of streams, waiting, sessions"),
        ('"tenant"', '"owner"', "keys[0].owner is not known; must be one of name, tenant"),
        ('"tenant": "ann",', "", "keys[0].tenant is absent"),
        ('"tenant": "ann"', '"tenant": ""', "keys[0].tenant: '' must be 1 to 128 printable characters"),
        ('"sha256": "', '"sha256": "x', "must be 64 hexadecimal digits"),
        ('"weight": 2.0', '"weight": 0', "keys[0].weight: 0 must be above 0 and at most 1000"),
    ],
)
def test_a_fault_of_a_key_in_the_file_is_named_with_its_place(tmp_path, old, new, why):
    path = tmp_path / "keys.json"
    add_key(path, "ann", "ann", role=Role.ADMIN, weight=2.0, limits=Limits(streams=4))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CredentialsBroken, match=re.escape(why)):
        ApiKeys(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "list indices"),
        ("{}", "it has no 'version'"),
        ('{"version": 1}', "it has no 'keys'"),
        ('{"version": 2, "keys": []}', "its version is 2; this release reads 1"),
        ('{"version": 1, "keys": [{"name": "a"}]}', r"keys\[0\].tenant is absent"),
        ('{"version": 1, "keys": [5]}', r"keys\[0\] or its limits are not an object"),
        ('{"version": 1, "keys": [{"limits": 5}]}', r"keys\[0\] or its limits are not an object"),
    ],
)
def test_a_file_that_is_none_of_keys_is_named(tmp_path, text, why):
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(CredentialsBroken, match=rf"keys\.json' is not a file of keys: {why}"):
        ApiKeys(tmp_path / "keys.json")
