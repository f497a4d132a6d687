"""Builds the protobuf messages that several services share, from plain values."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import duration_pb2, timestamp_pb2

from gruve.engine.sequence import FinishReason, TokenLogprobs
from gruve.model.sampling import SamplingParameters
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
