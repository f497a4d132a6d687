"""Scores a text: runs it through a model's engine as forced tokens and collects their log-probabilities."""

from __future__ import annotations

import asyncio

import numpy as np

from gruve.engine.sequence import Admission, FinishReason, Progress, TokenLogprobs
from gruve.errors import Draining, EngineFailed, GruveError
from gruve.model.sampling import SamplingParameters
from gruve.serve.model_host import ModelHost
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
    """Collects the log-probabilities of one window; see `model_host.Listener`."""

    def __init__(self) -> None:
        self.logprobs: list[TokenLogprobs] = []
        self.error: GruveError | None = None
        self.done = asyncio.Event()

    def take(self, progress: Progress) -> None:
        self.logprobs.extend(progress.logprobs)
        if progress.incident is not None:
            self.error = EngineFailed(progress.incident)
        elif progress.finish_reason is FinishReason.HANDED_OVER:
            self.error = Draining("the server is shutting down; nothing was measured")
        if progress.ended:
            self.done.set()

    def fail(self, error: GruveError) -> None:
        self.error = error
        self.done.set()


async def _score_window(host: ModelHost, ids: tuple[int, ...], alternatives: int) -> list[TokenLogprobs]:
    window = _Window()
    forced, start = np.array(ids, dtype=np.int32), np.array([START_TOKEN], dtype=np.int32)
    sequence_id = host.admit(Admission(SAMPLING, start, 0, forced, max_tokens=0, logprobs=alternatives), window)
    try:
        await window.done.wait()
    finally:
        if not window.done.is_set():
            host.engine.cancel(sequence_id)
    if window.error is not None:
        raise window.error
    return window.logprobs
