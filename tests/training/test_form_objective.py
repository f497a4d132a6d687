"""The form objective: forms that are too rare among a model's own tunes become likelier."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from gruve.errors import InvalidField, ModelBroken
from gruve.model.repository import Model, load
from gruve.training import form_objective
from gruve.training.batches import IGNORED, Batch
from gruve.training.config import Architecture, Batches, Form, Schedule, TrainingConfig, read_config
from gruve.training.corpus import read_tunes, tokens_of
from gruve.training.form_objective import GREATEST_RATIO, OwnTunes, advantages, class_of, form_class, form_loss
from gruve.training.melody import MelodyClasses
from gruve.training.pointing import pointed_rows
from gruve.training.quality import Sample, draw_samples
from gruve.training.trainer import Run, train
from gruve.tune.tokens import split
from tunes import write_books

MODELS = Path(__file__).parents[2] / "models"
HEAD = "L:1/8\nM:2/4\nK:Cmaj\n"
A, B, C = "CDEF", "GABc", "cBAG"
CONFIG = TrainingConfig(
    "run",
    "abc",
    Architecture("gru", 8, 24, 1, reset="after"),
    Schedule(8, 1e-2, 1e-4, 2, validate_every_steps=4, checkpoint_every_steps=3),
    Batches(rows=4),
    form=Form(weight=2.0, composed=100, every_steps=3, rows=4),
)


def tune(music: str) -> list[str]:
    return split(HEAD + music)


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        (f"{A}| {B}| {C}| c4|]", (0, None, None, False, True)),
        (f"{A}| {B}| {A}| G4|]", (3, None, None, False, False)),
        (f"{A}| {A}| {A}| {A}|]", (5, None, None, False, False)),
        (f"{A}| {B}| {C}| G4| {A}| FEDC| DEFG| c4|]", (2, True, None, True, True)),
        (f"{A}| {B}| {C}| G4| D4| FEDC| DEFG| c4:| {B}| {C}| G4| D4| E4| F4| DEFG| C4|]", (3, False, True, True, True)),
    ],
)
def test_a_form_is_what_the_report_of_form_counts(music: str, expected: tuple[object, ...]) -> None:
    assert form_class(tune(music)) == expected


def test_whether_a_bar_moves_is_compared_only_if_asked_for() -> None:
    moving, other = tune("CDEF| DEFG| c4| A4|]"), tune("CDEF| DEFA| c4| A4|]")
    assert form_class(moving) == form_class(other)
    assert form_class(moving, moves=True) == (*form_class(moving), True)
    assert form_class(other, moves=True) == (*form_class(other), False)


@pytest.mark.parametrize(
    ("music", "ended", "formed"),
    [
        (f"{A}| {B}| {C}| c4|]", True, True),
        (f"{A}| {B}| {C}| c4|]", False, False),
        (f"{A}| {B}C| {C}| c4|]", True, False),
        (f"{A}| {A}| {A}| {A}| c4|]", True, True),
        (f"{A}| {A}| {A}| {A}| {A}|]", True, False),
    ],
)
def test_an_unfinished_a_wrong_and_a_stuck_tune_have_no_form(music: str, ended: bool, formed: bool) -> None:
    assert (class_of(Sample((), HEAD + music, ended), tune(music)) is not None) == formed


def test_a_tune_whose_form_is_too_rare_has_an_advantage() -> None:
    rare, common = (0, None, None, False, True), (3, None, None, False, True)
    found = advantages([rare] + 7 * [common] + 2 * [None], Counter({rare: 50, common: 50}))
    assert found[0] > 0 > found[1] > found[-1] == -1
    assert sum(found) == pytest.approx(0, abs=1e-9)
    capped = advantages([rare, *99 * [common]], Counter({rare: 99, common: 1}))
    ratios = [(each + 1) / (capped[0] + 1) for each in capped]
    assert ratios[0] == 1
    assert GREATEST_RATIO * ratios[1] == pytest.approx((1.5 / 101) / (99.5 / 100))
    assert advantages([None, None], Counter({rare: 1})) == [0.0, 0.0]


@given(st.lists(st.sampled_from([None, (0,), (1,), (2,)]), min_size=1, max_size=60), st.integers(1, 50))
def test_advantages_are_0_in_the_mean_and_never_below_minus_1(classes: list[tuple[int] | None], first: int) -> None:
    found = advantages(classes, Counter({(0,): first, (1,): 20}))
    assert sum(found) == pytest.approx(0, abs=1e-9)
    assert min(found) >= -1
    assert all(one == other for one, kind in zip(found, classes, strict=True) for other in
               [value for value, same in zip(found, classes, strict=True) if same == kind])  # fmt: skip


def test_the_loss_is_the_clipped_one_of_ppo() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5, 7, generator=generator)
    targets = torch.randint(1, 7, (3, 5), generator=generator)
    targets[1, 3:] = IGNORED
    former = 2 + torch.randn(3, 5, generator=generator)
    weights = torch.tensor([2.0, -1.0, 0.5])
    cold = torch.ones(3, dtype=torch.bool)
    gains = []
    for n, T in enumerate((5, 3, 5)):
        for t in range(T):
            nats = float(cross_entropy(logits[n, t : t + 1], targets[n, t : t + 1]))
            ratio, advantage = math.exp(float(former[n, t]) - nats), float(weights[n]) - 0.5
            gains.append(min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage))
    batch = Batch(targets, targets, cold, advantages=weights, nats=former)
    assert float(form_loss(logits, batch)) == pytest.approx(-sum(gains) / 13, rel=1e-5)


def test_a_token_that_has_moved_far_enough_has_no_gradient() -> None:
    logits = torch.zeros(2, 1, 4, requires_grad=True)
    targets = torch.ones(2, 1, dtype=torch.long)
    cold = torch.ones(2, dtype=torch.bool)
    for moved, follows in ((0.0, True), (0.5, False)):  # by so many nats in the direction of its advantage
        former = math.log(4) + torch.tensor([[moved], [-moved]])
        batch = Batch(targets, targets, cold, advantages=torch.tensor([1.0, -1.0]), nats=former)
        (gradient,) = torch.autograd.grad(form_loss(logits, batch), logits)
        assert bool(gradient[0].any()) == bool(gradient[1].any()) == follows


def test_composed_tunes_are_those_of_a_server_with_their_advantages_and_pointers() -> None:
    folk = load(MODELS / "folk")
    wanted = [split(sample.text) for sample in draw_samples(folk, 20, seed=5)]
    own = OwnTunes(Form(composed=100, rows=8), wanted, seed=1)
    own.compose(folk, 0)
    drawn = draw_samples(folk, 100, seed=1_000_000)
    expected = {(0, *s.ids, 1) for s in drawn if s.ended and len(s.ids) <= 500}
    batch = own.next()
    assert batch.advantages is not None
    assert batch.pointed is not None
    assert batch.inputs.shape[0] == 8
    whole = torch.cat((batch.inputs, batch.targets[:, -1:]), dim=1)
    forms = [class_of(s, split(s.text)) for s in drawn]
    melody = MelodyClasses(wanted)
    melodies = [None if form is None else melody.class_of(split(s.text)) for s, form in zip(drawn, forms, strict=True)]
    of_form, of_melody = advantages(forms, Counter(map(form_class, wanted))), advantages(melodies, melody.wanted)
    values = [first + second for first, second in zip(of_form, of_melody, strict=True)]
    given_by = {(0, *s.ids, 1): value for s, value in zip(drawn, values, strict=True)}
    for row, pointed, advantage in zip(whole.tolist(), batch.pointed, batch.advantages.tolist(), strict=True):
        ids = tuple(row[: row.index(1) + 1])
        assert ids in expected
        assert advantage == pytest.approx(given_by[ids], rel=1e-6)
        alone = pointed_rows(folk.config, ids)
        assert alone is not None
        assert torch.equal(pointed[: len(ids) - 1], alone[:-1])


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What an untrained model composes has no form of the corpus.
    monkeypatch.setattr(form_objective, "class_of", lambda sample, _, moves: (min(len(sample.ids), 3),))
    books = write_books(tmp_path)
    whole = train(CONFIG, books, tmp_path / "whole")
    assert train(dataclasses.replace(CONFIG, form=None), books, tmp_path / "without").digest != whole.digest
    for step in (2, 3, 4):

        def stop(now: object, at: int = step) -> None:
            if getattr(now, "step", 0) == at:
                raise KeyboardInterrupt

        out = tmp_path / f"cut{step}"
        config = dataclasses.replace(CONFIG, schedule=dataclasses.replace(CONFIG.schedule, checkpoint_every_steps=1))
        with pytest.raises(KeyboardInterrupt):
            train(config, books, out, progress=stop)
        assert train(config, books, out, resume=True).digest == whole.digest


def test_the_gradient_makes_the_rare_form_likelier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two tunes that a model composes, one has the form of the corpus. Steps along the gradient make it likelier."""
    corpus = read_tunes(write_books(tmp_path))
    run = Run(CONFIG, corpus, tmp_path / "run")
    texts = ["".join(tokens) for tokens in tokens_of(corpus.tokenizer, corpus.train[:2])]
    ids = [tuple(corpus.tokenizer.encode(text)) for text in texts]
    monkeypatch.setattr(form_objective, "draw_samples", lambda *_, **__: [
        Sample(some, text, True, tuple(nats_of(some))) for some, text in zip(ids, texts, strict=True) for _ in range(50)
    ])  # fmt: skip
    monkeypatch.setattr(form_objective, "class_of", lambda sample, _, moves: (sample.ids == ids[0],))
    assert run.own_tunes is not None
    run.own_tunes._wanted = Counter({(True,): 9, (False,): 1})

    @torch.no_grad()
    def nats_of(some: tuple[int, ...]) -> list[float]:
        network, whole = run.network.eval(), torch.tensor([0, *some, 1])
        logits = network(whole[None, :-1], network.zero_state(1))[0][0]
        return cross_entropy(logits, whole[1:], reduction="none").tolist()

    run.own_tunes.compose(Model("m", run.model_config, corpus.tokenizer, {}), 0)
    before = [sum(nats_of(some)) for some in ids]
    optimiser = torch.optim.SGD(run.network.parameters(), lr=0.1)
    for _ in range(20):
        optimiser.zero_grad()
        run._form_loss().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    after = [sum(nats_of(some)) for some in ids]
    assert after[0] < before[0]
    assert after[1] > before[1]


