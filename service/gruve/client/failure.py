"""The one exception of the client, and how it is read from what gRPC raises. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

DOMAIN = "gruve"
CONNECTION_CODES = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}
)
"""What gRPC, or a proxy, says by itself of a connection that was refused, reset or cut."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that the server refused, and why."""

    field: str
    description: str


class CallFailed(Exception):
    """A call that did not succeed, after everything that was worth trying again.

    `code` is the gRPC status. `reason` is the name of a `gruve.v1.ErrorReason` without its prefix and is what programs
    compare; it is empty where gRPC itself answered. `metadata` and `violations` are what came with the reason, and
    `retry_after_s` is set where the server says that it pays to come back.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: dict[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = metadata or {}
        self.violations = violations
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"

    @property
    def connection_lost(self) -> bool:
        """Whether no server answered: every status that a server writes has a reason."""
        return not self.reason and self.code in CONNECTION_CODES

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed later or elsewhere: the contract says so with RetryInfo."""
        return self.connection_lost or self.retry_after_s is not None


def failure_of(error: grpc.RpcError) -> CallFailed:
    """What the status of a failed call says, `google.rpc` details included; takes sync and async errors."""
    call: Any = error  # a grpc.Call as well, or a grpc.aio.AioRpcError, which reads the same
    code, message = call.code() or grpc.StatusCode.UNKNOWN, call.details() or ""
    status = _rich_status(call)
    reason, metadata, retry_after_s = "", {}, None
    violations: list[FieldViolation] = []
    for packed in status.details if status is not None else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if packed.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif packed.Unpack(bad):
            violations.extend(FieldViolation(v.field, v.description) for v in bad.field_violations)
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return CallFailed(
        code,
        message,
        reason=reason,
        metadata=metadata,
        violations=tuple(violations),
        retry_after_s=retry_after_s,
    )


def _rich_status(call: Any) -> Any:
    """The `google.rpc.Status` of a call; None where there is none, or one that contradicts the call's own status."""
    try:
        return rpc_status.from_call(call)
    except ValueError:
        return None
