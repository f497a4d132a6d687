import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from gruve.v1 import error_pb2 as _error_pb2
from gruve.v1 import sampling_pb2 as _sampling_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_END_OF_SEQUENCE: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
    FINISH_REASON_DEADLINE: _ClassVar[FinishReason]
    FINISH_REASON_HANDED_OVER: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_END_OF_SEQUENCE: FinishReason
FINISH_REASON_CANCELLED: FinishReason
FINISH_REASON_DEADLINE: FinishReason
FINISH_REASON_HANDED_OVER: FinishReason

class GenerateRequest(_message.Message):
    __slots__ = ("model", "session_id", "new_session", "generation_id", "from_position", "expected_position", "text", "tokens", "sampling", "max_tokens", "min_tokens", "ignore_eos", "stop", "stop_token_ids", "logprobs", "echo", "max_tokens_per_message", "max_tokens_per_second", "allow_numerics_change", "rebase")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_SESSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_PER_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ALLOW_NUMERICS_CHANGE_FIELD_NUMBER: _ClassVar[int]
    REBASE_FIELD_NUMBER: _ClassVar[int]
    model: str
    session_id: str
    new_session: NewSession
    generation_id: str
    from_position: int
    expected_position: int
    text: str
    tokens: _sampling_pb2.TokenIds
    sampling: _sampling_pb2.SamplingParameters
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: int
    echo: bool
    max_tokens_per_message: int
    max_tokens_per_second: float
    allow_numerics_change: bool
    rebase: bool
    def __init__(self, model: _Optional[str] = ..., session_id: _Optional[str] = ..., new_session: _Optional[_Union[NewSession, _Mapping]] = ..., generation_id: _Optional[str] = ..., from_position: _Optional[int] = ..., expected_position: _Optional[int] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[_sampling_pb2.TokenIds, _Mapping]] = ..., sampling: _Optional[_Union[_sampling_pb2.SamplingParameters, _Mapping]] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., ignore_eos: _Optional[bool] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[int] = ..., echo: _Optional[bool] = ..., max_tokens_per_message: _Optional[int] = ..., max_tokens_per_second: _Optional[float] = ..., allow_numerics_change: _Optional[bool] = ..., rebase: _Optional[bool] = ...) -> None: ...

class NewSession(_message.Message):
    __slots__ = ("model", "idle_ttl")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IDLE_TTL_FIELD_NUMBER: _ClassVar[int]
    model: str
    idle_ttl: _duration_pb2.Duration
    def __init__(self, model: _Optional[str] = ..., idle_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("position", "token_ids", "text", "logprobs", "durable_position", "start", "end")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[_sampling_pb2.TokenLogprobs]
    durable_position: int
    start: GenerationStart
    end: GenerationEnd
    def __init__(self, position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[_sampling_pb2.TokenLogprobs, _Mapping]]] = ..., durable_position: _Optional[int] = ..., start: _Optional[_Union[GenerationStart, _Mapping]] = ..., end: _Optional[_Union[GenerationEnd, _Mapping]] = ...) -> None: ...

