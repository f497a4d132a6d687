"""Begins, resumes and records generations: turns what a client asks of a session into what the engine is to decode.

Knows sessions and admissions; nothing of the wire, of text on its way out, or of time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gruve.decode import HISTORY
from gruve.decode.stops import MATCHED, StopTable, compile_stops
from gruve.engine.sequence import Admission, FinishReason, Progress
from gruve.errors import (
    GenerationMismatch,
    GruveError,
    InvalidField,
    ModelChanged,
    NumericsChanged,
    PositionMismatch,
    TranscriptFull,
)
from gruve.model.repository import Model
from gruve.model.sampling import SamplingParameters
from gruve.sessions.record import SNAPSHOT_TOKENS, START_TOKEN, Generation, Session

DEFAULT_MAX_TOKENS = 1_024


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request to generate, checked field by field and free of the wire. None and empty mean absent."""

    generation_id: str
    prompt: tuple[int, ...]
    sampling: Mapping[str, Any]
    """The `SamplingParameters` fields that the request sets; the rest inherit."""
    fresh_seed: int
    """Used where no seed is given or inherited."""
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    from_position: int | None = None
    expected_position: int | None = None
    logprobs: int | None = None
    echo: bool = False
    max_tokens_per_second: float | None = None
    deadline_s: float | None = None
    """Monotonic."""
    allow_numerics_change: bool = False
    rebase: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedGeneration:
    """A generation that was begun or resumed, with its session leased by the caller."""

    session: Session
    generation: Generation
    stops: StopTable | None
    first_position: int
    """The position of the first token to send."""
    known: tuple[int, ...]
    """Tokens from `generation.prompt_position` that are sent from the record; empty when they are computed again."""
    admission: Admission | None
    """What is left to decode; None when nothing is."""
    begun: bool
    """Whether the generation is new."""
    before: _SessionBackup
    """What `abandon` puts back."""
    asked: GenerationRequest


@dataclasses.dataclass(frozen=True, slots=True)
class _SessionBackup:
    """What a session was before a generation was opened on it, so far as that changes it."""

    digest: str
    numerics_id: str
    tokenizer_digest: str
    state: NDArray[np.float32] | None
    consumed: int
    snapshots: dict[int, NDArray[np.float32]]
    next_sampling: SamplingParameters | None
    position: int
    generations: int
    latest: tuple[FinishReason | None, bool] | None

    @classmethod
    def of(cls, session: Session) -> _SessionBackup:
        latest = session.generations[-1] if session.generations else None
        return cls(
            session.digest,
            session.numerics_id,
            session.tokenizer_digest,
            session.state,
            session.consumed,
            session.snapshots,
            session.next_sampling,
            session.position,
            len(session.generations),
            None if latest is None else (latest.finish_reason, latest.finished),
        )

    def restore(self, session: Session) -> None:
        session.digest, session.numerics_id = self.digest, self.numerics_id
        session.tokenizer_digest = self.tokenizer_digest
        session.state, session.consumed, session.snapshots = self.state, self.consumed, self.snapshots
        session.next_sampling = self.next_sampling
        del session.transcript[self.position :]
        del session.generations[self.generations :]
        if self.latest is not None:
            session.generations[-1].finish_reason, session.generations[-1].finished = self.latest


def open_generation(
    session: Session, asked: GenerationRequest, model: Model, numerics_id: str, *, now_s: float, max_transcript: int
) -> OpenedGeneration:
    """Begins a generation on `session`, or resumes the one of that id.

    The caller has leased the session. Raises what stands under `SessionError`, or `InvalidField`; then nothing was
    changed.
    """
    before = _SessionBackup.of(session)
    try:
        make_continuable(
            session, model, numerics_id, rebase=asked.rebase, allow_numerics_change=asked.allow_numerics_change
        )
        generation = session.generation(asked.generation_id)
        if generation is not None:
            return _resume(session, generation, asked, model, max_transcript, before)
        return _begin(session, asked, model, now_s, max_transcript, before)
    except GruveError:
        before.restore(session)
        raise


def abandon(opened: OpenedGeneration) -> None:
    """Takes back what `open_generation` wrote, when the engine would not take the sequence."""
    opened.before.restore(opened.session)


