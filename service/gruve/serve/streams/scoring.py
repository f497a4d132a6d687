"""Scores a text: runs it through a model's engine as forced tokens and collects their log-probabilities."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from gruve.decode import HISTORY_TOKENS
from gruve.engine.sequence import Admission, FinishReason, Progress, TokenLogprobs
from gruve.errors import Draining, EngineFailed, GruveError
from gruve.model.sampling import SamplingParameters
from gruve.serve.callers.identity import current_identity
from gruve.serve.models.host import ModelHost
from gruve.sessions.record import START_TOKEN

MAX_WINDOWS_AT_ONCE = 16
SAMPLING = SamplingParameters(temperature=0.0)


async def score(host: ModelHost, ids: tuple[int, ...], window: int, alternatives: int) -> list[TokenLogprobs]:
    """The log-probabilities of the tokens `ids`, with `alternatives` for each.

    The text is scored in windows of `window` tokens. Each starts from a zero state that reads the start token. Raises
    what `ModelHost.admit` raises, `Draining` or `EngineFailed`.
    """
    scored: list[list[TokenLogprobs]] = [[] for _ in range(0, len(ids), window)]
    turns = iter(range(len(scored)))

    async def score_windows() -> None:
        for turn in turns:
            scored[turn] = await _score_window(host, ids[turn * window : (turn + 1) * window], alternatives)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(MAX_WINDOWS_AT_ONCE, len(scored))):
                group.create_task(score_windows())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [entry for piece in scored for entry in piece]


class _Window:
    """Scores one window. It is admitted again if it loses its slot to another tenant; see `model_host.Listener`."""

    def __init__(self, host: ModelHost, ids: tuple[int, ...], alternatives: int) -> None:
        self._host = host
        self._tokens = np.array([START_TOKEN, *ids], dtype=np.int32)
        self._alternatives = alternatives
        self._identity = current_identity()
        self.logprobs: list[TokenLogprobs] = []
        self.error: GruveError | None = None
        self.done = asyncio.Event()
        self.sequence_id = self._admit(None)

    def take(self, progress: Progress) -> None:
        self.logprobs.extend(progress.logprobs)
        if progress.incident is not None:
            self.error = EngineFailed(progress.incident)
        elif progress.finish_reason is FinishReason.HANDED_OVER:
            self.error = Draining("the server is shutting down; nothing was measured")
        if progress.finish_reason is FinishReason.PREEMPTED:
            self._host.metrics.preemptions.inc()
            try:
                self.sequence_id = self._admit(progress.state)
            except GruveError as error:
                self.fail(error)
        elif progress.ended:
            self.done.set()

    def fail(self, error: GruveError) -> None:
        self.error = error
        self.done.set()

    def _admit(self, state: NDArray[np.float32] | None) -> int:
        """Admits what has no log-probability yet; `state` has consumed all before, None before the first time."""
        position = len(self.logprobs)
        admission = Admission(
            SAMPLING,
            self._tokens[max(0, position + 1 - HISTORY_TOKENS) : position + 1],
            position,
            self._tokens[position + 1 :],
            max_tokens=0,
            state=state,
            logprobs=self._alternatives,
            tenant=self._identity.tenant,
            weight=self._identity.weight,
        )
        return self._host.admit(admission, self, preempted=state is not None)


async def _score_window(host: ModelHost, ids: tuple[int, ...], alternatives: int) -> list[TokenLogprobs]:
    window = _Window(host, ids, alternatives)
    try:
        await window.done.wait()
    finally:
        if not window.done.is_set():
            host.engine.cancel(window.sequence_id)
    if window.error is not None:
        raise window.error
    return window.logprobs
