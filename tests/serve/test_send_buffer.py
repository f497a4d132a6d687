"""The send buffer against a plain list: which tokens are sent, in which order and messages, with which text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gruve.decode.stops import compile_stops
from gruve.model.sampling import SamplingParameters
from gruve.serve.streams.send_buffer import SendBuffer
from gruve.serve.streams.text_assembler import TextAssembler
from gruve.sessions.record import Change, Generation, Session

TEXTS = ("", "a", "b", "ab", "ba", "c\n")
START = 5
"""The position of the generation's first token, after a prompt from position 1 on."""
NEVER = 10**9
"""The value of min_tokens with which no stop is ever completed."""

tokens_ = st.lists(st.integers(1, len(TEXTS) - 1), min_size=START - 1, max_size=40)
prompts_ = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), max_size=3)
cuts_ = st.lists(st.integers(1, 7), min_size=60, max_size=60)
stops_ = st.lists(st.text("ab", min_size=2, max_size=4), max_size=3)


def generation_of(prompts, end):
    """A generation with inserted prompts, each `gap` tokens after the one before; those beyond the end do not exist."""
    sampling, position, changes = SamplingParameters(), START, []
    for gap, length in prompts:
        if position + gap + length > end:
            break
        changes.append(Change(position + gap, sampling, length))
        position += gap + length
    return Generation("g", 1, START, sampling, 99, 0, False, (), (), 0.0, end, changes=changes)


def buffer_of(generation, first_position, echo, stops=(), min_tokens=NEVER):
    assembler = TextAssembler(TEXTS, compile_stops(stops, (), TEXTS), min_tokens)
    return SendBuffer(generation, TEXTS, assembler, first_position, echo=echo)


def plainly(generation, tokens, first_position, echo):
    """Position and token of everything that must be sent."""
    prompts = {at for begin, after in [(1, START), *generation.inserted] for at in range(begin, after)}
    sent = [at for at in range(1, 1 + len(tokens)) if at >= first_position and (echo or at not in prompts)]
    return [(at, tokens[at - 1]) for at in sent]


