"""Generations on a session without a server: requests, a stream that decodes them, and the tokens they must have."""

from __future__ import annotations

import dataclasses

from decoding import FakeBackend, admission_of, alone, row_of
from gruve.decode import RowStatus
from gruve.decode.stops import compile_stops
from gruve.engine.sequence import FinishReason, Progress
from gruve.model.sampling import SamplingParameters
from gruve.sessions.generation_request import GenerationRequest
from gruve.sessions.generations import apply_progress, open_generation
from gruve.sessions.record import Session
from nets import CELLS, config_of, model_of

MODEL = model_of(config_of(CELLS[0], V=13))


ENDLESS_MODEL = model_of(config_of(CELLS[0], V=13), has_end=False)


LIMIT = 300


def session_of(model=MODEL):
    return Session("id", model.name, model.digest, "numerics", 60.0, 0.0, 0.0)


def ask(id_="g", prompt=(), **more):
    """A request; sampling fields go to `sampling`."""
    names = {field.name for field in dataclasses.fields(SamplingParameters)}
    sampling = {name: more.pop(name) for name in list(more) if name in names}
    return GenerationRequest(id_, tuple(prompt), sampling, fresh_seed=more.pop("fresh_seed", 99), **more)


def open_(session, asked, *, model=MODEL, numerics="numerics", limit=LIMIT):
    return open_generation(session, asked, model, numerics, now_s=0.0, max_transcript=limit)


class Stream:
    """The client's view of one call: the tokens from the first position on, and the finish reason."""

    def __init__(self, opened, backend, steps=None, chance=None, model=MODEL) -> None:
        """Decodes to the end, or is cut after `steps` steps. With `chance` it takes several calls."""
        generation = opened.generation
        self.tokens = list(opened.known[opened.first_position - generation.prompt_position :])
        self.logprobs = []
        self.reason = generation.finish_reason
        self._next = max(opened.first_position, generation.prompt_position + len(opened.known))
        if opened.admission is None:
            return
        backend.admit(0, row_of(opened.admission, model.tokenizer.end_id), opened.admission.state)
        position, forced_left, reason = opened.admission.position, len(opened.admission.forced), RowStatus.RUNNING
        steps = 1 << 20 if steps is None else steps
        while True:
            most = min(steps, chance.randint(1, 40) if chance else 40)
            finish = FinishReason.CANCELLED
            tokens, forced, logprobs = [], 0, ()
            if most:
                block = backend.decode([0], [most], most)
                tokens = block.tokens[: block.steps_taken[0], 0].tolist()
                reason, forced = RowStatus(int(block.statuses[0])), min(forced_left, len(tokens))
                logprobs = () if block.logprobs is None else block.logprobs.chosen[: len(tokens), 0].tolist()
            if reason is not RowStatus.RUNNING:
                finish = FinishReason[reason.name]
            steps, forced_left = steps - len(tokens), forced_left - forced
            last = steps == 0 or reason is not RowStatus.RUNNING
            state = backend.snapshot(0) if last and opened.admission.keep_state else None
            done = finish if last else None
            apply_progress(opened.session, generation, Progress(1, position + 1, tokens, forced, (), done, state))
            skip = max(0, self._next - position - 1)
            self.tokens += tokens[skip:]
            self.logprobs += logprobs[skip:]
            position += len(tokens)
            self._next = max(self._next, position + 1)
            if last:
                break
        backend.release(0)
        self.reason = generation.finish_reason if generation.finished else finish


def truth(transcript, generation, model=MODEL, limit=LIMIT, backend=FakeBackend):
    """The tokens and finish reason of the generation when it is computed again, alone and uninterrupted."""
    stops = compile_stops(generation.stop, generation.stop_token_ids, model.tokenizer.texts)
    admission = admission_of(
        transcript[1 : generation.start_position],
        max_tokens=min(generation.max_tokens, limit - generation.start_position),
        **dataclasses.asdict(generation.sampling),
        min_tokens=generation.min_tokens,
        ignore_eos=generation.ignore_eos,
        stops=stops,
    )
    tokens, _, reason = alone(backend(), admission, model.tokenizer.end_id)
    return tokens[generation.start_position - 1 :], reason
