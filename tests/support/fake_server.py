"""A gRPC server that follows the protocol with generated tokens, and fails on command.

Tokens are bytes of UTF-8, so the text is behind the tokens wherever a character is cut.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gruve.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)

ALPHABET = "aö日𝄞\n"
SERVER_SEED = 4_711
TUNE = "L:1/8\nM:4/4\nK:Cmaj\n|: CDEF GABc | c4 z4 :|\n"
Fault = tuple[str, int]
"""The fault of a call, and the number of tokens after which it happens."""

BARE = {
    "refused": grpc.StatusCode.UNAVAILABLE,
    "reset": grpc.StatusCode.INTERNAL,
    "removed": grpc.StatusCode.UNKNOWN,
    "cancelled": grpc.StatusCode.CANCELLED,
}
"""The messages of gRPC and of proxies for lost connections."""
PASSING = {
    "SESSION_BUSY": grpc.StatusCode.ABORTED,
    "QUEUE_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "DRAINING": grpc.StatusCode.UNAVAILABLE,
    "SESSION_ELSEWHERE": grpc.StatusCode.UNAVAILABLE,
    "HANDED_OVER": grpc.StatusCode.UNAVAILABLE,
}
LASTING = {
    "INVALID_FIELD": grpc.StatusCode.INVALID_ARGUMENT,
    "SESSION_EXPIRED": grpc.StatusCode.NOT_FOUND,
    "NUMERICS_CHANGED": grpc.StatusCode.FAILED_PRECONDITION,
    "TAKEN_OVER": grpc.StatusCode.ABORTED,
    "ENGINE_FAILED": grpc.StatusCode.UNAVAILABLE,
    "INTERNAL": grpc.StatusCode.INTERNAL,
    "UNKNOWN_CHARACTER": grpc.StatusCode.INVALID_ARGUMENT,
}
KEY_TOKENS = {"K:Cmaj\n": 5, "K:Cmin\n": 6, "K:Cdor\n": 7}


def transcript(seed: int, length: int) -> bytes:
    """`length` tokens that depend on the seed."""
    characters = (ALPHABET[(seed + i * i) % len(ALPHABET)] for i in range(length))
    return "".join(characters).encode()[:length]


def certain(tokens: bytes) -> str:
    """The text of tokens up to the last complete character."""
    return tokens.decode(errors="ignore")


def abort(context: Any, code: grpc.StatusCode, reason: str, retry_s: int | None) -> None:
    info = error_details_pb2.ErrorInfo(reason=reason, domain="gruve", metadata={"incident": "i1"})
    violation = error_details_pb2.BadRequest.FieldViolation(field="top_p", description="is 2; 0 to 1")
    details = [info, error_details_pb2.BadRequest(field_violations=[violation])]
    if retry_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay={"seconds": retry_s}))
    status = status_pb2.Status(code=code.value[0], message=f"because of {reason}")
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.abort_with_status(rpc_status.to_status(status))


class FakeServer(
    generation_pb2_grpc.GenerationServiceServicer,
    session_pb2_grpc.SessionServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
):
    """Serves until `stop`. Each call takes the next one of `faults`."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.reset()
        self._server = grpc.server(ThreadPoolExecutor(8))
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, self._server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(self, self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def reset(
        self, faults: list[Fault] | None = None, length: int = 20, tokens_per_message: int = 3, text: str = ""
    ) -> None:
        """Forgets everything. A generation has `length` tokens that depend on the seed, or those of `text`."""
        self.faults = list(faults or [])
        self.text = text.encode()
        self.length = len(self.text) or length
        self.tokens_per_message = tokens_per_message
        self.requests: list[Any] = []
        self.digest, self.numerics_id = "digest", "numerics"
        self.tokenizer = "characters"
        self.default_temperature: float | None = None
        self.blank_seeds: set[int] = set()
        """Seeds whose tokens are all spaces."""
        self.shift = 0
        """Added to the position of every message after the first: a server that breaks the contract."""
        self.hold = False
        """Whether a call sends its first tokens and then nothing, until it is cancelled."""
        self.cancelled.clear()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def Generate(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.requests.append(request)
        fault, after = self.faults.pop(0) if self.faults else ("", 1 << 30)
        if fault in PASSING and fault != "HANDED_OVER":
            abort(context, PASSING[fault], fault, 0)
        seed = request.sampling.seed if request.sampling.HasField("seed") else SERVER_SEED
        tokens = b" " * self.length if seed in self.blank_seeds else self.text or transcript(seed, self.length)
        first = max(1, request.from_position) - 1
        gone = threading.Event()
        if self.hold:
            context.add_callback(gone.set)
            context.add_callback(self.cancelled.set)
        yield self._start(request, seed, first + 1)
        position = self.length + 1
        for at in range(first, self.length, self.tokens_per_message):
            if at - first >= after:
                position = at + 1
                break
            upto = min(at + self.tokens_per_message, self.length)
            text = certain(tokens[:upto])[len(certain(tokens[:at])) :]
            yield generation_pb2.GenerateResponse(position=at + 1 + self.shift, token_ids=tokens[at:upto], text=text)
            if self.hold:
                gone.wait()
                return
        if fault in BARE:
            context.abort(BARE[fault], "Socket closed")
        elif fault in LASTING:
            abort(context, LASTING[fault], fault, None)
        elif fault == "HANDED_OVER":
            yield self._end(generation_pb2.FINISH_REASON_HANDED_OVER, position)
            abort(context, PASSING[fault], fault, 0)
        elif fault != "cut":
            yield self._end(generation_pb2.FINISH_REASON_LENGTH, position)

    def _start(self, request: Any, seed: int, position: int) -> Any:
        start = generation_pb2.GenerationStart(
            generation_id=request.generation_id,
            session_id=request.session_id or ("s1" if request.HasField("new_session") else ""),
            model="made-up",
            model_digest=self.digest,
            numerics_id=self.numerics_id,
            start_position=1,
            sampling={"seed": seed},
        )
        return generation_pb2.GenerateResponse(position=position, start=start)

    def _end(self, reason: Any, position: int) -> Any:
        end = generation_pb2.GenerationEnd(finish_reason=reason, next_position=position)
        return generation_pb2.GenerateResponse(position=position, end=end)

    def _unary(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        fault, _ = self.faults.pop(0) if self.faults else ("", 0)
        if fault in BARE:
            context.abort(BARE[fault], "Socket closed")
        elif fault:
            code = {**PASSING, **LASTING}[fault]
            abort(context, code, fault, 0 if fault in PASSING else None)

    def GetSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(request, context)
        at = int(request.page_token or 0)
        return session_pb2.GetSessionResponse(
            session={"id": request.session_id, "model": "made-up"},
            position=at,
            token_ids=[at, at + 1],
            text=f"{at} ",
            next_page_token=str(at + 2) if at < 4 else "",
        )

    def ListSessions(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(request, context)
        at = int(request.page_token or 0)
        return session_pb2.ListSessionsResponse(
            sessions=[{"id": f"s{at}"}], next_page_token=str(at + 1) if at < 2 else ""
        )

    def DeleteSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(request, context)
        return session_pb2.DeleteSessionResponse()

    def ForkSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(request, context)
        return session_pb2.ForkSessionResponse(sessions=[{"id": f"b{i}"} for i in range(len(request.branches))])

    def RewindSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(request, context)
        return session_pb2.RewindSessionResponse(session={"id": request.session_id, "position": request.to_position})

    def ExportSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(request, context)
        return session_pb2.ExportSessionResponse(blob=b"packed")

    def ImportSession(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(request, context)
        return session_pb2.ImportSessionResponse(session={"id": request.blob.decode()})

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(request, context)
        return model_pb2.ListModelsResponse(models=[self._model()])

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._unary(request, context)
        if request.name.partition("@")[0] != "made-up":
            abort(context, grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN", None)
        return model_pb2.GetModelResponse(model=self._model())

    def _model(self) -> Any:
        return model_pb2.Model(name="made-up", tokenizer=self.tokenizer, default_temperature=self.default_temperature)

    def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.text not in KEY_TOKENS:
            abort(context, LASTING["UNKNOWN_CHARACTER"], "UNKNOWN_CHARACTER", None)
        return model_pb2.TokenizeResponse(token_ids=[KEY_TOKENS[request.text]])
