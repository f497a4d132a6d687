"""The training run: batch, loss, gradient, clipping, update, average; at intervals validation and a checkpoint.

Config, corpus and machine determine a run. If it is interrupted and resumed, it ends with the same bits.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gruve.errors import ModelBroken
from gruve.model.config import ModelConfig
from gruve.model.network import Dropout
from gruve.model.repository import Model, save
from gruve.model.tokenizer import Tokenizer
from gruve.training.auxiliary import CLASSES
from gruve.training.batches import IGNORED, Batch, Source, TextBatches, TuneBatches
from gruve.training.checkpoint import FILE, Checkpoint, load_checkpoint, save_checkpoint
from gruve.training.config import Teachers, TrainingConfig
from gruve.training.corpus import (
    Corpus,
    TextCorpus,
    TuneCorpus,
    read_corpus,
    tokens_of,
    vocabulary_difference,
    with_pointers,
)
from gruve.training.evaluate import carried_loss, tunes_loss
from gruve.training.form_objective import OwnTunes, form_loss
from gruve.training.initial import initial_model, initial_weights
from gruve.training.loss_curve import Curve
from gruve.training.pointing import pointer_config
from gruve.training.recurrence import TrainingNetwork
from gruve.training.teachers import load_teachers, taught_loss, taught_text, taught_tunes
from gruve.training.unlikelihood import unlikelihood_loss

VALIDATION_ROWS = 16
"""The parts of a text that are validated side by side during a run. The final figures carry one state through all of
it."""


NEVER_INTERRUPTED: AbstractContextManager[Callable[[], bool]] = nullcontext(lambda: False)
UNDECAYED = ("embedding.weight", "pointers.")
"""Weights without weight decay: tables, whose rows are trained only when they occur, and the pointers' gates."""


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run."""

    step: int
    steps: int
    tokens: int
    tokens_per_second: float
    learning_rate: float
    train_loss: float
    """Nats per token with dropout, over the steps since the last validation."""
    validation_loss: float | None
    """Nats per token of the averaged weights, if this step ended with a validation."""


def train(
    config: TrainingConfig,
    corpus_path: Path,
    out: Path,
    *,
    resume: bool = False,
    initial: Path | None = None,
    teachers: Sequence[Path] = (),
    note: Callable[[str], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
    deferring: AbstractContextManager[Callable[[], bool]] = NEVER_INTERRUPTED,
) -> Model:
    """Trains a model and leaves it in `out`, with `losses.csv`, `curves.png` and the checkpoint beside it.

    The name of the folder `out` becomes the model's name. With `resume`, the run continues at the checkpoint in `out`
    and ends with the same weights as a run without interruption. `initial` is the folder of the model whose weights the
    run begins with; the config's `initial_digest` must be its digest. `teachers` are the folders of the models that the
    config names as its teachers; a run that is resumed needs them again. `note` is called with the summary of the
    corpus, before the first update.

    Raises `CorpusError` for an unusable corpus. Raises `ModelBroken` for a checkpoint of another config or corpus, if
    there is a checkpoint and `resume` is false, or none and `resume` is true. Raises `ModelBroken` if a loss is not
    finite, and `OSError` if nothing can be written in `out`.

    The updates run within `deferring`, which yields a function that is called after every update. Once it returns true,
    a checkpoint is written and `KeyboardInterrupt` is raised.
    """
    checkpoint = load_checkpoint(out) if resume else None
    if checkpoint is None and (out / FILE).exists():
        raise ModelBroken(f"{out / FILE} is there already: resume that run, or remove it")
    corpus = read_corpus(config, corpus_path)
    with _fixed_arithmetic(config):
        note(corpus.summary)
        if isinstance(corpus, TuneCorpus):
            corpus = with_pointers(corpus, model_config(config, corpus.tokenizer))
        run = Run(config, corpus, out, teachers)
        if checkpoint is not None:
            run.restore(checkpoint)
        elif initial is not None or config.initial_digest:
            run.begin_with(initial_model(config, initial))
        run.curve.write()  # fails now if nothing can be written in `out`, not after 500 updates
        with deferring as interrupted:
            while run.step < config.schedule.steps:
                progress(run.advance())
                if interrupted():
                    save_checkpoint(out, run.checkpoint())
                    raise KeyboardInterrupt
        return run.finish()


class Run:
    """A run under way: the network, its average, the optimiser, and the place in the corpus."""

    def __init__(self, config: TrainingConfig, corpus: Corpus, out: Path, teachers: Sequence[Path] = ()) -> None:
        self.config, self.corpus, self.out = config, corpus, out
        self.model_config = model_config(config, corpus.tokenizer)
        self.network = TrainingNetwork(self.model_config, in_bfloat16=config.arithmetic == "bfloat16")
        self.auxiliary_head: nn.Linear | None = None
        if config.objective.auxiliary_weight:
            self.auxiliary_head = nn.Linear(self.model_config.hidden_size, sum(CLASSES))
        self.average = {name: weight.detach().clone() for name, weight in self._parameters().items()}
        self.optimiser = _optimiser(config, self._parameters())
        self.source = _source(config, corpus, self.model_config, teachers)
        self.own_tunes: OwnTunes | None = None
        if config.form is not None and isinstance(corpus, TuneCorpus):
            moves = bool(config.pointers and config.pointers.transposed)
            tunes = tokens_of(corpus.tokenizer, corpus.train)
            self.own_tunes = OwnTunes(config.form, tunes, config.seed, moves=moves)
        self.carried = self.network.zero_state(config.batches.rows)
        self.curve = Curve(out)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self._sum_loss, self._sum_tokens = 0.0, 0

    @torch.no_grad()
    def begin_with(self, model: Model) -> None:
        """Copies the weights of another model.

        Pointers that it does not have begin at zero and so change nothing at first.
        """
        if model.tokenizer != self.corpus.tokenizer:
            differs = vocabulary_difference(model.tokenizer, self.corpus.tokenizer)
            raise ModelBroken(f"the initial model {model.name!r} has another vocabulary than the corpus: {differs}")
        begun = initial_weights(self.model_config, model)
        for name, weight in self.network.named_weights().items():
            weight.copy_(begun[name])
            self.average[name].copy_(weight)

    def advance(self) -> Progress:
        """Does one update of the weights, and the validation and checkpoint that are due after it."""
        schedule, form = self.config.schedule, self.config.form
        began = time.perf_counter()
        if form is not None and self.own_tunes is not None and self.step % form.every_steps == 0:
            self.own_tunes.compose(self._present_model(), self.step // form.every_steps)
        rate = learning_rate(self.config, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        batch = self.source.next()
        loss, scored = self._update(batch)
        if not math.isfinite(loss):  # and so are the weights from here on
            raise ModelBroken(f"the loss of update {self.step + 1} is {loss}; take a lower learning_rate or clip_norm")
        self.step += 1
        self.tokens += scored
        self._sum_loss, self._sum_tokens = self._sum_loss + loss * scored, self._sum_tokens + scored
        train_loss, validation_loss = self._sum_loss / self._sum_tokens, None
        last = self.step == schedule.steps
        if self.step % schedule.validate_every_steps == 0 or last:
            validation_loss = self._validate()
            self.curve.add(self.step, self.tokens, rate, train_loss, validation_loss)
            self._sum_loss, self._sum_tokens = 0.0, 0
        self.seconds += time.perf_counter() - began
        if self.step % schedule.checkpoint_every_steps == 0 or last:
            save_checkpoint(self.out, self.checkpoint())
        return Progress(
            self.step, schedule.steps, self.tokens, self.tokens / self.seconds, rate, train_loss, validation_loss
        )

    def _update(self, batch: Batch) -> tuple[float, int]:
        """Does one step of the optimiser on one batch; returns nats per token and the number of scored tokens."""
        self.network.train()
        self.network.dropout, self.network.weight_dropout = dropout_at(self.config, self.step)
        state = tuple(s.masked_fill(batch.cold[None, :, None], 0.0) for s in self.carried)
        logits, state, outputs = self.network(batch.inputs, state, batch.pointed)
        self.carried = tuple(s.detach() for s in state)
        loss = cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
        total = self._next_token_loss(batch, logits, loss)
        total = total + self._auxiliary_loss(batch, logits, outputs) + self._form_loss()
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
        parameters = self._parameters()
        nn.utils.clip_grad_norm_(parameters.values(), self.config.schedule.clip_norm)
        self.optimiser.step()
        # Early in the run the average follows closely, so that it does not keep the untrained weights.
        decay = min(self.config.schedule.average_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, weight in parameters.items():
                self.average[name].lerp_(weight, 1 - decay)
        return float(loss.detach()), int((batch.targets != IGNORED).sum())

    def _next_token_loss(self, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        """`loss`, the cross-entropy against the corpus; with teachers, its mean with that against them."""
        teachers = self.config.teachers
        if teachers is None or batch.taught is None:
            return loss
        return torch.lerp(loss, taught_loss(logits, batch.taught, batch.targets), teachers.weight)

    def _auxiliary_loss(self, batch: Batch, logits: Tensor, outputs: Tensor) -> Tensor:
        """The loss that the objective adds for a batch of tunes; zero for a text."""
        objective, extra = self.config.objective, logits.new_zeros(())
        if batch.auxiliary is not None and self.auxiliary_head is not None:
            answers = self.auxiliary_head(outputs).flatten(0, 1).split(CLASSES, dim=1)
            right = batch.auxiliary.flatten(0, 1).unbind(dim=1)
            losses = [cross_entropy(a, b, ignore_index=IGNORED) for a, b in zip(answers, right, strict=True)]
            extra = extra + objective.auxiliary_weight * torch.stack(losses).sum()
        if batch.unlikely is not None and isinstance(self.corpus, TuneCorpus) and objective.unlikelihood_weight:
            unlikely = self.corpus.unlikely[batch.unlikely.flatten()]
            scored = (batch.targets != IGNORED).flatten()
            extra = extra + objective.unlikelihood_weight * unlikelihood_loss(logits.flatten(0, 1), unlikely, scored)
        return extra

    def _form_loss(self) -> Tensor:
        """The loss of the form objective on the next batch of composed tunes; zero without one."""
        if self.config.form is None or self.own_tunes is None:
            return torch.zeros(())
        batch = self.own_tunes.next()
        network = self.network.eval()  # without dropout, as the tunes were composed
        logits, _, _ = network(batch.inputs, network.zero_state(len(batch.inputs)), batch.pointed)
        return self.config.form.weight * form_loss(logits, batch)

    def _validate(self) -> float:
        """Nats per token of the averaged weights on the validation part."""
        network = self.averaged_network()
        if isinstance(self.corpus, TextCorpus):
            return carried_loss(network, self.corpus.tokenizer.encode(self.corpus.validation), VALIDATION_ROWS)
        return tunes_loss(network, self.corpus.validation).nats_per_token

    def averaged_network(self) -> TrainingNetwork:
        """Returns a network with the averaged weights, in evaluation mode."""
        network = TrainingNetwork(self.model_config, in_bfloat16=self.network.in_bfloat16)
        network.load_weights(self.average)
        return network.eval()

    def _present_model(self) -> Model:
        """The model with the weights as they are, not averaged, so that it composes what this network would."""
        config = self.model_config
        stored = torch.float16 if config.precision == "float16" else torch.float32
        parameters = self._parameters()
        weights = {name: parameters[name].detach().to(stored).float() for name in config.shapes()}
        return Model(self.config.name, config, self.corpus.tokenizer, weights)

    def checkpoint(self) -> Checkpoint:
        """Returns everything that `restore` needs."""
        tensors = {f"weights/{name}": weight for name, weight in self._parameters().items()}
        tensors |= {f"average/{name}": weight for name, weight in self.average.items()}
        names = list(self._parameters())
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{kind}/{names[index]}": value for kind, value in moments.items()}
        tensors |= {f"carried/{index}": s for index, s in enumerate(self.carried)}
        tensors |= {f"source/{name}": value for name, value in self.source.state().items()}
        if self.own_tunes is not None:
            tensors |= {f"own/{name}": value for name, value in self.own_tunes.state().items()}
        tensors["generator"] = torch.get_rng_state()
        tensors["running"] = torch.tensor([self._sum_loss, self._sum_tokens], dtype=torch.float64)
        return Checkpoint(
            self.config.digest(), self.corpus.sha256, self.step, self.tokens, round(self.seconds, 3), tensors
        )

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Restores the run from `checkpoint`."""
        if checkpoint.config_digest != self.config.digest():
            raise ModelBroken(f"{self.out / FILE} was made with another training config; give that one")
        if checkpoint.corpus_sha256 != self.corpus.sha256:
            found = f"the corpus has sha256 {self.corpus.sha256}; the run began with {checkpoint.corpus_sha256}"
            raise ModelBroken(f"{self.out / FILE} was made with another corpus: {found}")
        groups: dict[str, dict[str, Tensor]] = {}
        for path, tensor in checkpoint.tensors.items():
            group, _, name = path.replace("landmark_head.", "auxiliary_head.").partition("/")  # its former name
            groups.setdefault(group, {})[name] = tensor
        names = list(self._parameters())
        for name, weight in self._parameters().items():
            weight.copy_(groups["weights"][name])
            self.average[name].copy_(groups["average"][name])
        state: dict[int, dict[str, Tensor]] = {}
        for path, tensor in groups["optimiser"].items():
            kind, _, name = path.partition("/")
            state.setdefault(names.index(name), {})[kind] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.carried = tuple(groups["carried"][str(i)] for i in range(len(self.carried)))
        self.source.restore(groups["source"])
        if self.own_tunes is not None:
            self.own_tunes.restore(self.model_config, groups["own"])
        torch.set_rng_state(groups["generator"][""])
        self._sum_loss, self._sum_tokens = groups["running"][""][0].item(), int(groups["running"][""][1])
        self.step, self.tokens, self.seconds = checkpoint.step, checkpoint.tokens, checkpoint.seconds
        self.curve.cut(self.step)

    def finish(self) -> Model:
        """Draws the curve and saves the averaged weights as an entry of a model repository."""
        self.curve.draw()
        card = self.out / "README.md"
        weights = {name: self.average[name] for name in self.model_config.shapes()}
        return save(
            self.out,
            self.model_config,
            self.corpus.tokenizer,
            weights,
            card.read_text(encoding="utf-8") if card.exists() else None,
        )

    def _parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name; those of the auxiliary head are last."""
        parameters = self.network.named_weights()
        if self.auxiliary_head is not None:
            parameters |= {f"auxiliary_head.{name}": p for name, p in self.auxiliary_head.named_parameters()}
        return parameters


def model_config(config: TrainingConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The configuration of the model that a run makes."""
    pointers = None if config.pointers is None else pointer_config(config.pointers, tokenizer)
    blueprint = config.architecture.model_config(tokenizer.size, pointers)
    return dataclasses.replace(blueprint, default_temperature=config.default_temperature)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of the update after `step` others: a linear warm-up, then half a cosine."""
    s = config.schedule
    if step < s.warmup_steps:
        return s.learning_rate * (step + 1) / s.warmup_steps
    done = (step - s.warmup_steps) / max(s.steps - s.warmup_steps, 1)
    return s.final_learning_rate + (s.learning_rate - s.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * done))


def dropout_at(config: TrainingConfig, step: int) -> tuple[Dropout, float]:
    """Locked dropout and weight dropout of the update after `step` others."""
    r = config.regularisation
    past_half = max(0.0, 2 * step / config.schedule.steps - 1)
    left = 1 - (1 - r.final_share) * past_half
    return Dropout(left * r.dropout_embedding, left * r.dropout_between, left * r.dropout_head), left * r.dropout_weight


def _optimiser(config: TrainingConfig, parameters: dict[str, Tensor]) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), with one group per tensor so that names and moments stay together."""
    decay = config.regularisation.weight_decay
    groups = [
        {"params": [p], "weight_decay": decay if p.dim() == 2 and not name.startswith(UNDECAYED) else 0.0}
        for name, p in parameters.items()
    ]
    return torch.optim.AdamW(groups, lr=config.schedule.learning_rate, betas=(0.9, 0.99), fused=True)


def _source(config: TrainingConfig, corpus: Corpus, model: ModelConfig, folders: Sequence[Path]) -> Source:
    teachers = load_teachers(config.teachers or Teachers([]), folders, corpus)
    if isinstance(corpus, TextCorpus):
        ids = corpus.tokenizer.encode(corpus.train)
        taught = taught_text(teachers, ids) if teachers else None
        return TextBatches(ids, config.batches, config.seed, model.pointers, model.vocabulary_size, taught)
    tunes = taught_tunes(teachers, corpus.train) if teachers else corpus.train
    return TuneBatches(tunes, config.batches, config.seed)


@contextmanager
def _fixed_arithmetic(config: TrainingConfig) -> Iterator[None]:
    """Seeds torch and sets its threads for the run, and restores both afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
