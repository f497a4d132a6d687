"""LitServe with its continuous batching loop, streaming over HTTP; one chunk a token.

python -m gruve.bench.peers.litserve_app WEIGHTS PORT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve
from litserve.loops.continuous_batching_loop import ContinuousBatchingLoop, Output
from litserve.utils import LitAPIStatus

from gruve.bench.peers.char_rnn import Continuous, load

MOST_ROWS = 256


class CharRnnApi(litserve.LitAPI):  # type: ignore[misc] # only its own environment has it
    """LitServe calls it for one step of all sequences at a time."""

    def __init__(self, weights: Path, **options: Any) -> None:
        super().__init__(**options)
        self._weights = weights

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Loads the model into the worker."""
        self._sequences: Continuous[str] = Continuous(load(self._weights))
        self._first: list[Output] = []

    def add_request(self, uid: str, request: dict[str, Any]) -> None:
        """Consumes the prompt. Its first token is sent with the next step."""
        token = self._sequences.add(uid, request["prompt"], request["max_tokens"])
        self._first += _outputs(uid, token, last=request["max_tokens"] == 1)

    def has_capacity(self) -> bool:
        """Whether another sequence may join."""
        return len(self._sequences) < MOST_ROWS

    def has_active_requests(self) -> bool:
        """Whether there is a sequence to decode."""
        return bool(self._first or len(self._sequences))

    def step(self, previous: list[Output] | None) -> list[Output]:  # noqa: ARG002 - LitServe's signature
        """Returns one token for every sequence."""
        first, self._first = self._first, []
        if first:
            return first
        return [output for uid, token, last in self._sequences.step() for output in _outputs(uid, token, last=last)]

    def encode_response(self, output: str) -> str:
        """Encodes one token as a line."""
        return output


def _outputs(uid: str, token: int, *, last: bool) -> list[Output]:
    """A token and, after the last one, the end, which LitServe sends without content."""
    ends = [Output(uid, "", LitAPIStatus.FINISH_STREAMING)] if last else []
    return [Output(uid, f"{token}\n", LitAPIStatus.OK), *ends]


if __name__ == "__main__":
    api = CharRnnApi(Path(sys.argv[1]), stream=True, loop=ContinuousBatchingLoop(), max_batch_size=MOST_ROWS)
    server = litserve.LitServer(api, accelerator="cpu", timeout=False, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error")