def test_a_model_that_ends_no_tune_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_objective, "LONGEST_TOKENS", -1)
    with pytest.raises(ModelBroken, match=r"0 of 100 composed tunes end within -1 tokens; a batch .* needs 4"):
        train(CONFIG, write_books(tmp_path), tmp_path / "run")


@pytest.mark.parametrize(
    ("table", "names"),
    [("weight = 0", "form.weight"), ("composed = 9", "form.composed"), ("rows = 1", "form.rows"),
     ("every_steps = 0", "form.every_steps"), ("tunes = 3", "form.tunes")],
)  # fmt: skip
def test_a_wrong_table_is_refused_with_its_key(tmp_path: Path, table: str, names: str) -> None:
    text = (MODELS / "folk" / "initial.toml").read_text(encoding="utf-8")
    path = tmp_path / "training.toml"
    path.write_text(f"{text}\n[form]\n{table}\n", encoding="utf-8")
    with pytest.raises(InvalidField) as refused:
        read_config(path)
    assert refused.value.field == f"{path}: {names}"
    path.write_text(f"{text}\n[form]\n", encoding="utf-8")
    assert read_config(path).form == Form()
    assert read_config(path).digest() != read_config(MODELS / "folk" / "initial.toml").digest()
    shakespeare = (MODELS / "shakespeare" / "initial.toml").read_text(encoding="utf-8")
    path.write_text(f"{shakespeare}\n[form]\n", encoding="utf-8")
    with pytest.raises(InvalidField, match="form is a table for tunes; kind is 'characters'"):
        read_config(path)
