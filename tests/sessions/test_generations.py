"""A session continued, cut, resumed, retried and refused in any order is what a sequence that was left alone is."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding import FakeBackend, admission_of, alone, row_of
from engines import Recorder, engine_of
from gruve.decode import RowStatus
from gruve.decode.reference import ReferenceBackend
from gruve.decode.stops import compile_stops
from gruve.engine.sequence import FinishReason, Progress
from gruve.errors import (
    GenerationMismatch,
    GruveError,
    InvalidField,
    ModelChanged,
    NumericsChanged,
    PositionMismatch,
    TranscriptFull,
)
from gruve.model.sampling import MAX_SEED, SamplingParameters
from gruve.sessions.generation_request import GenerationRequest
from gruve.sessions.generations import abandon, apply_progress, open_generation
from gruve.sessions.record import Session
from nets import CELL_NAMES, CELLS, config_of, model_of

MODEL = model_of(config_of(CELLS[0], V=13))
ENDLESS_MODEL = model_of(config_of(CELLS[0], V=13), has_end=False)
LIMIT = 300


def session_of(model=MODEL):
    return Session("id", model.name, model.digest, "numerics", 60.0, 0.0, 0.0)


def ask(id_="g", prompt=(), **more):
    """What a client asks; sampling fields go to `sampling`."""
    names = {field.name for field in dataclasses.fields(SamplingParameters)}
    sampling = {name: more.pop(name) for name in list(more) if name in names}
    return GenerationRequest(id_, tuple(prompt), sampling, fresh_seed=more.pop("fresh_seed", 99), **more)


def open_(session, asked, *, model=MODEL, numerics="numerics", limit=LIMIT):
    return open_generation(session, asked, model, numerics, now_s=0.0, max_transcript=limit)


class Stream:
    """What a client sees of one call: the tokens from the first position on, and why it ended."""

    def __init__(self, opened, backend, steps=None, chance=None, model=MODEL) -> None:
        """Decodes to the end, or so many steps and is then cut; with `chance` in several calls."""
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
    """What the generation's tokens are when everything is computed anew, alone and uninterrupted."""
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


def walk(seed, turns):
    """Any order of begin, cut, resume, retry, refuse and abandon, beside a memory that holds whole generations."""
    chance, backend = random.Random(seed), FakeBackend()
    session, remembered = session_of(), {}
    for turn in range(turns):
        before = list(session.transcript)
        retry = remembered and chance.random() < 0.6
        asked = (
            chance.choice(list(remembered.values()))[0]
            if retry
            else ask(
                f"g{turn}",
                [chance.randrange(13) for _ in range(chance.choice([0, 0, 1, 5, 30]))],
                max_tokens=chance.choice([None, 1, 5, 20]),
                min_tokens=chance.choice([None, 0, 1]),
                ignore_eos=chance.random() < 0.3,
                stop=chance.choice([(), ("a",), ("ab", "k")]),
                **chance.choice([{}, {"seed": chance.randrange(MAX_SEED)}, {"temperature": 0.5}]),
            )
        )
        try:
            opened = open_(session, dataclasses.replace(asked, echo=chance.random() < 0.5))
        except TranscriptFull:
            assert list(session.transcript) == before
            assert len(before) + len(asked.prompt) >= LIMIT - 1
            continue
        if chance.random() < 0.1:
            abandon(opened)
            assert list(session.transcript) == before
            continue
        generation = opened.generation
        if not retry:
            remembered[asked.generation_id] = (asked, *truth(session.transcript, generation))
        _, tokens, reason = remembered[asked.generation_id]
        finished = generation.finished
        stream = Stream(opened, backend, steps=chance.choice([None, 0, 1, 7, 40]), chance=chance)
        prompt_position, end = generation.prompt_position, generation.next_position
        whole = list(session.transcript[prompt_position : generation.start_position]) + tokens
        first = opened.first_position - generation.prompt_position
        assert stream.tokens == whole[first : first + len(stream.tokens)]
        assert list(session.transcript[prompt_position:end]) == whole[: end - prompt_position]
        assert list(session.transcript[: len(before)]) == before
        if generation.finished and not finished:
            assert (generation.finish_reason, generation.generated) == (reason, len(tokens))
            assert stream.tokens == whole[first:]
        assert session.consumed <= session.position - 1


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_any_order_of_begin_cut_resume_retry_and_refuse_is_what_a_memory_says(seed):
    walk(seed, turns=12)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_any_order_of_begin_cut_resume_retry_and_refuse_is_what_a_memory_says_for_long(seed):
    walk(seed, turns=40)


@pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)
def test_forty_tokens_and_sixty_are_a_hundred_whatever_runs_beside(cell):
    model = model_of(config_of(cell, H=24), has_end=False)
    asked = {"temperature": 1.1, "repetition_penalty": 1.2, "seed": 5}
    whole, parts = session_of(model), session_of(model)
    Stream(
        open_(whole, ask("w", [3, 4], max_tokens=100, **asked), model=model), ReferenceBackend(model, 1), model=model
    )
    with engine_of(ReferenceBackend(model, slots=40), Recorder()) as (engine, recorder):
        company = [engine.admit(admission_of([1] * (3 * i), max_tokens=1 << 20, seed=i)) for i in range(5)]
        for id_, prompt, count in (("a", [3, 4], 40), ("b", (), 60)):
            opened = open_(parts, ask(id_, prompt, max_tokens=count, **(asked if id_ == "a" else {})), model=model)
            recorder.wait_for_end(sequence := engine.admit(opened.admission))
            for progress in (p for call in recorder.calls for p in call.progress if p.sequence_id == sequence):
                apply_progress(parts, opened.generation, progress)
            engine.cancel(company.pop())
    assert parts.transcript == whole.transcript
    assert parts.state.tobytes() == whole.state.tobytes()
    assert parts.consumed == whole.consumed == 102


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 7])
def test_a_generation_cut_anywhere_even_in_its_prompt_goes_on_where_it_was_cut(steps):
    session, backend = session_of(), FakeBackend()
    asked = ask(prompt=[2, 3, 4], max_tokens=20, ignore_eos=True)
    first = Stream(open_(session, asked), backend, steps=steps)
    assert (session.consumed, session.generations[0].finish_reason) == (steps, FinishReason.CANCELLED)
    assert not session.generations[0].finished
    rest = Stream(open_(session, dataclasses.replace(asked, from_position=4 + len(first.tokens))), backend)
    tokens, reason = truth(session.transcript, session.generations[0])
    assert (first.tokens + rest.tokens, rest.reason) == (tokens, reason)


@pytest.mark.parametrize("cut", [6, 7, 8])
@pytest.mark.parametrize("logprobs", [None, 0])
def test_a_generation_cut_in_the_middle_of_a_stop_still_stops_there(cut, logprobs):
    free, backend = session_of(), ReferenceBackend(MODEL, slots=1)
    tokens = Stream(open_(free, ask(max_tokens=30, ignore_eos=True)), backend).tokens
    texts = MODEL.tokenizer.texts
    stop = "".join(texts[t] for t in tokens[5:9])
    end = next(k for k in range(31) if "".join(texts[t] for t in tokens[:k]).endswith(stop))
    session, asked = session_of(), ask(max_tokens=30, ignore_eos=True, stop=(stop,), logprobs=logprobs)
    Stream(open_(session, asked), backend, steps=cut)
    rest = Stream(open_(session, asked), backend)
    assert (rest.tokens, rest.reason) == (tokens[:end], FinishReason.STOP)


def test_a_retry_of_what_is_finished_computes_nothing_and_repeats_tokens_and_reason():
    session, backend = session_of(), FakeBackend()
    asked = ask(prompt=[2], max_tokens=9)
    first = Stream(open_(session, asked), backend)
    again = open_(session, asked)
    assert again.admission is None
    assert not again.begun
    assert (Stream(again, backend).tokens, again.generation.finish_reason) == (first.tokens, first.reason)


