"""A small model and a Hypothesis strategy for rows with prompts, stops and limits."""

from __future__ import annotations

from hypothesis import strategies as st

from gruve.decode.stops import compile_stops
from natively import row_with
from nets import CELLS, config_of, model_of
from sampling_cases import parameters

V = 9


MODEL = model_of(config_of(CELLS[0], V=V, H=16))


TEXTS = MODEL.tokenizer.texts


@st.composite
def rows(draw):
    history = draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=30))
    stops = draw(st.lists(st.text(alphabet=[t for t in TEXTS if t], min_size=1, max_size=3), max_size=3))
    ids = draw(st.lists(st.integers(0, V - 1), max_size=2, unique=True))
    return row_with(
        draw(st.lists(st.integers(0, V - 1), max_size=8)),
        history=history,
        max_tokens=draw(st.integers(1, 12)),
        sampling=draw(parameters(V)),
        min_tokens=draw(st.sampled_from([0, 0, 1, 4])),
        end_id=draw(st.sampled_from([None, 1])),
        ignore_eos=draw(st.booleans()),
        stops=compile_stops(stops, ids, TEXTS),
        generated=draw(st.sampled_from([0, 0, 2])),
    )
