"""Which version of a model a reference means, against a plain reading of the rules, and what a repository holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruve.errors import ModelBroken, ModelUnknown
from gruve.model.repository import Model
from gruve.model.versions import (
    Broken,
    Version,
    choose_version,
    find_entries,
    find_entry,
    load_version,
    scan,
    split_reference,
)
from repositories import truncate, write_model, write_version

NOWHERE = Path("nowhere")
DIGESTS = st.sampled_from(["0" * 64, "0" * 11 + "1" * 53, "0" * 12 + "1" * 52, "0" * 20 + "a" * 44, "f" * 64, ""])
SELECTORS = st.one_of(
    st.integers(0, 6).map(str),
    st.builds(lambda digest, n: f"sha256:{digest[:n]}", DIGESTS, st.integers(0, 64)),
    st.sampled_from(
        ["latest", "01", "-1", "1.0", " 1", "sha256:", "sha256:" + "F" * 12, "sha256:" + "0" * 65, "\u0661"]
    ),
)


@st.composite
def version_lists(draw):
    numbers = sorted(draw(st.sets(st.integers(0, 5), min_size=1)))
    return [Version(number, NOWHERE, None, draw(DIGESTS)) for number in numbers]


def plain(selector: str, versions: list[Version]) -> Version | None:
    """The rules, one after the other; None if nothing, or not one thing, is meant."""
    if selector.startswith("sha256:"):
        prefix = selector[len("sha256:") :]
        if len(prefix) < 12 or any(character not in "0123456789abcdef" for character in prefix):
            return None
        matching = [version for version in versions if version.digest[: len(prefix)] == prefix]
        if len({version.digest for version in matching}) != 1:
            return None
        return matching[-1]
    for version in versions:
        if str(version.number) == selector:
            return version
    return None


@given(SELECTORS, version_lists())
def test_a_selector_means_what_the_rules_say(selector, versions):
    expected = plain(selector, versions)
    if expected is None:
        with pytest.raises(ModelUnknown, match=r"model 'net' has no version|is ambiguous"):
            choose_version("net", selector, versions)
    else:
        assert choose_version("net", selector, versions) is expected


def test_an_unknown_version_is_refused_with_those_that_exist_and_no_more_than_20():
    versions = [Version(number, NOWHERE, None, f"{number:064x}") for number in range(1, 100)]
    with pytest.raises(ModelUnknown) as caught:
        choose_version("net", "100", versions)
    assert "it has 1 (000000000000), 2 (000000000000)," in str(caught.value)
    assert str(caught.value).endswith("and 79 more")


@pytest.mark.parametrize(
    ("reference", "parts"),
    [("net", ("net", "")), ("net@2", ("net", "2")), ("net@", ("net", "")), ("a@b@c", ("a", "b@c")), ("@2", ("", "2"))],
)
def test_a_reference_is_a_name_and_a_version(reference, parts):
    assert split_reference(reference) == parts


def test_the_versions_of_a_model_are_listed_by_number_and_the_files_beside_them_are_version_0(tmp_path):
    flat = write_model(tmp_path / "net", 1).digest
    digests = [write_version(tmp_path / "net", number, number) for number in (2, 10, 9)]
    for other in ("checkpoints", "02", "1e3", "-1", "9999999999"):
        (tmp_path / "net" / other).mkdir()
    (tmp_path / "net" / "3").write_text("no folder")
    (entry,) = find_entries(tmp_path).values()
    found = [(version.number, version.digest) for version in entry.versions]
    assert found == [(0, flat), (2, digests[0]), (9, digests[2]), (10, digests[1])]
    assert find_entry(tmp_path, "net") == entry
    assert load_version("net", entry.versions[-1]).name == "net"


def test_a_folder_of_versions_alone_is_one_model_and_may_be_the_repository(tmp_path):
    digest = write_version(tmp_path / "net", 3)
    assert find_entries(tmp_path / "net") == find_entries(tmp_path)
    assert find_entry(tmp_path / "net", "net") == find_entry(tmp_path, "net")
    assert find_entry(tmp_path / "net", "3") is None
    assert scan(tmp_path)["net"].digest == digest


def test_the_highest_version_that_can_be_loaded_is_the_newest(tmp_path):
    for number in (1, 2, 3):
        write_version(tmp_path / "net", number, number)
    truncate(tmp_path / "net" / "3")
    (tmp_path / "net" / "2" / "config.json").write_text("{")
    model = scan(tmp_path)["net"]
    assert isinstance(model, Model)
    assert model.digest == find_entries(tmp_path)["net"].versions[0].digest
    truncate(tmp_path / "net" / "1")
    broken = scan(tmp_path)["net"]
    assert isinstance(broken, Broken)
    assert "500 bytes" in broken.why


def test_files_that_have_changed_since_the_repository_was_read_are_not_taken_for_those_that_were_found(tmp_path):
    write_model(tmp_path / "net", 1)
    version = find_entries(tmp_path)["net"].versions[0]
    write_model(tmp_path / "net", 2)
    with pytest.raises(ModelBroken, match="has changed since the repository was read"):
        load_version("net", version)


def test_a_version_whose_folder_is_a_link_is_one_like_others(tmp_path):
    digest = write_version(tmp_path / "net", 1)
    os.symlink("1", tmp_path / "net" / "2")
    assert [version.digest for version in find_entries(tmp_path)["net"].versions] == [digest, digest]
