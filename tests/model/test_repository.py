"""The model repository: every way to break an entry has its own message, and the other entries are served."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from gruve.errors import ModelBroken, ModelUnknown
from gruve.model.network import Network
from gruve.model.repository import CARD, CONFIG, MAX_WEIGHT, TOKENIZER, WEIGHTS, Model, load, load_given, save
from gruve.model.versions import Broken, scan
from gruve.training.pointing import pointed_rows
from nets import CELL_NAMES, CELLS, config_of, configs, pointers_of, tokenizer_of, weights_of

CONFIG_OF_ALL = config_of(CELLS[0], V=5, L=1)


@pytest.fixture
def entry(tmp_path):
    folder = tmp_path / "models" / "small"
    save(folder, CONFIG_OF_ALL, tokenizer_of(5), weights_of(CONFIG_OF_ALL), card="# small\n\nA small model.\n")
    return folder


def edit_config(folder: Path, **changes) -> None:
    fields = json.loads((folder / CONFIG).read_text())
    fields.update(changes)
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))


def replace(folder: Path, name: str, content: bytes) -> None:
    """Replaces a file and puts its hash into the config."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / CONFIG).read_text())["files"]
    edit_config(folder, files={**files, name: hashlib.sha256(content).hexdigest()})


def refused(folder: Path) -> str:
    with pytest.raises(ModelBroken) as error:
        load(folder)
    return str(error.value)


def test_a_model_is_named_by_the_folder_that_was_given(entry, monkeypatch):
    monkeypatch.chdir(entry)
    assert load_given(Path(".")).name == "small"
    for given_folder, why in (
        (Path(".."), r"the model at '\.\.' cannot be loaded: config\.json cannot be read: No such file"),
        (Path("none"), "there is no model at 'none': not a folder"),
    ):
        with pytest.raises(ModelBroken, match=why):
            load_given(given_folder)


@settings(max_examples=20, deadline=None)
@given(config=configs(), precision=st.sampled_from(["float16", "float32"]))
def test_what_is_saved_loads_back_the_same(tmp_path_factory, config, precision):
    config = dataclasses.replace(config, precision=precision)
    weights = weights_of(config)
    folder = tmp_path_factory.mktemp("models") / "m"
    saved = save(folder, config, tokenizer_of(config.vocabulary_size), weights)
    loaded = load(folder)
    assert loaded.digest == saved.digest
    assert loaded.tokenizer == saved.tokenizer == tokenizer_of(config.vocabulary_size)
    assert dataclasses.replace(loaded.config, files=()) == config
    assert all(torch.equal(loaded.weights[name], weights[name]) for name in config.shapes())


def test_weights_are_rounded_to_half_precision_once_and_no_more(tmp_path):
    weights = {n: w + torch.rand_like(w) * 1e-4 for n, w in weights_of(CONFIG_OF_ALL).items()}
    once = save(tmp_path / "a", CONFIG_OF_ALL, tokenizer_of(5), weights)
    twice = save(tmp_path / "b", CONFIG_OF_ALL, tokenizer_of(5), once.weights)
    assert once.digest == twice.digest
    for name, weight in once.weights.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, weights[name].half().float())


def test_single_precision_weights_are_not_rounded(tmp_path):
    config = dataclasses.replace(CONFIG_OF_ALL, precision="float32")
    weights = {n: w + torch.rand_like(w) * 1e-4 for n, w in weights_of(config).items()}
    model = save(tmp_path / "a", config, tokenizer_of(5), weights)
    assert all(torch.equal(model.weights[name], weights[name]) for name in weights)