def test_an_older_generation_is_still_repeated_when_newer_ones_stand_behind_it():
    session, backend = session_of(), FakeBackend()
    first = Stream(open_(session, ask("a", [2], max_tokens=5)), backend)
    Stream(open_(session, ask("b", [3], max_tokens=5)), backend)
    assert Stream(open_(session, ask("a")), backend).tokens == first.tokens


def test_a_new_generation_ends_an_unfinished_one_for_good():
    session, backend = session_of(), FakeBackend()
    cut = Stream(open_(session, ask("a", [2], max_tokens=50, ignore_eos=True)), backend, steps=4)
    Stream(open_(session, ask("b", max_tokens=2)), backend)
    opened = open_(session, ask("a"))
    assert (opened.admission, opened.generation.finish_reason) == (None, FinishReason.CANCELLED)
    assert Stream(opened, backend).tokens == cut.tokens


@pytest.mark.parametrize("finished", [True, False])
def test_log_probabilities_computed_again_are_those_of_the_first_time(finished):
    session, backend = session_of(), ReferenceBackend(MODEL, slots=1)
    asked = ask(prompt=[2, 5], max_tokens=30, logprobs=0, echo=True, ignore_eos=True)
    first = Stream(open_(session, asked), backend, steps=None if finished else 12)
    middle = dataclasses.replace(asked, from_position=6)
    again = Stream(open_(session, middle), backend)
    assert again.tokens[: len(first.tokens) - 5] == first.tokens[5:]
    assert again.logprobs[: len(first.logprobs) - 5] == first.logprobs[5:]
    assert len(again.tokens) == len(again.logprobs) == 32 - 5
    assert (session.position, session.consumed) == (33, 32)


def test_the_prompts_log_probabilities_cost_no_reading_of_the_whole_transcript():
    session, backend = session_of(), FakeBackend()
    Stream(open_(session, ask("a", [2] * 50, max_tokens=5, ignore_eos=True)), backend)
    opened = open_(session, ask("b", [3], echo=True, logprobs=2))
    assert opened.admission.position == 55
    assert opened.admission.state is not None


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": (2, 4)},
        {"max_tokens": 8},
        {"min_tokens": 0},
        {"stop": ("b",)},
        {"stop_token_ids": (3,)},
        {"ignore_eos": True},
        {"sampling": {"temperature": 0.5}},
        {"sampling": {"seed": 4}},
    ],
    ids=str,
)
def test_a_generation_id_that_comes_back_with_another_request_is_refused(change):
    session = session_of()
    asked = ask(prompt=[2, 3], max_tokens=9, min_tokens=1, stop=("a",), stop_token_ids=(2,), seed=3)
    Stream(open_(session, asked), FakeBackend(), steps=4)
    before = list(session.transcript)
    with pytest.raises(GenerationMismatch, match="was made from"):
        open_(session, dataclasses.replace(asked, **change))
    assert list(session.transcript) == before


def test_what_a_retry_leaves_out_is_taken_from_the_record():
    session, backend = session_of(), FakeBackend()
    asked = ask(prompt=[2, 3], max_tokens=9, min_tokens=1, ignore_eos=True, stop=("a",), seed=3, temperature=0.7)
    first = Stream(open_(session, asked), backend)
    assert Stream(open_(session, ask(expected_position=77)), backend).tokens == first.tokens


def test_a_retry_near_the_end_of_the_transcript_is_the_same_request():
    session = session_of()
    asked = ask(prompt=[2] * 10, max_tokens=100, ignore_eos=True)
    first = Stream(open_(session, asked, limit=16), FakeBackend())
    assert (len(first.tokens), first.reason, session.position) == (5, FinishReason.LENGTH, 16)
    assert Stream(open_(session, asked, limit=16), FakeBackend()).tokens == first.tokens


