"""Generations that are refused or abandoned, and that leave the session as it was."""

from __future__ import annotations

import dataclasses

import pytest

from decoding import FakeBackend
from generating import ENDLESS_MODEL, MODEL, Stream, ask, open_, session_of, truth
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
from gruve.sessions.generations import abandon, apply_progress
from gruve.sessions.record import Session
from nets import model_of


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
    with pytest.raises(PositionMismatch, match="expected_position is 4; the session's position is 5"):
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
    with pytest.raises(NumericsChanged, match="computed with numerics_id numerics; this server has other"):
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