def test_the_digest_changes_with_weights_tokenizer_and_config_and_not_with_the_card_or_name(tmp_path):
    weights = weights_of(CONFIG_OF_ALL)
    other = {**weights, "head.bias": weights["head.bias"] + 1}
    model = save(tmp_path / "a", CONFIG_OF_ALL, tokenizer_of(5), weights, card="one")
    same = save(tmp_path / "b", CONFIG_OF_ALL, tokenizer_of(5), weights, card="two")
    changed = [
        save(tmp_path / "c", CONFIG_OF_ALL, tokenizer_of(5), other),
        save(tmp_path / "d", CONFIG_OF_ALL, tokenizer_of(5, has_end=False), weights),
        save(tmp_path / "e", dataclasses.replace(CONFIG_OF_ALL, precision="float32"), tokenizer_of(5), weights),
    ]
    assert model.digest == same.digest
    assert len({m.digest for m in [model, *changed]}) == 4


def test_the_digest_does_not_depend_on_how_the_config_is_written(entry):
    before = load(entry).digest
    fields = json.loads((entry / CONFIG).read_text())
    (entry / CONFIG).write_text(json.dumps(dict(reversed(fields.items()))))
    assert load(entry).digest == before


def test_the_card_gives_the_description_and_the_license(entry):
    (entry / CARD).write_text("---\nlicense: cc0-1.0\ntags: [x]\n---\n# Title\n\nTwo\nlines.\n\nMore.\n")
    model = load(entry)
    assert (model.license, model.description) == ("cc0-1.0", "Two lines.")


