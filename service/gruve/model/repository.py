"""The folder of one model. Loading trusts nothing, and saving checks that the entry can be loaded.

    config.json  tokenizer.json  model.safetensors  README.md (the model card)

Weights come from safetensors only. Sizes are bounded before anything is read; hashes, names, shapes, types and
magnitudes are checked before a model is returned. `versions.py` finds the folders of a repository.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from gruve.errors import ModelBroken
from gruve.model.config import ModelConfig
from gruve.model.network import Network
from gruve.model.tokenizer import Tokenizer

CONFIG, TOKENIZER, WEIGHTS, CARD = "config.json", "tokenizer.json", "model.safetensors", "README.md"
MAX_CONFIG_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 16 << 20
MAX_HEADER_BYTES = 1 << 20
MAX_CARD_CHARACTERS = 1 << 16
MAX_WEIGHT = 1e12
"""The largest magnitude of a weight. States are between -1 and 1 and a step multiplies at most two weights, so with
4,096 x 4,096 such products, and a repetition penalty of 100, a logit stays below 2e33, and fp32 ends at 3e38."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A model that has passed every check: its configuration, tokenizer and weights."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    weights: dict[str, Tensor]
    """fp32 tensors on the CPU, already rounded to `config.precision`; shared, never written to."""
    description: str = ""
    """The card's first paragraph."""
    license: str = ""
    """The card's `license` field."""
    digest: str = dataclasses.field(init=False)
    """sha256 over canonical config, tokenizer and weights."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", self.config.digest())  # not a property, because every request reads it

    @property
    def tokenizer_digest(self) -> str:
        """The sha256 of the tokenizer's file. Equal digests mean equal tokenization."""
        return dict(self.config.files)[TOKENIZER]

    def network(self) -> Network:
        """A fresh Network with these weights, in evaluation mode."""
        network = Network(self.config)
        network.load_weights(self.weights)
        return network.eval()


def load(folder: Path, name: str | None = None) -> Model:
    """Loads a model, called `name` or as its folder; raises `ModelBroken` with the file and what is wrong with it."""
    name = folder.name if name is None else name
    check_name(name)
    config = read_config(folder)
    tokenizer = load_tokenizer(folder, config)
    weight_bytes = _read(folder / WEIGHTS, max_weight_bytes(config))
    _check_hash(WEIGHTS, weight_bytes, config)
    card_license, description = read_card(folder)
    return Model(name, config, tokenizer, _weights(weight_bytes, config), description, card_license)


def load_given(folder: Path) -> Model:
    """Loads the model in a folder that somebody gave, such as "."; raises `ModelBroken` that names the folder."""
    if not folder.is_dir():
        raise ModelBroken(f"there is no model at {str(folder)!r}: not a folder")
    try:
        return load(Path(os.path.abspath(folder)))
    except ModelBroken as error:
        raise ModelBroken(f"the model at {str(folder)!r} cannot be loaded: {error}") from error


def check_unread(folder: Path) -> ModelConfig:
    """Checks a model as far as it can be without reading its weights: its config, tokenizer, and the weights' shapes.

    Raises `ModelBroken` as `load` does. A weight that was changed is found by `load` alone.
    """
    config = read_config(folder)
    load_tokenizer(folder, config)
    path = folder / WEIGHTS
    header, size = _read(path, max_weight_bytes(config), 8 + MAX_HEADER_BYTES), path.stat().st_size
    needed = (
        _check_header(header, size, config) + (2 if config.precision == "float16" else 4) * config.parameter_count()
    )
    if size != needed:
        raise ModelBroken(f"{WEIGHTS} has {size} bytes; its tensors need {needed}")
    return config


def read_config(folder: Path) -> ModelConfig:
    """The blueprint of a model, which names the sha256 of its other files. Raises `ModelBroken`."""
    config = ModelConfig.from_json(decode_text(CONFIG, _read(folder / CONFIG, MAX_CONFIG_BYTES)))
    if set(dict(config.files)) != {TOKENIZER, WEIGHTS}:
        raise ModelBroken(f"{CONFIG}: files names {sorted(dict(config.files))}; it must name {[WEIGHTS, TOKENIZER]}")
    return config


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model. Raises `ModelBroken`."""
    return Tokenizer.from_json(decode_text(TOKENIZER, _read(folder / TOKENIZER, MAX_TOKENIZER_BYTES)))


def load_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer that a model's config names. Raises `ModelBroken` if it is another one."""
    content = _read(folder / TOKENIZER, MAX_TOKENIZER_BYTES)
    _check_hash(TOKENIZER, content, config)
    tokenizer = Tokenizer.from_json(decode_text(TOKENIZER, content))
    _check_sizes(tokenizer, config)
    return tokenizer


def _check_hash(file: str, content: bytes, config: ModelConfig) -> None:
    found, expected = hashlib.sha256(content).hexdigest(), dict(config.files)[file]
    if found != expected:
        raise ModelBroken(
            f"{file} has {len(content)} bytes with sha256 {found[:16]}…; {CONFIG} expects {expected[:16]}… "
            "(truncated, changed or of another model)"
        )


def max_weight_bytes(config: ModelConfig) -> int:
    """The maximum size of the file of a model's weights."""
    return 4 * config.parameter_count() + MAX_HEADER_BYTES + 8