def through(buffer, tokens, cuts):
    """Sends tokens through the buffer in pieces of all sizes, some tokens twice."""
    cuts, position, pieces = iter(cuts), 1, []
    while position <= len(tokens):
        size = next(cuts, 7)
        again = max(1, position - size // 2)
        buffer.add(again, tokens[again - 1 : position - 1 + size])
        position += size
        if position % 2:
            pieces.append(buffer.take(next(cuts, 7)))
    buffer.finish()
    while buffer:
        pieces.append(buffer.take(next(cuts, 7)))
        assert pieces[-1].tokens, "tokens are ready, and none is taken"
    return [*pieces, buffer.take(1)]


@given(tokens_, prompts_, st.integers(0, 12), st.booleans(), cuts_)
def test_what_is_sent_is_what_a_plain_list_says(tokens, prompts, further, echo, cuts):
    generation = generation_of(prompts, 1 + len(tokens))
    first = (1 if echo else START) + further
    pieces = through(buffer_of(generation, first, echo), tokens, cuts)
    sent = [(piece.position + i, token) for piece in pieces for i, token in enumerate(piece.tokens)]
    assert sent == plainly(generation, tokens, first, echo)
    assert all(piece.text == "".join(TEXTS[token] for token in piece.tokens) for piece in pieces)


@given(tokens_, prompts_, st.integers(0, 12), st.booleans(), st.integers(1, 40))
def test_what_is_yet_to_be_sent_is_counted_without_the_prompts_that_are_not(tokens, prompts, further, echo, taken):
    generation = generation_of(prompts, 1 + len(tokens))
    first = min(1 + len(tokens), (1 if echo else START) + further)
    buffer = buffer_of(generation, first, echo)
    buffer.add(1, tokens)
    unsent = len(plainly(generation, tokens, first, echo))
    assert buffer.unsent(1 + len(tokens)) == unsent
    sent = len(buffer.take(taken).tokens)
    assert buffer.unsent(1 + len(tokens)) == unsent - sent


@settings(max_examples=200)
@given(tokens_, prompts_, st.booleans(), cuts_, stops_)
def test_text_is_withheld_and_never_lost(tokens, prompts, echo, cuts, stops):
    generation = generation_of(prompts, 1 + len(tokens))
    first = 1 if echo else START
    pieces = through(buffer_of(generation, first, echo, stops), tokens, cuts)
    plain = plainly(generation, tokens, first, echo)
    assert "".join(piece.text for piece in pieces) == "".join(TEXTS[token] for _, token in plain)


def drained(buffer):
    """Everything that is ready, in pieces."""
    pieces = []
    while buffer:
        pieces.append(buffer.take(99))
        assert pieces[-1].tokens, "tokens are ready, and none is taken"
    return pieces


@settings(max_examples=300)
@given(st.lists(st.integers(1, 5), min_size=12, max_size=40), prompts_, st.booleans(), stops_, st.integers(0, 20))
def test_after_a_rewind_it_goes_on_as_if_nothing_had_been_added_from_there_on(tokens, prompts, echo, stops, back):
    generation = generation_of(prompts, 1 + len(tokens))
    position = max(START, 1 + len(tokens) - back)
    if any(begin < position < after for begin, after in generation.inserted):
        return  # a rewind into a prompt cuts its record first
    session = Session("", "m", "d", "n", 0.0, 0.0, 0.0)
    session.transcript.extend(tokens)
    rewound, plain = (buffer_of(generation, 1 if echo else START, echo, stops) for _ in range(2))
    rewound.add(1, tokens)
    while rewound and rewound.position < position:
        assert rewound.take(min(3, position - rewound.position)).tokens
    if generation.next_position > position:
        generation.cut(position)
    rewound.rewind(session, position)
    plain.add(1, tokens[: position - 1])
    drained(plain)
    assert (rewound.next_position, len(rewound), rewound.first_position) == (position, 0, plain.first_position)
    for buffer in (rewound, plain):
        buffer.add(position, [1 + token % (len(TEXTS) - 1) for token in tokens])
        buffer.finish()
    assert drained(rewound) == drained(plain)


def test_a_buffer_that_starts_beyond_the_place_of_a_rewind_sends_from_there_on():
    buffer, session = buffer_of(generation_of([], 7), 7, echo=False), Session("", "m", "d", "n", 0.0, 0.0, 0.0)
    session.transcript.extend([1, 2, 3, 4, 1, 2])
    buffer.add(1, [1, 2, 3, 4, 1, 2])
    buffer.rewind(session, 6)
    assert buffer.first_position == 6


def test_truncated_tokens_are_not_sent_and_neither_is_their_text():
    buffer = buffer_of(generation_of([], 9), START, echo=False)
    buffer.add(START, [1, 2, 3, 4])
    buffer.truncate(2)
    assert drained(buffer) == [(START, [1, 2], "ab", [])]


def test_no_stop_is_completed_across_a_prompt():
    buffer = buffer_of(generation_of([(1, 2)], 9), START, echo=False, stops=("ab",), min_tokens=0)
    buffer.add(1, [5, 5, 5, 5, 1, 5, 5, 2])
    buffer.finish()
    assert "".join(piece.text for piece in drained(buffer)) == "ab"
    assert buffer.matched is None


def test_two_prompts_in_a_row_that_are_not_sent_when_all_before_them_was_taken():
    tokens = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    buffer = buffer_of(generation_of([(1, 1), (0, 2)], 1 + len(tokens)), START, echo=False)
    buffer.add(1, tokens[:5])
    buffer.add(6, tokens[5:6])
    assert buffer.take(99).tokens == [1]
    buffer.add(7, tokens[6:8])
    assert (buffer.position, len(buffer)) == (9, 0)
    buffer.add(9, tokens[8:])
    assert buffer.take(99) == (9, [1, 2], "ab", [])