def test_a_transcript_that_is_full_takes_no_new_generation():
    session = session_of()
    Stream(open_(session, ask(max_tokens=100, ignore_eos=True), limit=16), FakeBackend())
    with pytest.raises(TranscriptFull, match="the transcript has 16 tokens and the prompt 0; at most 15"):
        open_(session, ask("next"), limit=16)


def test_where_the_client_believes_the_session_to_stand_is_checked_for_new_generations():
    session = session_of()
    Stream(open_(session, ask(max_tokens=4, ignore_eos=True, expected_position=1)), FakeBackend())
    with pytest.raises(PositionMismatch, match="expected_position is 4; the session stands at 5"):
        open_(session, ask("next", expected_position=4))


def test_a_position_beyond_the_end_is_refused_once_the_end_is_known():
    session = session_of()
    asked = ask(max_tokens=6, ignore_eos=True)
    Stream(open_(session, asked), FakeBackend(), steps=2)
    ahead = dataclasses.replace(asked, from_position=5)
    rest = Stream(open_(session, ahead), FakeBackend())
    assert rest.tokens == truth(session.transcript, session.generations[0])[0][4:]
    assert Stream(open_(session, dataclasses.replace(asked, from_position=7)), FakeBackend()).tokens == []
    with pytest.raises(PositionMismatch, match="from_position is 8; generation 'g' ended at 7"):
        open_(session, dataclasses.replace(asked, from_position=8))


def test_sampling_is_inherited_seed_included_and_the_rest_is_not():
    session, backend = session_of(), FakeBackend()
    Stream(open_(session, ask("a", max_tokens=2, temperature=0.5, top_k=4, stop=("k",), ignore_eos=True)), backend)
    generation = open_(session, ask("b", fresh_seed=5, top_k=7)).generation
    assert generation.sampling == SamplingParameters(temperature=0.5, top_k=7, seed=99)
    assert (generation.max_tokens, generation.stop, generation.ignore_eos) == (1_024, (), False)


def ended_session():
    """A session whose model has drawn its end token."""
    session, backend = session_of(), FakeBackend()
    for seed in range(100):
        session = session_of()
        if Stream(open_(session, ask(prompt=[2], seed=seed)), backend).reason is FinishReason.END_OF_SEQUENCE:
            return session
    raise AssertionError("no seed draws the end")


def test_after_an_end_the_start_token_is_fed_before_the_prompt():
    session = ended_session()
    position = session.position
    opened = open_(session, ask("next", [5], echo=True))
    assert (opened.generation.prompt_position, opened.generation.start_position) == (position + 1, position + 2)
    assert opened.admission.history[-1] == MODEL.tokenizer.end_id
    assert opened.admission.forced.tolist() == [0, 5]
    assert Stream(opened, FakeBackend()).tokens[0] == 5


def test_the_start_token_after_an_end_belongs_to_no_prompt_when_a_request_comes_back():
    session = ended_session()
    asked = ask("next", [0, 5], max_tokens=3)
    Stream(open_(session, asked), FakeBackend())
    open_(session, asked)
    with pytest.raises(GenerationMismatch, match="another prompt"):
        open_(session, dataclasses.replace(asked, prompt=(5,)))


def test_an_end_token_in_a_prompt_counts_as_an_end_too():
    session = session_of()
    Stream(open_(session, ask("a", [2, 1], max_tokens=1, temperature=0.0)), FakeBackend(), steps=1)
    assert open_(session, ask("b")).admission.forced.tolist()[-2:] == [1, 0]