@pytest.mark.parametrize("card", [b"", b"\xff\xfe", b"---\nlicense:\nname: x\n---\n", b"# only a title\n", None])
def test_a_card_that_is_missing_or_odd_costs_nothing(entry, card):
    (entry / CARD).unlink()
    if card is not None:
        (entry / CARD).write_bytes(card)
    assert load(entry).license == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hidden_size": True}, "hidden_size is True; allowed: an integer"),
        ({"hidden_size": "512"}, "hidden_size is '512'; allowed: an integer"),
        ({"hidden_size": 8.0}, "hidden_size is 8.0; allowed: an integer"),
        ({"hidden_size": 7}, "hidden_size is 7; allowed: 8 to 4096"),
        ({"hidden_size": 4097}, "hidden_size is 4097"),
        ({"hidden_size": ...}, "lacks the key 'hidden_size'"),
        ({"embedding_size": 0}, "embedding_size is 0; allowed: 1 to 4096"),
        ({"vocabulary_size": 65_536}, "vocabulary_size is 65536; allowed: 1 to 65535"),
        ({"num_layers": 5}, "num_layers is 5; allowed: 1 to 4"),
        ({"cell": "transformer"}, "cell is 'transformer'; allowed: one of"),
        ({"cell": ["gru"]}, "cell is ['gru']"),
        ({"cell": ...}, "lacks the key 'cell'"),
        ({"reset": None}, "reset is None; allowed: one of ('after', 'before') for a GRU"),
        ({"cell": "lstm"}, "reset is 'after'; allowed: absent for cell 'lstm'"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"tied_head": 1}, "tied_head is 1; allowed: true or false"),
        ({"format_version": 2, "novelty": 1}, "format_version is 2; allowed: 1"),
        ({"format_version": True}, "format_version is True"),
        ({"format_version": ...}, "format_version is 'absent'"),
        ({"colour": "blue"}, "unknown key 'colour'"),
        ({"default_temperature": 2.5}, "default_temperature is 2.5; allowed: 0.05 to 2.0"),
        ({"default_temperature": float("nan")}, "default_temperature is nan; allowed: 0.05 to 2.0"),
        ({"default_temperature": "1"}, "default_temperature is '1'; allowed: a number"),
        ({"default_temperature": None}, "default_temperature is None; allowed: a number"),
        ({"pointers": None}, "pointers is None; allowed: an object"),
        ({"pointers": {"followers": [0]}}, "pointers: followers is 0; allowed: 1 to 32"),
        ({"pointers": {"followers": [1], "start_token": 5}}, "pointers: start_token is 5; allowed: -1 to 4"),
        ({"pointers": {"followers": [1], "start_token": 1}}, "pointers: start_token is 1; allowed: 0, the start token"),
        ({"pointers": {"followers": [1], "start_token": 0}}, "lacks tensor 'pointers.gate'"),
        ({"files": ["model.safetensors"]}, "files must map"),
        ({"files": {WEIGHTS: 3, TOKENIZER: 4}}, "files must map"),
        ({"files": {WEIGHTS: "0"}}, "files names ['model.safetensors']"),
        ({"files": {WEIGHTS: "0", TOKENIZER: "0", "../../etc/passwd": "0"}}, "files names"),
    ],
)
def test_a_wrong_value_in_the_config_is_named_with_what_is_allowed(entry, changes, why):
    edit_config(entry, **changes)
    assert why in refused(entry)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"[1, 2]", "holds a list, not an object"),
        (b"null", "holds a NoneType"),
        (b"{", "config.json is not JSON"),
        (b"", "config.json is not JSON"),
        (b"[" * 100_000, "config.json is not JSON"),
        (b'{"hidden_size": ' + b"9" * 5_000 + b"}", "config.json is not JSON"),
        (b'{"cell": "\xff"}', "config.json is not UTF-8"),
        (b" " * (1 << 20) + b"{}", "config.json has 1048578 bytes; at most 1048576"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(entry, text, why):
    (entry / CONFIG).write_bytes(text)
    assert why in refused(entry)


@pytest.mark.parametrize("name", [CONFIG, TOKENIZER, WEIGHTS])
def test_a_missing_file_is_named(entry, name):
    (entry / name).unlink()
    assert f"{name} cannot be read: No such file" in refused(entry)


@pytest.mark.parametrize("name", [TOKENIZER, WEIGHTS])
def test_a_truncated_file_fails_its_hash(entry, name):
    (entry / name).write_bytes((entry / name).read_bytes()[:-1])
    assert f"{name} has " in refused(entry)
    assert "config.json expects" in refused(entry)


@settings(max_examples=40, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_in_the_weights_is_noticed(tmp_path_factory, at, bit):
    folder = tmp_path_factory.mktemp("models") / "m"
    save(folder, CONFIG_OF_ALL, tokenizer_of(5), weights_of(CONFIG_OF_ALL))
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[at % len(content)] ^= 1 << bit
    (folder / WEIGHTS).write_bytes(content)
    assert "sha256" in refused(folder)


def tensors(**changes):
    made = {name: weight.half() for name, weight in weights_of(CONFIG_OF_ALL).items()} | changes
    return {name: tensor for name, tensor in made.items() if tensor is not None}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (save_safetensors(tensors(**{"head.bias": None})), "lacks tensor 'head.bias'"),
        (save_safetensors(tensors(extra=torch.ones(1))), "has the unknown tensor 'extra'"),
        (save_safetensors(tensors(**{"head.bias": torch.ones(6).half()})), "head.bias is F16 (6,); expected F16 (5,)"),
        (save_safetensors(tensors(**{"head.bias": torch.ones(5)})), "head.bias is F32 (5,); expected F16 (5,)"),
        (save_safetensors(tensors(**{"head.bias": torch.full((5,), torch.nan).half()})), "head.bias holds values"),
        (save_safetensors(tensors(**{"head.bias": torch.full((5,), torch.inf).half()})), "head.bias holds values"),
        (b"", "its header does not fit into its 0 bytes"),
        (b"short", "its header does not fit into its 5 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "its header does not fit"),
        (struct.pack("<Q", 2) + b"[]", "no readable safetensors header"),
        (struct.pack("<Q", 2) + b"\xff\xff", "no readable safetensors header"),
        (struct.pack("<Q", 9) + b'{"a": 1 }', "no readable safetensors header"),
        (save_safetensors(tensors())[:-2], "no valid safetensors file"),
        (b"\x80\x04\x95pickle.loads", "its header does not fit"),
    ],
)
def test_weights_that_are_not_what_the_config_says_are_refused_though_their_hash_is_right(entry, content, why):
    replace(entry, WEIGHTS, content)
    assert why in refused(entry)


def test_a_huge_file_is_refused_before_it_is_read(entry):
    with (entry / WEIGHTS).open("r+b") as file:
        file.truncate(1 << 40)
    assert "model.safetensors has 1099511627776 bytes; at most" in refused(entry)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "words"}, "kind is 'words'; known"),
        ({"format_version": 2}, "format_version is 2; known: 1"),
        ({"format_version": True}, "format_version is True"),
        ({"extra": 1}, "must hold exactly"),
        ({"tokens": "abc"}, "a list of strings"),
        ({"tokens": ["<s>", "</s>", 1, "b", "c"]}, "a list of strings"),
        ({"has_end": 1}, "true or false"),
        ({"tokens": ["a", "b", "c", "d", "e"]}, "must begin ['<s>', '</s>']"),
        ({"tokens": ["<s>", "</s>", "b", "a", "a"]}, "token 'a' occurs twice (ids 3 and 4)"),
        ({"tokens": ["<s>", "</s>", "a", "<s>", "b"]}, "token '<s>' occurs twice (ids 0 and 3)"),
        ({"tokens": ["<s>", "</s>", "</s>", "a", "b"]}, "token '</s>' occurs twice (ids 1 and 2)"),
        ({"tokens": ["<s>", "</s>", "a", "", "b"]}, "must not be empty"),
        ({"tokens": ["<s>", "</s>"]}, "at least one beside the specials"),
        ({"tokens": ["<s>", "</s>", "a", "bc", "d"]}, "holds 'bc', longer than one character"),
        ({"tokens": ["<s>", "</s>", "a", "\ud800", "d"]}, "half of a surrogate pair"),
        ({"tokens": ["<s>", "</s>", "a"]}, "holds 3 tokens, config.json says 5"),
    ],
)
def test_a_wrong_tokenizer_is_refused_with_its_reason(entry, fields, why):
    made = json.loads((entry / TOKENIZER).read_text()) | fields
    replace(entry, TOKENIZER, json.dumps(made).encode())
    assert why in refused(entry)