def make_continuable(
    session: Session, model: Model, numerics_id: str, *, rebase: bool = False, allow_numerics_change: bool = False
) -> None:
    """Refuses to go on with other weights or other arithmetic than the session was made with, unless allowed."""
    if session.digest != model.digest:
        if not rebase:
            raise ModelChanged(
                f"session {session.id!r} was made with model digest {session.digest[:16]}; "
                f"{model.name!r} now has {model.digest[:16]}; set rebase to rebuild it from its transcript",
                session_digest=session.digest,
                model_digest=model.digest,
            )
        if session.tokenizer_digest not in ("", model.tokenizer_digest):
            raise ModelChanged(
                f"session {session.id!r} holds tokens of another tokenizer than the one that {model.name!r} now has",
                session_digest=session.digest,
                model_digest=model.digest,
            )
        session.digest, session.numerics_id = model.digest, numerics_id
        session.drop_states()
        session.store_progress.events += 1
    if session.numerics_id != numerics_id:
        if not allow_numerics_change:
            raise NumericsChanged(
                f"session {session.id!r} was made under numerics {session.numerics_id}, this server has {numerics_id}; "
                "set allow_numerics_change to go on without bit-for-bit exactness",
                session_numerics_id=session.numerics_id,
                server_numerics_id=numerics_id,
            )
        session.numerics_id = numerics_id
        session.store_progress.events += 1


def _begin(
    session: Session, asked: GenerationRequest, model: Model, now_s: float, max_transcript: int, before: _SessionBackup
) -> OpenedGeneration:
    position = session.position
    if asked.expected_position is not None and asked.expected_position != position:
        raise PositionMismatch(
            f"expected_position is {asked.expected_position}; the session stands at {position}", position=position
        )
    sampling = inherit(session.sampling, asked)
    check_bias(sampling.logit_bias, model.tokenizer.size)
    max_tokens = DEFAULT_MAX_TOKENS if asked.max_tokens is None else asked.max_tokens
    min_tokens = asked.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidField("min_tokens", f"{min_tokens} is above max_tokens {max_tokens}")
    end_id = model.tokenizer.end_id
    if min_tokens and {end_id, *asked.stop_token_ids} >= set(range(model.tokenizer.size)):
        raise InvalidField("min_tokens", "every token of this model ends the generation, so none could be drawn before")
    restart = (START_TOKEN,) if session.transcript[-1] == end_id else ()
    start_position = position + len(restart) + len(asked.prompt)
    if start_position >= max_transcript:
        raise TranscriptFull(
            f"the transcript has {position} tokens and the prompt {len(restart) + len(asked.prompt)}; "
            f"at most {max_transcript - 1} leave room to generate"
        )
    stops = compile_stops(asked.stop, asked.stop_token_ids, model.tokenizer.texts)
    if session.generations and not session.generations[-1].finished:
        session.generations[-1].finish(FinishReason.CANCELLED)
    generation = Generation(
        id=asked.generation_id,
        prompt_position=position + len(restart),
        start_position=start_position,
        sampling=sampling,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=asked.ignore_eos,
        stop=asked.stop,
        stop_token_ids=asked.stop_token_ids,
        created_s=now_s,
        next_position=start_position,
        digest=session.digest,
        numerics_id=session.numerics_id,
    )
    session.next_sampling = None
    session.tokenizer_digest = model.tokenizer_digest
    session.transcript.extend(restart + asked.prompt)
    session.generations.append(generation)
    first_position = _first_position(generation, asked)
    admission = admission_of(session, generation, asked, stops, max_transcript, first_position)
    return OpenedGeneration(
        session, generation, stops, first_position, (), admission, begun=True, before=before, asked=asked
    )


def _resume(
    session: Session,
    generation: Generation,
    asked: GenerationRequest,
    model: Model,
    max_transcript: int,
    before: _SessionBackup,
) -> OpenedGeneration:
    check_same(session, generation, asked)
    first_position, next_position = _first_position(generation, asked), generation.next_position
    if generation.finished and first_position > next_position:
        raise PositionMismatch(
            f"from_position is {first_position}; generation {generation.id!r} ended at {next_position}",
            position=session.position,
        )
    stops = compile_stops(generation.stop, generation.stop_token_ids, model.tokenizer.texts)
    again = asked.logprobs is not None and first_position < next_position
    known = () if again else tuple(session.transcript[generation.prompt_position : next_position])
    admission = None
    if not generation.finished:
        generation.digest, generation.numerics_id = session.digest, session.numerics_id
    if again or not generation.finished:
        admission = admission_of(session, generation, asked, stops, max_transcript, first_position)
    return OpenedGeneration(
        session, generation, stops, first_position, known, admission, begun=False, before=before, asked=asked
    )


def _first_position(generation: Generation, asked: GenerationRequest) -> int:
    first = generation.prompt_position if asked.echo else generation.start_position
    return max(first, asked.from_position or 0)