class GenerationStart(_message.Message):
    __slots__ = ("generation_id", "session_id", "model", "model_digest", "numerics_id", "prompt_position", "start_position", "sampling", "max_tokens")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_POSITION_FIELD_NUMBER: _ClassVar[int]
    START_POSITION_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    session_id: str
    model: str
    model_digest: str
    numerics_id: str
    prompt_position: int
    start_position: int
    sampling: _sampling_pb2.SamplingParameters
    max_tokens: int
    def __init__(self, generation_id: _Optional[str] = ..., session_id: _Optional[str] = ..., model: _Optional[str] = ..., model_digest: _Optional[str] = ..., numerics_id: _Optional[str] = ..., prompt_position: _Optional[int] = ..., start_position: _Optional[int] = ..., sampling: _Optional[_Union[_sampling_pb2.SamplingParameters, _Mapping]] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class GenerationEnd(_message.Message):
    __slots__ = ("finish_reason", "stop", "stop_token_id", "next_position", "usage", "receipt")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITION_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    finish_reason: FinishReason
    stop: str
    stop_token_id: int
    next_position: int
    usage: Usage
    receipt: Receipt
    def __init__(self, finish_reason: _Optional[_Union[FinishReason, str]] = ..., stop: _Optional[str] = ..., stop_token_id: _Optional[int] = ..., next_position: _Optional[int] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("version", "model_digest", "numerics_id", "computed_from", "start_position", "next_position", "sampling", "changes", "max_tokens", "min_tokens", "ignore_eos", "stop", "stop_token_ids", "finish_reason", "prompt_sha256", "tokens_sha256", "signature")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FROM_FIELD_NUMBER: _ClassVar[int]
    START_POSITION_FIELD_NUMBER: _ClassVar[int]
    NEXT_POSITION_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SHA256_FIELD_NUMBER: _ClassVar[int]
    TOKENS_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    version: int
    model_digest: str
    numerics_id: str
    computed_from: int
    start_position: int
    next_position: int
    sampling: _sampling_pb2.SamplingParameters
    changes: _containers.RepeatedCompositeFieldContainer[ReceiptChange]
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish_reason: FinishReason
    prompt_sha256: bytes
    tokens_sha256: bytes
    signature: bytes
    def __init__(self, version: _Optional[int] = ..., model_digest: _Optional[str] = ..., numerics_id: _Optional[str] = ..., computed_from: _Optional[int] = ..., start_position: _Optional[int] = ..., next_position: _Optional[int] = ..., sampling: _Optional[_Union[_sampling_pb2.SamplingParameters, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[ReceiptChange, _Mapping]]] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., ignore_eos: _Optional[bool] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., prompt_sha256: _Optional[bytes] = ..., tokens_sha256: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ReceiptChange(_message.Message):
    __slots__ = ("position", "sampling", "inserted")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    INSERTED_FIELD_NUMBER: _ClassVar[int]
    position: int
    sampling: _sampling_pb2.SamplingParameters
    inserted: int
    def __init__(self, position: _Optional[int] = ..., sampling: _Optional[_Union[_sampling_pb2.SamplingParameters, _Mapping]] = ..., inserted: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "generated_tokens", "queue_time", "prompt_time", "generation_time")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TIME_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TIME_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    generated_tokens: int
    queue_time: _duration_pb2.Duration
    prompt_time: _duration_pb2.Duration
    generation_time: _duration_pb2.Duration
    def __init__(self, prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., queue_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prompt_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., generation_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ConverseRequest(_message.Message):
    __slots__ = ("control_id", "at_position", "start", "grant", "change_parameters", "insert_prompt", "pause", "resume", "rewind", "stop")
    CONTROL_ID_FIELD_NUMBER: _ClassVar[int]
    AT_POSITION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    CHANGE_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    INSERT_PROMPT_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    REWIND_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    control_id: int
    at_position: int
    start: ConverseStart
    grant: Grant
    change_parameters: ChangeParameters
    insert_prompt: InsertPrompt
    pause: Pause
    resume: Resume
    rewind: Rewind
    stop: Stop
    def __init__(self, control_id: _Optional[int] = ..., at_position: _Optional[int] = ..., start: _Optional[_Union[ConverseStart, _Mapping]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., change_parameters: _Optional[_Union[ChangeParameters, _Mapping]] = ..., insert_prompt: _Optional[_Union[InsertPrompt, _Mapping]] = ..., pause: _Optional[_Union[Pause, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., rewind: _Optional[_Union[Rewind, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ...) -> None: ...

class ConverseStart(_message.Message):
    __slots__ = ("generate", "credit")
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    generate: GenerateRequest
    credit: int
    def __init__(self, generate: _Optional[_Union[GenerateRequest, _Mapping]] = ..., credit: _Optional[int] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    def __init__(self, tokens: _Optional[int] = ...) -> None: ...

class ChangeParameters(_message.Message):
    __slots__ = ("sampling",)
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    sampling: _sampling_pb2.SamplingParameters
    def __init__(self, sampling: _Optional[_Union[_sampling_pb2.SamplingParameters, _Mapping]] = ...) -> None: ...

class InsertPrompt(_message.Message):
    __slots__ = ("text", "tokens")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: _sampling_pb2.TokenIds
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[_Union[_sampling_pb2.TokenIds, _Mapping]] = ...) -> None: ...

class Pause(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Resume(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Rewind(_message.Message):
    __slots__ = ("to_position", "seed")
    TO_POSITION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    to_position: int
    seed: int
    def __init__(self, to_position: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConverseResponse(_message.Message):
    __slots__ = ("tokens", "control_applied", "control_refused")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_APPLIED_FIELD_NUMBER: _ClassVar[int]
    CONTROL_REFUSED_FIELD_NUMBER: _ClassVar[int]
    tokens: GenerateResponse
    control_applied: ControlApplied
    control_refused: ControlRefused
    def __init__(self, tokens: _Optional[_Union[GenerateResponse, _Mapping]] = ..., control_applied: _Optional[_Union[ControlApplied, _Mapping]] = ..., control_refused: _Optional[_Union[ControlRefused, _Mapping]] = ...) -> None: ...

class ControlApplied(_message.Message):
    __slots__ = ("control_id", "position", "inserted", "control")
    CONTROL_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INSERTED_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    control_id: int
    position: int
    inserted: _sampling_pb2.TokenIds
    control: ConverseRequest
    def __init__(self, control_id: _Optional[int] = ..., position: _Optional[int] = ..., inserted: _Optional[_Union[_sampling_pb2.TokenIds, _Mapping]] = ..., control: _Optional[_Union[ConverseRequest, _Mapping]] = ...) -> None: ...

class ControlRefused(_message.Message):
    __slots__ = ("control_id", "reason", "message")
    CONTROL_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    control_id: int
    reason: _error_pb2.ErrorReason
    message: str
    def __init__(self, control_id: _Optional[int] = ..., reason: _Optional[_Union[_error_pb2.ErrorReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class StartConversationRequest(_message.Message):
    __slots__ = ("generate", "credit")
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    generate: GenerateRequest
    credit: int
    def __init__(self, generate: _Optional[_Union[GenerateRequest, _Mapping]] = ..., credit: _Optional[int] = ...) -> None: ...

class StartConversationResponse(_message.Message):
    __slots__ = ("tokens", "control_applied")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_APPLIED_FIELD_NUMBER: _ClassVar[int]
    tokens: GenerateResponse
    control_applied: ControlApplied
    def __init__(self, tokens: _Optional[_Union[GenerateResponse, _Mapping]] = ..., control_applied: _Optional[_Union[ControlApplied, _Mapping]] = ...) -> None: ...

class ControlRequest(_message.Message):
    __slots__ = ("generation_id", "session_id", "control")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    session_id: str
    control: ConverseRequest
    def __init__(self, generation_id: _Optional[str] = ..., session_id: _Optional[str] = ..., control: _Optional[_Union[ConverseRequest, _Mapping]] = ...) -> None: ...

class ControlResponse(_message.Message):
    __slots__ = ("applied",)
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    applied: ControlApplied
    def __init__(self, applied: _Optional[_Union[ControlApplied, _Mapping]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("model", "text", "tokens", "window_tokens", "logprobs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    tokens: _sampling_pb2.TokenIds
    window_tokens: int
    logprobs: int
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[_sampling_pb2.TokenIds, _Mapping]] = ..., window_tokens: _Optional[int] = ..., logprobs: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("token_count", "nats", "nats_per_token", "bits_per_token", "token_ids", "logprobs", "model_digest", "numerics_id")
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    NATS_FIELD_NUMBER: _ClassVar[int]
    NATS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    token_count: int
    nats: float
    nats_per_token: float
    bits_per_token: float
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_sampling_pb2.TokenLogprobs]
    model_digest: str
    numerics_id: str
    def __init__(self, token_count: _Optional[int] = ..., nats: _Optional[float] = ..., nats_per_token: _Optional[float] = ..., bits_per_token: _Optional[float] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_sampling_pb2.TokenLogprobs, _Mapping]]] = ..., model_digest: _Optional[str] = ..., numerics_id: _Optional[str] = ...) -> None: ...