def test_a_broken_entry_is_listed_with_its_reason_and_the_others_serve(entry):
    models = entry.parent
    save(models / "other", CONFIG_OF_ALL, tokenizer_of(5), weights_of(CONFIG_OF_ALL))
    edit_config(entry, colour="blue")
    (models / "empty").mkdir()
    (models / "Not A Name").mkdir()
    (models / ".hidden").mkdir()
    (models / "README.md").write_text("not an entry")
    entries = scan(models)
    assert list(entries) == ["Not A Name", "empty", "other", "small"]
    assert {n for n, e in entries.items() if isinstance(e, Model)} == {"other"}
    assert "unknown key" in entries["small"].why
    assert "is not of the form" in entries["Not A Name"].why


def test_the_folder_of_one_model_is_a_repository_of_that_model(entry):
    edit_config(entry, colour="blue")
    (broken,) = scan(entry).values()
    assert (broken.name, "unknown key" in broken.why) == ("small", True)


def test_a_repository_that_is_not_there_says_so(tmp_path):
    with pytest.raises(ModelUnknown, match="not a folder"):
        scan(tmp_path / "none")


def test_links_are_followed_and_only_to_regular_files(entry):
    os.rename(entry / WEIGHTS, entry.parent / "elsewhere")
    os.symlink(entry.parent / "elsewhere", entry / WEIGHTS)
    assert load(entry).name == "small"
    os.remove(entry / WEIGHTS)
    os.symlink("/dev/zero", entry / WEIGHTS)
    assert "model.safetensors is no regular file" in refused(entry)
    os.remove(entry / WEIGHTS)
    os.symlink(WEIGHTS, entry / WEIGHTS)
    assert "model.safetensors cannot be read: Too many levels" in refused(entry)


