"""What controls do to a generation: they change its record and its send buffer at a position.

Knows no credit and no engine: a `Conversation` decides when a control is applied.
"""

from __future__ import annotations

from gruve.errors import TranscriptFull
from gruve.serve.streams.send_buffer import SendBuffer
from gruve.serve.validation_converse import Control
from gruve.sessions import steering
from gruve.sessions.generation_request import GenerationRequest
from gruve.sessions.opening import RunningGeneration


class SteeredGeneration:
    """One generation that controls change. Nothing decodes it meanwhile."""

    def __init__(self, running: RunningGeneration, buffer: SendBuffer, request: GenerationRequest) -> None:
        self.taken_back = 0
        """How many generated tokens controls have taken back or discarded unsent."""
        self.inserted = 0
        """How many tokens controls have inserted."""
        self._session = running.session
        self._generation = running.generation
        self._max_transcript = running.max_transcript
        self._buffer = buffer
        self._engine_delivers_prompts = request.echo and request.logprobs is not None
        """Whether inserted prompts come back from the engine, with their log-probabilities."""

    def position_after_prompt(self, control: Control, position: int) -> int:
        """Where a control takes effect: at its position, or after an inserted prompt that it would cut in two.

        A rewind may cut a prompt.
        """
        if control.kind != "rewind":
            for begin, after in self._generation.inserted:
                if begin <= position < after:
                    return after
        return position

    def check_room(self, control: Control, position: int) -> None:
        """Raises `TranscriptFull` or `LimitExceeded` if the record has no room for a control."""
        size = len(control.prompt)
        if size and position + size >= self._max_transcript:
            why = f"the prompt has {size} tokens and comes at {position}"
            raise TranscriptFull(f"{why}; at most {self._max_transcript - 1} leave room to generate")
        if control.kind in ("change_parameters", "insert_prompt") or control.seed is not None:
            steering.check_room(self._generation, position, control.sampling)

    def tokens_to_compute(self, control: Control, position: int) -> int:
        """How many tokens the engine has to read, or to compute again, because of a control."""
        if control.kind == "stop":
            return 0
        return len(control.prompt) + self._generated_in(position, self._generation.next_position)

    def apply(self, control: Control, position: int) -> None:
        """Takes back what comes from `position` on, and records what the control changes there."""
        session, generation, prompt = self._session, self._generation, control.prompt
        self.rewind(position, control.seed)
        if control.kind == "change_parameters":
            steering.change_parameters(session, generation, position, control.sampling)
        elif control.kind == "insert_prompt":
            steering.insert_prompt(session, generation, position, prompt, control.sampling)
            self.inserted += len(prompt)
            if not self._engine_delivers_prompts:
                self._buffer.add(position, prompt)
        elif control.kind == "stop":
            steering.stop(session, generation)

    def rewind(self, position: int, seed: int | None = None) -> None:
        """Makes `position` the next one, in the record and in the buffer."""
        self.taken_back += self._generated_in(position, self._generation.next_position)
        steering.rewind_generation(self._session, self._generation, position, seed)
        self._buffer.rewind(self._session, position)

    def stop(self, position: int) -> None:
        """Finishes the generation before `position`."""
        self.rewind(position)
        steering.stop(self._session, self._generation)

    def _generated_in(self, begin: int, end: int) -> int:
        """How many of the tokens from `begin` to `end` were generated, and not inserted."""
        inserted = self._generation.inserted
        return max(0, end - begin - sum(max(0, min(after, end) - max(at, begin)) for at, after in inserted))