def save(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer, weights: dict[str, Tensor], card: str | None = None
) -> Model:
    """Writes an entry, with weights rounded to `config.precision`, and loads it back.

    Raises `ModelBroken`, before anything is written, for an entry that could not be loaded: weights that are beyond
    `MAX_WEIGHT` or become infinite by rounding, or are missing, unknown or of another shape; a tokenizer of another
    size; an invalid name.
    Files are replaced one by one, `config.json` last, so that an entry that was cut off fails its hash and is never
    half served.
    """
    stored = torch.float16 if config.precision == "float16" else torch.float32
    check_name(folder.name)
    _check_sizes(tokenizer, config)
    for name in sorted(set(config.shapes()) ^ set(weights)):
        raise ModelBroken(f"the weights {'have the unknown' if name in weights else 'lack the'} tensor {name!r}")
    tensors = {name: weights[name].detach().to("cpu", stored).contiguous() for name in config.shapes()}
    contents = {TOKENIZER: tokenizer.to_json().encode(), WEIGHTS: save_safetensors(tensors)}
    _weights(contents[WEIGHTS], config)
    files = tuple(sorted((name, hashlib.sha256(content).hexdigest()) for name, content in contents.items()))
    contents[CONFIG] = dataclasses.replace(config, files=files).to_json().encode()
    if card is not None:
        contents = {CARD: card.encode(), **contents}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        partial = folder / f".{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, folder / name)
    return load(folder)


def check_name(name: str) -> None:
    """Refuses a name that is out of form, with `ModelBroken`."""
    if not NAME.fullmatch(name):
        raise ModelBroken(f"model name {name!r} is not of the form {NAME.pattern}")


def _check_sizes(tokenizer: Tokenizer, config: ModelConfig) -> None:
    if tokenizer.size != config.vocabulary_size:
        raise ModelBroken(f"{TOKENIZER} holds {tokenizer.size} tokens, {CONFIG} says {config.vocabulary_size}")
    if config.pointers is not None and config.pointers.start_token not in (-1, tokenizer.start_id):
        raise ModelBroken(
            f"{CONFIG}: pointers: start_token is {config.pointers.start_token}; "
            f"allowed: {tokenizer.start_id}, the start token of {TOKENIZER}, or -1"
        )


def decode_text(name: str, content: bytes) -> str:
    """The text of a file of a model, called `name`. Raises `ModelBroken` if it is not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ModelBroken(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error


def _read(path: Path, most_bytes: int, first_bytes: int | None = None) -> bytes:
    """Reads the file, or its first bytes, after checking its size. Follows links. Opens only regular files."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelBroken(f"{path.name} is no regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most_bytes:
                raise ModelBroken(f"{path.name} has {size} bytes; at most {most_bytes} are possible")
            return file.read(most_bytes if first_bytes is None else first_bytes)
    except OSError as error:
        raise ModelBroken(f"{path.name} cannot be read: {error.strerror}") from error


def _check_header(content: bytes, size: int, config: ModelConfig) -> int:
    """Checks names, types and shapes in the header of weights of `size` bytes; returns where the numbers begin."""
    expected = config.shapes()
    dtype = "F16" if config.precision == "float16" else "F32"
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else size
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise ModelBroken(f"{WEIGHTS} is no safetensors file: its header does not fit into its {size} bytes")
    try:
        header = json.loads(content[8 : 8 + length])
        found = {
            name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items() if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelBroken(f"{WEIGHTS} has no readable safetensors header: {error}") from error
    for name in sorted(set(expected) ^ set(found)):
        raise ModelBroken(f"{WEIGHTS} {'lacks' if name in expected else 'has the unknown'} tensor {name!r}")
    for name, shape in expected.items():
        if found[name] != (dtype, shape):
            raise ModelBroken(f"{WEIGHTS}: {name} is {found[name][0]} {found[name][1]}; expected {dtype} {shape}")
    return 8 + int(length)


def _weights(content: bytes, config: ModelConfig) -> dict[str, Tensor]:
    """Returns the checked tensors as fp32."""
    _check_header(content, len(content), config)
    try:
        tensors = load_safetensors(content)
    except SafetensorError as error:
        raise ModelBroken(f"{WEIGHTS} is no valid safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelBroken(f"{WEIGHTS}: {name} holds values that are not finite")
        if bool((tensor.abs() > MAX_WEIGHT).any()):
            raise ModelBroken(
                f"{WEIGHTS}: {name} holds {float(tensor.abs().max()):.3g}; allowed: at most {MAX_WEIGHT:g}, "
                "beyond which logits may not be finite"
            )
    return {name: tensors[name].float() for name in config.shapes()}


def read_card(folder: Path) -> tuple[str, str]:
    """Returns (license, first paragraph) of a model card. A card that is missing or malformed raises nothing."""
    path = folder / CARD
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "", ""
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_CARD_CHARACTERS)
    except OSError:
        return "", ""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    front, body = (found.group(1), text[found.end() :]) if found else ("", text)
    licensed = re.search(r"^license:[ \t]*(\S+)", front, re.MULTILINE)
    paragraphs = [p.strip() for p in body.split("\n\n") if p.strip() and not p.lstrip().startswith(("#", "!", "<"))]
    return (licensed.group(1) if licensed else ""), (" ".join(paragraphs[0].split()) if paragraphs else "")
