"""The pointers in training are those of the definition for the same transcript."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from gruve.errors import InvalidField, ModelBroken
from gruve.model.oracle import Oracle
from gruve.model.pointer_tracker import PointerTracker
from gruve.model.repository import Model, load, save
from gruve.model.tokenizer import build
from gruve.training.batches import START_ID, TextBatches, pad
from gruve.training.config import (
    Architecture,
    Batches,
    Pointers,
    Regularisation,
    Schedule,
    TrainingConfig,
    read_config,
)
from gruve.training.corpus import read_corpus, read_tunes, with_pointers
from gruve.training.evaluate import carried_loss, cold_loss, evaluate_tunes
from gruve.training.pointing import UNIT, advance_of, pointed_rows, pointer_config
from gruve.training.trainer import Run, train
from nets import CELLS, config_of, model_of, pointers_of
from tunes import write_books

FOLLOWERS = Pointers([], [1, 2, 3], 4)
CONFIG = TrainingConfig(
    name="run",
    kind="characters",
    architecture=Architecture("gru", embedding_size=8, hidden_size=24, num_layers=2, reset="after"),
    schedule=Schedule(12, 1e-2, 1e-4, warmup_steps=2, validate_every_steps=4, checkpoint_every_steps=5),
    batches=Batches(rows=4, steps=16, cold_share=0.2),
    regularisation=Regularisation(0.1, 0.1, 0.1, 0.1, weight_decay=0.01),
    pointers=FOLLOWERS,
)


@pytest.fixture(name="corpus")
def a_corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("the cat sat on the mat, and the dog sat on the cat.\n" * 60, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("token", "units"),
    [
        ("c", 1), ("(2", 1), ("(4", -1), ("M:6/8\n", 0),
        ("^F,", 1), ("z", 1), ("2", 1), ("/2", -0.5), ("3/2", 0.5), ("16", 15), ("(3", -1),
        ("(5", -3), ("(3:2:4", -4 / 3), ("<", 0), (">", 0), ("-", 0), ("| ", 0), ("|: ", 0), ("K:Dmaj\n", 0),
    ],
)  # fmt: skip
def test_a_token_moves_the_place_by_its_share_of_a_unit(token: str, units: float) -> None:
    assert advance_of(token) == int(units * UNIT)


def test_the_pointers_of_tunes_know_bars_and_parts() -> None:
    tokenizer = build("abc", [["K:Cmaj\n", "c", "2", "| ", "|: ", "|1 "]], has_end=True)
    config = pointer_config(Pointers([1], [2], 8), tokenizer)

    def named(ids: tuple[int, ...]) -> set[str]:
        return {tokenizer.vocabulary[i] for i in ids}

    assert named(config.bar_tokens) == {"K:Cmaj\n", "| ", "|: ", "|1 "}
    assert named(config.part_tokens) == {"|: "}
    assert [config.advances[tokenizer.encode(token)[0]] for token in ("c", "2", "| ")] == [UNIT, UNIT, 0]
    assert config.advances[:2] == (0, 0)
    config.check_vocabulary(tokenizer.size)


def test_the_scale_of_tunes_is_their_natural_notes_from_low_to_high() -> None:
    tokenizer = build("abc", [["B,", "C", "c", "^C", "D", "E", "F", "G", "A", "B", "d", "f'", "| "]], has_end=True)
    config = pointer_config(Pointers([], [], 8, [1, 2]), tokenizer)
    assert config.transposed == (1, 2)
    assert [tokenizer.vocabulary[i] for i in config.scale] == ["B,", *"CDEFGABcd"]  # nothing leads up to f'
    assert pointer_config(Pointers([1]), tokenizer).scale == ()


def test_a_text_has_no_bars() -> None:
    tokenizer = build("characters", ["abc"], has_end=False)
    with pytest.raises(InvalidField, match=r"pointers\.transposed is \[1\]; allowed: none with kind 'characters'"):
        pointer_config(Pointers([], [2], 4, [1]), tokenizer)
    with pytest.raises(InvalidField, match=r"pointers\.bars is \[1\]; allowed: none with kind 'characters'"):
        pointer_config(Pointers([1], [2]), tokenizer)


def test_a_reader_of_a_text_is_shown_what_it_has_read_since_it_began_cold() -> None:
    ids = torch.randint(1, 5, (3_000,), generator=torch.Generator().manual_seed(1)).tolist()
    config = pointer_config(Pointers([], [1, 2, 5], 6), build("characters", ["abcd"], has_end=False))
    source = TextBatches(ids, Batches(rows=3, steps=150, cold_share=0.2), 1, config, 5)
    trackers = [PointerTracker(config, 5) for _ in range(3)]
    restored = None
    for step in range(25):  # past 1,024 tokens of some reader, and past the end of the text
        if step == 10:
            saved = source.state()
            restored = TextBatches(ids, Batches(rows=3, steps=150, cold_share=0.2), 1, config, 5)
            restored.restore(saved)
        batch = source.next()
        assert batch.pointed is not None
        for row, tracker in enumerate(trackers):
            for token, pointed in zip(batch.inputs[row].tolist(), batch.pointed[row].tolist(), strict=True):
                fed = tracker.feed(token)
                assert pointed == [*fed.tokens, *fed.matches, fed.place_row, fed.count_row]
        if restored is not None:
            again = restored.next().pointed
            assert again is not None
            assert torch.equal(again, batch.pointed)


def test_pointers_change_no_batch_of_a_text() -> None:
    ids, batches = [1 + n % 4 for n in range(500)], Batches(rows=3, steps=20)
    config = pointer_config(FOLLOWERS, build("characters", ["abcd"], has_end=False))
    plain, pointing = TextBatches(ids, batches, 1), TextBatches(ids, batches, 1, config, 5)
    for _ in range(5):
        assert torch.equal(plain.next().inputs, pointing.next().inputs)


@pytest.fixture(name="tunes", scope="module")
def some_tunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_books(tmp_path_factory.mktemp("books"))


def test_joined_tunes_are_shown_each_its_own(tunes: Path) -> None:
    plain = read_tunes(tunes)
    pointers = pointer_config(Pointers([1, 2], [1, 3], 5, [1, 2]), plain.tokenizer)
    model = config_of(CELLS[0], V=plain.tokenizer.size, pointers=pointers)
    corpus = with_pointers(plain, model)
    one, other = corpus.train[0], corpus.train[1]
    joined = one.joined(other)
    expected = pointed_rows(model, joined.ids)
    assert expected is not None
    assert joined.pointed is not None
    assert torch.equal(joined.pointed, expected)
    batch = pad([one, joined])
    assert batch.pointed is not None
    assert torch.equal(batch.pointed[1], expected[:-1])
    assert batch.pointed.shape[:2] == batch.inputs.shape
    assert plain == corpus


def test_a_run_over_tunes_with_pointers_makes_a_model_that_loads(tmp_path: Path, tunes: Path) -> None:
    config = dataclasses.replace(CONFIG, kind="abc", pointers=Pointers([1, 4], [2], 4, [1]))
    model = train(config, tunes, tmp_path / "run")
    assert model.config.pointers is not None
    assert model.config.pointers.bars == (1, 4)
    assert load(tmp_path / "run").digest == model.digest


def nats_of(oracle: Oracle, ids: list[int]) -> list[float]:
    """The nats of each of `ids` after a start token."""
    spent = []
    for token, target in zip([START_ID, *ids[:-1]], ids, strict=True):
        logits = torch.from_numpy(oracle.step(token))
        spent.append(float(torch.logsumexp(logits, 0) - logits[target]))
    return spent


def test_losses_of_a_model_with_pointers_are_the_oracles() -> None:
    model = model_of(config_of(CELLS[0], pointers=pointers_of(13)))
    ids = torch.randint(1, 13, (520,), generator=torch.Generator().manual_seed(2)).tolist()
    network = model.network()
    carried = nats_of(Oracle(model.config, model.weights), ids)
    assert carried_loss(network, ids) == pytest.approx(sum(carried) / len(ids), rel=1e-5)
    windows = [nats_of(Oracle(model.config, model.weights), ids[at : at + 257])[1:] for at in (0, 256)]
    assert cold_loss(network, ids).nats_per_token == pytest.approx(sum(map(sum, windows)) / 512, rel=1e-5)
    whole = [i for i in ids[:30] if i > 1]
    nats = sum(nats_of(Oracle(model.config, model.weights), [*whole, 1]))
    assert evaluate_tunes(model, [whole]).nats == pytest.approx(nats, rel=1e-5)
    assert math.isfinite(nats)


@pytest.mark.parametrize("kind", ["characters", "abc"])
def test_an_interrupted_run_with_pointers_ends_with_the_same_bits(
    tmp_path: Path, corpus: Path, tunes: Path, kind: str
) -> None:
    config = dataclasses.replace(CONFIG, kind=kind, pointers=Pointers([1] if kind == "abc" else [], [2, 3], 4))
    path = corpus if kind == "characters" else tunes

    def stop(now: object) -> None:
        if getattr(now, "step", 0) == 7:
            raise KeyboardInterrupt

    whole = train(config, path, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, path, tmp_path / "cut", progress=stop)
    assert train(config, path, tmp_path / "cut", resume=True).digest == whole.digest


def test_a_run_begins_with_another_models_weights_and_pointers_at_zero(tmp_path: Path, corpus: Path) -> None:
    plain = train(dataclasses.replace(CONFIG, pointers=None), corpus, tmp_path / "plain")
    config = dataclasses.replace(CONFIG, initial_digest=plain.digest)
    run = Run(config, read_corpus(config, corpus), tmp_path / "run")
    run.begin_with(plain)
    ids = plain.tokenizer.encode("the cat sat on the mat")
    assert carried_loss(run.averaged_network(), ids) == pytest.approx(carried_loss(plain.network(), ids), rel=1e-6)
    model = train(config, corpus, tmp_path / "more", initial=tmp_path / "plain")
    assert float(model.weights["pointers.gate"].abs().max()) > 0


def test_a_run_takes_over_the_pointers_of_another_model_and_adds_its_own_at_zero(tmp_path: Path, tunes: Path) -> None:
    config = dataclasses.replace(CONFIG, kind="abc", pointers=Pointers([1, 4], [2], 4))
    before = train(config, tunes, tmp_path / "before")
    more = dataclasses.replace(config, pointers=Pointers([1, 4], [2], 4, [1, 2]), initial_digest=before.digest)
    run = Run(more, read_corpus(more, tunes), tmp_path / "run")
    run.begin_with(before)
    tune = run.corpus.train[0].ids[1:-1]
    now = Model("more", run.model_config, before.tokenizer, run.averaged_network().named_weights())
    assert evaluate_tunes(now, [tune]).nats == pytest.approx(evaluate_tunes(before, [tune]).nats, rel=1e-6)
    other = dataclasses.replace(more, pointers=Pointers([4, 1], [2], 4, [1, 2]))
    with pytest.raises(ModelBroken, match=r"the initial model's pointers\.\S+ is \(3, "):
        Run(other, read_corpus(other, tunes), tmp_path / "other").begin_with(before)


def test_an_initial_model_that_does_not_fit_is_refused(tmp_path: Path, corpus: Path) -> None:
    plain = train(dataclasses.replace(CONFIG, pointers=None), corpus, tmp_path / "plain")
    with pytest.raises(InvalidField, match="the folder of that model must be given"):
        train(dataclasses.replace(CONFIG, initial_digest=plain.digest), corpus, tmp_path / "a")
    with pytest.raises(InvalidField, match=f"is ''; the model in .*plain has '{plain.digest}'"):
        train(CONFIG, corpus, tmp_path / "b", initial=tmp_path / "plain")
    wider = dataclasses.replace(CONFIG.architecture, hidden_size=32)
    with pytest.raises(ModelBroken, match=r"layers\.0\.weight_ih is .72, 8.; the config makes it .96, 8."):
        train(
            dataclasses.replace(CONFIG, initial_digest=plain.digest, architecture=wider),
            corpus, tmp_path / "c", initial=tmp_path / "plain",
        )  # fmt: skip
    other = save(tmp_path / "other", plain.config, build("characters", ["x" + "".join(plain.tokenizer.vocabulary[2:])],
                 has_end=False), plain.weights)  # fmt: skip
    with pytest.raises(ModelBroken, match="another vocabulary than the corpus: only the model has 'x'"):
        train(
            dataclasses.replace(CONFIG, initial_digest=other.digest), corpus, tmp_path / "d", initial=tmp_path / "other"
        )


def test_a_table_of_pointers_is_read_and_a_wrong_one_refused(tmp_path: Path) -> None:
    text = (
        'name = "m"\nkind = "abc"\n[architecture]\ncell = "elman"\nembedding_size = 8\nhidden_size = 8\n'
        "num_layers = 1\n"
        "[schedule]\nsteps = 100\nlearning_rate = 1e-3\nfinal_learning_rate = 0\n[batches]\nrows = 2\n[pointers]\n"
    )
    path = tmp_path / "training.toml"
    path.write_text(text + "bars = [1, 2]\nfollowers = [3]\n")
    assert read_config(path).pointers == Pointers([1, 2], [3], 16)
    for line, why in (
        ("bars = 3", "must be a list"),
        ("bars = [true]", "must be a list"),
        ("bar = 1", "not known"),
    ):
        path.write_text(text + line)
        with pytest.raises(InvalidField, match=why):
            read_config(path)