def test_a_pipe_in_place_of_a_file_does_not_hang_the_server(entry):
    for name in (CONFIG, CARD):
        os.remove(entry / name)
        os.mkfifo(entry / name)
    assert "config.json is no regular file" in refused(entry)


def test_a_link_to_nowhere_and_a_name_that_is_no_text_are_listed_as_broken(entry):
    os.symlink("nowhere", entry.parent / "dangling")
    os.mkdir(os.fsencode(entry.parent) + b"/\xff")
    entries = scan(entry.parent)
    assert isinstance(entries["dangling"], Broken)
    assert isinstance(entries["\ufffd"], Broken)
    assert isinstance(entries["small"], Model)


def test_a_reason_is_short_however_long_what_it_quotes(entry):
    edit_config(entry, **{"k" * 500_000: 1})
    assert len(scan(entry.parent)["small"].why) <= 1_000


@pytest.mark.parametrize("name", ["..", "Upper", "-x", ".x", "a" * 64, "a b"])
def test_a_model_is_not_saved_under_a_name_out_of_form(tmp_path, name):
    with pytest.raises(ModelBroken, match="is not of the form"):
        save(tmp_path / "models" / name, CONFIG_OF_ALL, tokenizer_of(5), weights_of(CONFIG_OF_ALL))
    assert not (tmp_path / "models").exists()


def test_what_could_not_be_loaded_back_is_not_written_over_what_could(entry):
    before = load(entry).digest
    weights = weights_of(CONFIG_OF_ALL)
    with pytest.raises(ModelBroken, match="not finite"):
        save(entry, CONFIG_OF_ALL, tokenizer_of(5), {**weights, "head.bias": torch.full((5,), 1e6)})
    with pytest.raises(ModelBroken, match="holds 6 tokens"):
        save(entry, CONFIG_OF_ALL, tokenizer_of(6), weights)
    with pytest.raises(ModelBroken, match=r"lack the tensor 'head\.bias'"):
        save(entry, CONFIG_OF_ALL, tokenizer_of(5), {k: v for k, v in weights.items() if k != "head.bias"})
    with pytest.raises(ModelBroken, match="have the unknown tensor 'weight_hr_l0'"):
        save(entry, CONFIG_OF_ALL, tokenizer_of(5), {**weights, "weight_hr_l0": torch.zeros(1)})
    assert load(entry).digest == before


def test_a_weight_too_large_for_finite_logits_is_refused(tmp_path):
    config = dataclasses.replace(CONFIG_OF_ALL, precision="float32")
    weights = weights_of(config)
    weights["head.weight"][2, 3] = -1.1e12
    with pytest.raises(ModelBroken, match=r"head\.weight holds 1\.1e\+12; allowed: at most 1e\+12"):
        save(tmp_path / "large", config, tokenizer_of(5), weights)


@pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_logits_are_finite_with_the_largest_weights(cell, tied):
    config = dataclasses.replace(config_of(cell, V=13, L=2, pointers=pointers_of(13)), tied_head=tied)
    signs = {name: torch.sign(weight) for name, weight in weights_of(config).items()}
    network = Network(config)
    for weights in (signs, {name: torch.ones_like(weight) for name, weight in signs.items()}):
        network.load_weights({name: MAX_WEIGHT * weight for name, weight in weights.items()})
        tokens, pointed = torch.arange(13)[None], pointed_rows(config, range(13))[None]
        logits, *_ = network.eval()(tokens, network.zero_state(1), pointed)
        assert bool((logits.abs() < 2e33).all())


def test_pointers_are_saved_and_loaded_with_their_weights(tmp_path):
    config = config_of(CELLS[0], V=5, pointers=pointers_of(5))
    weights = weights_of(config)
    save(tmp_path / "m", config, tokenizer_of(5), weights)
    loaded = load(tmp_path / "m")
    assert loaded.config.pointers == config.pointers
    assert config.parameter_count() == sum(weight.numel() for weight in weights.values())
    assert all(torch.equal(loaded.weights[name], weight) for name, weight in weights.items())