@pytest.mark.parametrize("refused", [True, False])
def test_what_was_refused_or_abandoned_has_left_no_trace(refused):
    session, backend = session_of(), FakeBackend()
    Stream(open_(session, ask("a", [2], max_tokens=50, ignore_eos=True)), backend, steps=5)
    before = dataclasses.replace(session, transcript=session.transcript[:], generations=list(session.generations))
    kept = dataclasses.replace(session.generations[0])
    other = model_of(MODEL.config, seed=2)
    more = {"rebase": True, "allow_numerics_change": True, "min_tokens": 2, "max_tokens": 1 if refused else 9}
    try:
        abandon(open_(session, ask("b", [3], **more), model=other, numerics="other"))
    except InvalidField:
        assert refused
    for field in dataclasses.fields(Session):
        assert getattr(session, field.name) is getattr(before, field.name) or field.name in (
            "transcript",
            "generations",
        )
    assert (session.transcript, session.generations) == (before.transcript, before.generations)
    assert session.generations[0] == kept


def test_other_weights_are_refused_and_with_rebase_the_transcript_is_read_again():
    session, other = session_of(), model_of(MODEL.config, seed=2)
    Stream(open_(session, ask("a", [2, 3], max_tokens=5, ignore_eos=True)), FakeBackend())
    with pytest.raises(ModelChanged, match="set rebase to rebuild it"):
        open_(session, ask("b"), model=other)
    opened = open_(session, ask("b", rebase=True), model=other)
    assert (opened.admission.position, opened.admission.state) == (0, None)
    assert opened.admission.forced.tolist() == session.transcript.tolist()[1:]
    assert session.digest == other.digest


def test_another_tokenizer_is_refused_even_with_rebase_unless_nothing_was_read_yet():
    session = session_of()
    open_(session_of(), ask(rebase=True), model=ENDLESS_MODEL)
    Stream(open_(session, ask("a", [2], max_tokens=2)), FakeBackend())
    with pytest.raises(ModelChanged, match="tokens of another tokenizer"):
        open_(session, ask("b", rebase=True), model=ENDLESS_MODEL)


def test_other_numerics_are_refused_unless_allowed():
    session = session_of()
    with pytest.raises(NumericsChanged, match="made under numerics numerics, this server has other"):
        open_(session, ask(), numerics="other")
    open_(session, ask(allow_numerics_change=True), numerics="other")
    assert session.numerics_id == "other"


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (ask(max_tokens=3, min_tokens=4), "min_tokens: 4 is above max_tokens 3"),
        (ask(logit_bias=((13, 1.0),)), "token id 13 does not exist; ids are 0 to 12"),
        (ask(stop_token_ids=(13,)), "id 13 is not in 0 to 12"),
        (ask(stop_token_ids=(0, *range(2, 13)), min_tokens=1), "every token of this model ends the generation"),
        (ask(temperature=-1.0), "temperature"),
    ],
)
def test_a_request_that_cannot_be_is_refused_by_the_field(asked, why):
    session = session_of()
    with pytest.raises(InvalidField, match=why):
        open_(session, asked)
    assert (session.position, session.generations) == (1, [])


def test_a_failed_call_leaves_the_session_where_a_resume_can_go_on():
    session, backend = session_of(), FakeBackend()
    asked = ask(prompt=[2, 3], max_tokens=9, ignore_eos=True)
    opened = open_(session, asked)
    apply_progress(session, opened.generation, Progress(1, 1, [2, 3, 7], 2, ()))
    apply_progress(session, opened.generation, Progress(1, 4, [], 0, incident="incident"))
    assert (session.consumed, session.state, session.position) == (0, None, 4)
    with pytest.raises(GruveError):
        open_(session, dataclasses.replace(asked, prompt=(9,)))
    assert open_(session, asked).admission.forced.tolist() == [2, 3, 7]
    assert backend.rows == {}


def test_the_history_holds_the_last_thousand_and_the_rest_is_forced():
    session = session_of()
    session.transcript.extend([2] * 3_000)
    session.consumed, session.state = 2_900, np.zeros((1, 2, 8), dtype=np.float32)
    admission = open_(session, ask(prompt=[5]), limit=1 << 20).admission
    assert (len(admission.history), admission.position) == (1_024, 2_900)
    assert admission.forced.tolist() == [2] * 100 + [5]
