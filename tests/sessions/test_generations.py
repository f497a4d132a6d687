"""Generations begun, cut, resumed, retried and refused in any order have the tokens of a sequence decoded alone."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding import FakeBackend, admission_of
from engines import Recorder, engine_of
from generating import LIMIT, MODEL, Stream, ask, open_, session_of, truth
from gruve.decode.reference import ReferenceBackend
from gruve.engine.sequence import FinishReason
from gruve.errors import (
    GenerationMismatch,
    TranscriptFull,
)
from gruve.model.sampling import MAX_SEED, SamplingParameters
from gruve.sessions.encoding import pack_generation, unpack_generation
from gruve.sessions.generations import abandon, apply_progress
from nets import CELL_NAMES, CELLS, config_of, model_of


def walk(seed, turns):
    """Random begins, cuts, resumes, retries, refusals and abandons, compared with a plain model."""
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


def test_log_probabilities_are_computed_again_from_the_nearest_state():
    session, backend = session_of(), ReferenceBackend(MODEL, slots=1)
    asked = ask(max_tokens=40, logprobs=0, ignore_eos=True)
    whole = Stream(open_(session_of(), asked), backend)
    Stream(open_(session, asked), backend, steps=15)
    Stream(open_(session, dataclasses.replace(asked, from_position=16)), backend)
    opened = open_(session, dataclasses.replace(asked, from_position=20))
    assert opened.admission.position == 15
    again = Stream(opened, backend)
    assert (again.tokens, again.logprobs) == (whole.tokens[19:], whole.logprobs[19:])
    assert open_(session, dataclasses.replace(asked, from_position=15)).admission.state is None


def test_the_prompts_log_probabilities_cost_no_reading_of_the_whole_transcript():
    session, backend = session_of(), FakeBackend()
    Stream(open_(session, ask("a", [2] * 50, max_tokens=5, ignore_eos=True)), backend)
    opened = open_(session, ask("b", [3], echo=True, logprobs=2))
    assert opened.admission.position == 55
    assert opened.admission.state is not None


def test_sampling_is_inherited_seed_included_and_the_rest_is_not():
    session, backend = session_of(), FakeBackend()
    Stream(open_(session, ask("a", max_tokens=2, temperature=0.5, top_k=4, stop=("k",), ignore_eos=True)), backend)
    generation = open_(session, ask("b", fresh_seed=5, top_k=7)).generation
    assert generation.sampling == SamplingParameters(temperature=0.5, top_k=7, seed=99)
    assert (generation.max_tokens, generation.stop, generation.ignore_eos) == (1_024, (), False)


def ended_session():
    """A session whose model has sampled its end token."""
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


def test_the_history_holds_the_last_thousand_and_the_rest_is_forced():
    session = session_of()
    session.transcript.extend([2] * 3_000)
    session.consumed, session.state = 2_900, np.zeros((1, 2, 8), dtype=np.float32)
    admission = open_(session, ask(prompt=[5]), limit=1 << 20).admission
    assert (len(admission.history), admission.position) == (1_024, 2_900)
    assert admission.forced.tolist() == [2] * 100 + [5]


def test_a_generation_that_goes_on_under_other_numerics_says_from_where_and_reads_its_transcript_again():
    session = session_of()
    Stream(open_(session, ask("a", [2], max_tokens=50, ignore_eos=True)), FakeBackend(), steps=5)
    generation, at = session.generations[0], session.position
    assert generation.computed_from == 0
    abandon(open_(session, ask("a", allow_numerics_change=True), numerics="other"))
    assert (generation.computed_from, generation.numerics_id) == (0, session.numerics_id)
    opened = open_(session, ask("a", allow_numerics_change=True), numerics="other")
    assert (generation.computed_from, generation.numerics_id) == (at, "other")
    assert (opened.admission.position, opened.admission.state) == (0, None)
    assert unpack_generation(pack_generation(generation)) == generation
    generation.cut(at - 1)
    assert generation.computed_from == at - 1
