"""Begins, resumes and records generations on a session that the caller has leased.

Knows sessions and admissions; nothing of the wire, of text, of streams or of time.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from gruve.decode.stops import StopTable, compile_stops
from gruve.engine.sequence import Admission, FinishReason, Progress
from gruve.errors import GruveError, InvalidField, ModelChanged, NumericsChanged, PositionMismatch, TranscriptFull
from gruve.model.repository import Model
from gruve.model.sampling import SamplingParameters
from gruve.sessions.admission import build_admission
from gruve.sessions.generation_request import GenerationRequest, check_bias, check_same_request, inherit_sampling
from gruve.sessions.record import MAX_SNAPSHOTS, SNAPSHOT_TOKENS, START_TOKEN, Generation, Session

DEFAULT_MAX_TOKENS = 1_024
RECORD_BYTES = 2_048
"""The most that the store has of a generation and of its session's head, without texts, token ids and biases."""
LETTER_BYTES, STOP_TOKEN_BYTES, STORED_BIAS_BYTES, SHAPE_BYTES = 6, 6, 64, 32
"""The most of a letter, of a stop token and of a bias in JSON, and of a state's shape."""
FINAL = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.END_OF_SEQUENCE)
"""The reasons that follow from the tokens. A generation that ended for another one continues when it is resumed."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedGeneration:
    """A generation that was begun or resumed."""

    session: Session
    generation: Generation
    request: GenerationRequest
    stops: StopTable | None
    first_position: int
    """The position of the first token to send."""
    known: tuple[int, ...]
    """The tokens from `generation.prompt_position` on that are not computed again. Not all of them have to be sent."""
    admission: Admission | None
    """What is left to decode; None if nothing is."""
    begun: bool
    """Whether the generation is new."""
    backup: _SessionBackup


@dataclasses.dataclass(frozen=True, slots=True)
class _SessionBackup:
    """What opening a generation changes in a session, as it was before."""

    digest: str
    numerics_id: str
    tokenizer_digest: str
    state: NDArray[np.float32] | None
    consumed: int
    snapshots: dict[int, NDArray[np.float32]]
    next_sampling: SamplingParameters | None
    position: int
    generations: int
    latest: Generation | None
    """A copy of the last generation."""

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
            None if latest is None else dataclasses.replace(latest),
        )

    def restore(self, session: Session) -> None:
        session.digest, session.numerics_id = self.digest, self.numerics_id
        session.tokenizer_digest = self.tokenizer_digest
        session.state, session.consumed, session.snapshots = self.state, self.consumed, self.snapshots
        session.next_sampling = self.next_sampling
        session.cut_transcript(self.position)
        del session.generations[self.generations :]
        if self.latest is not None:
            latest = session.generations[-1]
            latest.finish_reason, latest.finished = self.latest.finish_reason, self.latest.finished
            latest.digest, latest.numerics_id = self.latest.digest, self.latest.numerics_id
            latest.computed_from = self.latest.computed_from


def most_growth_bytes(session: Session | None, request: GenerationRequest, state_bytes: int) -> int:
    """The most by which a new generation makes a session grow in the store; `session` is None for a new one.

    `state_bytes` is the size of one state. What controls add while the generation runs is not included.
    """
    tokens = 1 + len(request.prompt) + (DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens)
    kept = len(session.snapshots) if session else 0
    states = min(MAX_SNAPSHOTS - kept, 2 + tokens // SNAPSHOT_TOKENS) * (state_bytes + SHAPE_BYTES)
    letters = len(request.generation_id) + sum(map(len, request.stop))
    stops = STOP_TOKEN_BYTES * (len(request.stop) + len(request.stop_token_ids))
    bias = inherit_sampling(session.sampling if session else None, request).logit_bias
    biases = 2 * STORED_BIAS_BYTES * len(bias)  # in the generation's record and in the head
    return RECORD_BYTES + 2 * tokens + states + LETTER_BYTES * letters + stops + biases


def open_generation(
    session: Session,
    request: GenerationRequest,
    model: Model,
    numerics_id: str,
    *,
    now_s: float,
    max_transcript: int,
) -> OpenedGeneration:
    """Begins a generation on a leased session, or resumes the one that has the request's id.

    Raises a `SessionError` or `InvalidField`, and then has changed nothing.
    """
    backup = _SessionBackup.of(session)
    try:
        make_continuable(
            session, model, numerics_id, rebase=request.rebase, allow_numerics_change=request.allow_numerics_change
        )
        generation = session.generation(request.generation_id)
        if generation is not None:
            return _resume(session, generation, request, model, max_transcript, backup)
        return _begin(session, request, model, now_s, max_transcript, backup)
    except GruveError:
        backup.restore(session)
        raise


def abandon(opened: OpenedGeneration) -> None:
    """Takes back what `open_generation` changed, if the engine refuses the sequence."""
    opened.backup.restore(opened.session)


def make_continuable(
    session: Session, model: Model, numerics_id: str, *, rebase: bool = False, allow_numerics_change: bool = False
) -> None:
    """Raises `ModelChanged` or `NumericsChanged` if the session was made with others, unless that is allowed."""
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
                f"session {session.id!r} was computed with numerics_id {session.numerics_id}; this server has "
                f"{numerics_id}. A server with the same version, --arithmetic and device continues it bit for bit; "
                "allow_numerics_change continues it here",
                session_numerics_id=session.numerics_id,
                server_numerics_id=numerics_id,
            )
        # A state that others computed would make tokens that nobody can recompute from the transcript.
        session.drop_states()
        session.numerics_id = numerics_id
        session.store_progress.events += 1


def _begin(
    session: Session,
    request: GenerationRequest,
    model: Model,
    now_s: float,
    max_transcript: int,
    backup: _SessionBackup,
) -> OpenedGeneration:
    generation, restart = _new_generation(session, request, model, now_s, max_transcript)
    stops = compile_stops(request.stop, request.stop_token_ids, model.tokenizer.texts)
    if session.generations and not session.generations[-1].finished:
        session.generations[-1].finish(FinishReason.CANCELLED)
    session.next_sampling = None
    session.tokenizer_digest = model.tokenizer_digest
    session.transcript.extend(restart + request.prompt)
    session.generations.append(generation)
    first_position = _first_position(generation, request)
    admission = build_admission(session, generation, request, stops, max_transcript, first_position)
    return OpenedGeneration(session, generation, request, stops, first_position, (), admission, True, backup)


def _new_generation(
    session: Session, request: GenerationRequest, model: Model, now_s: float, max_transcript: int
) -> tuple[Generation, tuple[int, ...]]:
    """The generation of a request, checked, and the start token that its prompt follows after an end token."""
    position, end_id = session.position, model.tokenizer.end_id
    if request.expected_position is not None and request.expected_position != position:
        raise PositionMismatch(
            f"expected_position is {request.expected_position}; the session's position is {position}", position=position
        )
    sampling = inherit_sampling(session.sampling, request)
    check_bias(sampling.logit_bias, model.tokenizer.size)
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidField("min_tokens", f"{min_tokens} is above max_tokens {max_tokens}")
    if min_tokens and {end_id, *request.stop_token_ids} >= set(range(model.tokenizer.size)):
        raise InvalidField("min_tokens", "every token of this model ends the generation, so none can come before")
    restart = (START_TOKEN,) if session.transcript[-1] == end_id else ()
    start_position = position + len(restart) + len(request.prompt)
    if start_position >= max_transcript:
        raise TranscriptFull(
            f"the transcript has {position} tokens and the prompt {len(restart) + len(request.prompt)}; "
            f"at most {max_transcript - 1} leave room to generate"
        )
    generation = Generation(
        id=request.generation_id,
        prompt_position=position + len(restart),
        start_position=start_position,
        sampling=sampling,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=request.ignore_eos,
        stop=request.stop,
        stop_token_ids=request.stop_token_ids,
        created_s=now_s,
        next_position=start_position,
        digest=session.digest,
        numerics_id=session.numerics_id,
    )
    return generation, restart


def _resume(
    session: Session,
    generation: Generation,
    request: GenerationRequest,
    model: Model,
    max_transcript: int,
    backup: _SessionBackup,
) -> OpenedGeneration:
    check_same_request(session, generation, request)
    first_position, next_position = _first_position(generation, request), generation.next_position
    if generation.finished and first_position > next_position:
        raise PositionMismatch(
            f"from_position is {first_position}; generation {generation.id!r} ended at {next_position}",
            position=session.position,
        )
    stops = compile_stops(generation.stop, generation.stop_token_ids, model.tokenizer.texts)
    compute_again = request.logprobs is not None and first_position < next_position
    admission, end = None, next_position
    if not generation.finished and (generation.digest, generation.numerics_id) != (session.digest, session.numerics_id):
        generation.digest, generation.numerics_id = session.digest, session.numerics_id
        generation.computed_from = next_position
    if compute_again or not generation.finished:
        admission = build_admission(session, generation, request, stops, max_transcript, first_position)
        end = admission.position + 1 if compute_again else next_position
    known = tuple(session.transcript[generation.prompt_position : max(generation.prompt_position, end)])
    return OpenedGeneration(session, generation, request, stops, first_position, known, admission, False, backup)


def _first_position(generation: Generation, request: GenerationRequest) -> int:
    first = generation.prompt_position if request.echo else generation.start_position
    return max(first, request.from_position or 0)


def apply_progress(session: Session, generation: Generation, progress: Progress) -> int:
    """Records the result of an engine call in the session; returns how many tokens are new to its transcript.

    If the progress brings a state, as the last one does, the session's state advances with the transcript. Otherwise
    the old state stays, which is still valid.
    """
    generated = progress.tokens[progress.forced :] if progress.forced else progress.tokens
    session.transcript.extend(generated)
    generation.next_position += len(generated)
    if progress.state is not None:
        session.advance(progress.state, progress.position + len(progress.tokens) - 1)
    if progress.finish_reason not in (None, FinishReason.PREEMPTED) and not generation.finished:
        generation.finish_reason = progress.finish_reason
        generation.finished = progress.finish_reason in FINAL
    return len(generated)
