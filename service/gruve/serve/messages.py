"""Builds the protobuf messages that several services share, from plain values."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import duration_pb2, timestamp_pb2

from gruve.engine.sequence import FinishReason, TokenLogprobs
from gruve.model.repository import Model
from gruve.model.sampling import SamplingParameters
from gruve.receipt.json_form import VERSION
from gruve.receipt.signing import Sign, canonical
from gruve.sessions.receipts import Receipt
from gruve.sessions.record import Generation, Session
from gruve.v1 import generation_pb2, sampling_pb2

FINISH_REASONS = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.END_OF_SEQUENCE: generation_pb2.FINISH_REASON_END_OF_SEQUENCE,
    FinishReason.CANCELLED: generation_pb2.FINISH_REASON_CANCELLED,
    FinishReason.DEADLINE: generation_pb2.FINISH_REASON_DEADLINE,
    FinishReason.HANDED_OVER: generation_pb2.FINISH_REASON_HANDED_OVER,
}


def sampling_message(parameters: SamplingParameters, vocabulary_size: int) -> sampling_pb2.SamplingParameters:
    """Sampling parameters with every field present."""
    return sampling_pb2.SamplingParameters(
        temperature=parameters.temperature,
        top_k=min(parameters.top_k or vocabulary_size, vocabulary_size),
        top_p=parameters.top_p,
        min_p=parameters.min_p,
        repetition_penalty=parameters.repetition_penalty,
        repetition_window=parameters.repetition_window,
        logit_bias=sampling_pb2.LogitBias(biases=dict(parameters.logit_bias)),
        seed=parameters.seed,
    )


def start_message(
    session: Session, generation: Generation, model: Model, numerics_id: str
) -> generation_pb2.GenerationStart:
    """The start of a generation's stream."""
    return generation_pb2.GenerationStart(
        generation_id=generation.id,
        session_id=session.id,
        model=model.name,
        model_digest=model.digest,
        numerics_id=numerics_id,
        prompt_position=generation.prompt_position,
        start_position=generation.start_position,
        sampling=sampling_message(generation.sampling, model.tokenizer.size),
        max_tokens=generation.max_tokens,
    )


def end_message(
    generation: Generation, reason: FinishReason, matched: str | int | None
) -> generation_pb2.GenerationEnd:
    """The end of a generation's stream, without times and receipt. `matched` is the stop that ended it."""
    end = generation_pb2.GenerationEnd(
        finish_reason=FINISH_REASONS[reason],
        next_position=generation.next_position,
        usage=generation_pb2.Usage(
            prompt_tokens=generation.start_position - generation.prompt_position,
            generated_tokens=generation.generated,
        ),
    )
    if reason is FinishReason.STOP:
        if isinstance(matched, str):
            end.stop = matched
        elif matched is not None:
            end.stop_token_id = matched
    return end


def receipt_message(receipt: Receipt, vocabulary_size: int, sign: Sign | None) -> generation_pb2.Receipt:
    """A receipt, signed if the server has a key."""
    message = generation_pb2.Receipt(
        version=VERSION,
        model_digest=receipt.model_digest,
        numerics_id=receipt.numerics_id,
        computed_from=receipt.computed_from,
        start_position=receipt.start_position,
        next_position=receipt.next_position,
        sampling=sampling_message(receipt.sampling, vocabulary_size),
        changes=[
            generation_pb2.ReceiptChange(
                position=change.position,
                sampling=sampling_message(change.sampling, vocabulary_size),
                inserted=change.inserted,
            )
            for change in receipt.changes
        ],
        max_tokens=receipt.max_tokens,
        min_tokens=receipt.min_tokens,
        ignore_eos=receipt.ignore_eos,
        stop=receipt.stop,
        stop_token_ids=receipt.stop_token_ids,
        finish_reason=FINISH_REASONS[receipt.finish_reason],
        prompt_sha256=receipt.prompt_sha256,
        tokens_sha256=receipt.tokens_sha256,
    )
    if sign is not None:
        message.signature = sign(canonical(message))
    return message


def logprobs_message(logprobs: TokenLogprobs, texts: Sequence[str]) -> sampling_pb2.TokenLogprobs:
    """A token's log-probabilities with the alternatives' texts."""
    return sampling_pb2.TokenLogprobs(
        logprob=logprobs.logprob,
        alternatives=[
            sampling_pb2.TokenAlternative(token_id=token, text=texts[token], logprob=value)
            for token, value in logprobs.alternatives
        ],
    )


def duration(seconds: float) -> duration_pb2.Duration:
    """Seconds as a Duration."""
    return duration_pb2.Duration(seconds=int(seconds), nanos=int((seconds - int(seconds)) * 1e9))


def timestamp(unix_s: float) -> timestamp_pb2.Timestamp:
    """Unix time as a Timestamp."""
    return timestamp_pb2.Timestamp(seconds=int(unix_s), nanos=int((unix_s - int(unix_s)) * 1e9))
