# Generated from ../aio/control.py by `make sync`; edit that one.
"""Steers a generation that another call streams, of this client or of any other, in plain threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from gruve.client.messages import (
    SamplingOptions,
    Text,
    change_request,
    grant_request,
    insert_request,
    lists_options,
    rewind_request,
    steer_request,
)
from gruve.v1 import generation_pb2


class Control:
    """The controls of one running generation; see the protocol's Control.

    Each method returns when the control has taken effect and says where: the next token sent has that position, or
    follows the inserted prompt. A lost call is not made again at the same server; with several, `insert` and `grant`
    are not made again at all, because they may have been carried out. A generation that no conversation streams raises
    `GenerationUnknown`.
    """

    def __init__(
        self,
        call: Callable[[generation_pb2.ControlRequest, float | None], Any],
        generation_id: str,
        session_id: str,
        timeout_s: float | None,
    ) -> None:
        self._call = call
        self._generation_id = generation_id
        self._session_id = session_id
        self._timeout_s = timeout_s

    @lists_options(SamplingOptions)
    def change(
        self, *, at_position: int | None = None, **sampling: Unpack[SamplingOptions]
    ) -> generation_pb2.ControlApplied:
        """Changes the sampling, from the next token that is not yet sent, or from a position on."""
        return self._send(change_request(sampling, at_position))

    def insert(self, prompt: Text, *, at_position: int | None = None) -> generation_pb2.ControlApplied:
        """Makes the model read a text before it generates more."""
        return self._send(insert_request(prompt, at_position))

    def pause(self, *, at_position: int | None = None) -> generation_pb2.ControlApplied:
        """Stops the generation until `resume`."""
        return self._send(steer_request("pause", at_position))

    def resume(self) -> generation_pb2.ControlApplied:
        """Continues a paused generation."""
        return self._send(steer_request("resume", None))

    def rewind(self, to_position: int, *, seed: int | None = None) -> generation_pb2.ControlApplied:
        """Removes the tokens from a position on and generates from there; with the same seed, the same tokens."""
        return self._send(rewind_request(to_position, seed))

    def stop(self, *, at_position: int | None = None) -> generation_pb2.ControlApplied:
        """Ends the generation."""
        return self._send(steer_request("stop", at_position))

    def grant(self, tokens: int) -> None:
        """Allows the server to send more tokens."""
        self._send(grant_request(tokens))

    def _send(self, control: generation_pb2.ConverseRequest) -> generation_pb2.ControlApplied:
        request = generation_pb2.ControlRequest(
            generation_id=self._generation_id, session_id=self._session_id, control=control
        )
        applied: generation_pb2.ControlApplied = (self._call(request, self._timeout_s)).applied
        return applied
