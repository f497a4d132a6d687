"""NVIDIA Triton's Python backend with iterative sequences: its continuous batching. One response a token.

Triton loads this file from its model repository, beside `weights.pt` and a `config.pbtxt` made by `systems.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from gruve.bench.peers.char_rnn import Continuous, load


class TritonPythonModel:
    """Triton passes all sequences that are due, and each of them again until its end is reported."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the weights beside this version's folder."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self._sequences: Continuous[int] = Continuous(load(folder / "weights.pt"))

    def execute(self, requests: list[Any]) -> None:
        """Runs one step: new sequences consume their prompt, the others advance by one token together."""
        going: dict[int, Any] = {}
        for request in requests:
            key = int(request.correlation_id())
            if request.flags() & triton.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
                prompt, max_tokens = _ints(request, "prompt"), _ints(request, "max_tokens")[0]
                self._answer(request, self._sequences.add(key, prompt, max_tokens), last=max_tokens == 1)
            else:
                going[key] = request
        if going:
            keys = list(going)
            for key, (_, token, last) in zip(keys, self._sequences.step(keys), strict=True):
                self._answer(going[key], token, last=last)

    def _answer(self, request: Any, token: int, *, last: bool) -> None:
        """Sends the token and, unless it was the last, asks to be called again with this sequence."""
        tensor = triton.Tensor("token", np.array([token], dtype=np.int32))
        flags = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
        if not last:
            request.set_release_flags(triton.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        request.get_response_sender().send(triton.InferenceResponse([tensor]), flags=flags)


def _ints(request: Any, name: str) -> list[int]:
    values: list[int] = triton.get_input_tensor_by_name(request, name).as_numpy().ravel().tolist()
    return values
