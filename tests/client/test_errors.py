"""The exception tree of the client."""

from __future__ import annotations

import inspect
import pickle
import re

import grpc
import pytest

import gruve.client
from gruve.client import (
    CallFailed,
    ConnectionLost,
    InvalidRequest,
    Overloaded,
    RequestTooLarge,
    ServerFault,
    Unavailable,
    errors,
)
from gruve.client.errors import CLASS_OF_REASON, class_of
from gruve.v1 import error_pb2

TREE = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, CallFailed)]


def test_every_reason_of_the_protocol_has_a_class():
    names = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - an enum
    assert set(CLASS_OF_REASON) == names
    assert CallFailed not in CLASS_OF_REASON.values()


def test_every_class_is_exported_and_drawn_below_its_base():
    drawn = re.findall(r"^    (.*?)(\w+)  +\S", errors.__doc__, re.MULTILINE) + re.findall(
        r"^    ([│ ]*[├└]── )(\w+)$", errors.__doc__, re.MULTILINE
    )
    depth = {name: (len(lead) + 3) // 4 for lead, name in drawn} | {"CallFailed": 0}
    for kind in TREE:
        assert getattr(gruve.client, kind.__name__) is kind
        assert depth[kind.__name__] == len(kind.__mro__) - len(CallFailed.__mro__), kind


@pytest.mark.parametrize(
    ("code", "reason", "retry_after_s", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "", None, ConnectionLost),
        (grpc.StatusCode.INTERNAL, "", None, ConnectionLost),
        (grpc.StatusCode.INTERNAL, "INTERNAL", None, ServerFault),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", 1.0, Overloaded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", None, RequestTooLarge),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "OF_A_LATER_RELEASE", 1.0, Unavailable),
        (grpc.StatusCode.INVALID_ARGUMENT, "OF_A_LATER_RELEASE", None, InvalidRequest),
        (grpc.StatusCode.DATA_LOSS, "OF_A_LATER_RELEASE", None, CallFailed),
    ],
)
def test_a_status_without_a_known_reason_goes_by_its_code(code, reason, retry_after_s, kind):
    assert class_of(code, reason, retry_after_s) is kind


def test_an_exception_survives_another_process():
    failure = Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="QUEUE_FULL", retry_after_s=0.5)
    again = pickle.loads(pickle.dumps(failure))
    assert (type(again), str(again), again.retry_after_s) == (Overloaded, "QUEUE_FULL: full", 0.5)