def admission_of(
    session: Session,
    generation: Generation,
    asked: GenerationRequest,
    stops: StopTable | None,
    max_transcript: int,
    first_position: int,
) -> Admission:
    """Feeds the transcript from where the state stands, then draws what the generation has left to draw.

    Where the log-probabilities of tokens from `first_position` on are asked for that the state has consumed, everything
    is fed from the start.
    """
    from_start = asked.logprobs is not None and first_position <= session.consumed
    consumed = 0 if from_start else session.consumed
    end = generation.next_position if generation.finished else session.position
    most = generation.generated + (0 if generation.finished else max_transcript - session.position)
    transcript: NDArray[np.int32] = np.array(session.transcript[max(0, consumed + 1 - HISTORY) : end], dtype=np.int32)
    split = min(consumed + 1, HISTORY)
    matching = session.transcript[generation.matching_position : generation.next_position]
    return Admission(
        sampling=generation.sampling_at(end),
        history=transcript[:split],
        position=consumed,
        forced=transcript[split:],
        state=None if from_start else session.state,
        max_tokens=min(generation.max_tokens, most),
        min_tokens=generation.min_tokens,
        ignore_eos=generation.ignore_eos,
        stops=stops,
        stop_state=0 if stops is None else _stop_state(stops, matching),
        generated=generation.generated,
        logprobs=asked.logprobs,
        deadline_s=asked.deadline_s,
        max_tokens_per_second=asked.max_tokens_per_second,
        keep_state=bool(session.id) and not generation.finished,
        snapshot_tokens=SNAPSHOT_TOKENS if session.id and not generation.finished else None,
        # What a stream neither sends nor has to reckon with need not be told.
        deliver_forced=asked.echo or asked.logprobs is not None or bool(generation.changes),
    )


def record(session: Session, generation: Generation, progress: Progress) -> int:
    """Writes what a call made into the session and returns how many tokens are new to its transcript.

    With a progress that brings a state, the last one above all, the state moves along with the transcript; without one
    the old state stays, and stays true.
    """
    drawn = progress.tokens[progress.forced :] if progress.forced else progress.tokens
    session.transcript.extend(drawn)
    generation.next_position += len(drawn)
    if progress.state is not None:
        session.advance(progress.state, progress.position + len(progress.tokens) - 1)
    if progress.finish_reason is not None and not generation.finished:
        generation.finish_reason = progress.finish_reason
        generation.finished = progress.finish_reason in _FINAL
    return len(drawn)


_FINAL = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.END_OF_SEQUENCE)
"""What the tokens themselves decide. A sequence that was cut goes on when its generation is resumed."""


def inherit(before: SamplingParameters | None, asked: GenerationRequest) -> SamplingParameters:
    """The parameters in force: what is asked, else what the session had, else the defaults; a seed always."""
    if before is not None:
        return dataclasses.replace(before, **asked.sampling)
    return SamplingParameters(**{"seed": asked.fresh_seed, **asked.sampling})


def check_bias(logit_bias: Iterable[tuple[int, float]], vocabulary_size: int) -> None:
    """Refuses a bias for a token that does not exist."""
    for token, _ in logit_bias:
        if token >= vocabulary_size:
            raise InvalidField(
                "sampling.logit_bias", f"token id {token} does not exist; ids are 0 to {vocabulary_size - 1}"
            )


def check_same(session: Session, generation: Generation, asked: GenerationRequest) -> None:
    """Refuses a generation id that comes back with another request; what is absent is taken from the record."""
    given: dict[str, tuple[object, object]] = {
        f"sampling.{name}": (value, getattr(generation.sampling, name)) for name, value in asked.sampling.items()
    }
    if asked.prompt:
        prompt = tuple(session.transcript[generation.prompt_position : generation.start_position])
        given["prompt"] = (asked.prompt, prompt)
    for name in ("max_tokens", "min_tokens"):
        if (number := getattr(asked, name)) is not None:
            given[name] = (number, getattr(generation, name))
    for name in ("stop", "stop_token_ids", "ignore_eos"):
        if value := getattr(asked, name):
            given[name] = (value, getattr(generation, name))
    for name, (value, recorded) in given.items():
        if value != recorded:
            shown = "another prompt" if name == "prompt" else f"{name} {recorded!r}; the request now says {value!r}"
            raise GenerationMismatch(f"generation {generation.id!r} was made from {shown}", field=name)


def _stop_state(stops: StopTable, tokens: Iterable[int]) -> int:
    """Where the automaton stands after these tokens."""
    state = 0
    for token in tokens:
        state = int(stops.table[state, token]) & (MATCHED - 1)
    return state
