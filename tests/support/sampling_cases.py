"""Hypothesis strategies for sampling parameters and for rows with logits."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from gruve.decode import HISTORY_TOKENS, Row
from gruve.decode.stops import compile_stops
from gruve.model import sampling as law

seeds = st.integers(0, 2**64 - 1)


FEW = [2, 3, 7, 40]


@st.composite
def parameters(draw, V):
    bias = draw(st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100, width=32), max_size=4))
    return law.SamplingParameters(
        temperature=draw(st.one_of(st.sampled_from([0.0, 0.01, 0.7, 1.0, 100.0, 1e-30]), st.floats(0, 100, width=32))),
        top_k=draw(st.one_of(st.none(), st.integers(1, V + 3))),
        top_p=draw(
            st.one_of(st.just(1.0), st.sampled_from([1e-9, 0.5, 0.999]), st.floats(0, 1, width=32, exclude_min=True))
        ),
        min_p=draw(st.one_of(st.just(0.0), st.floats(0, 1, width=32))),
        repetition_penalty=draw(st.sampled_from([1.0, 0.01, 0.5, 1.3, 100.0])),
        repetition_window=draw(st.sampled_from([0, 1, 5, 64, 1023, 1024])),
        logit_bias=tuple(bias.items()),
        seed=draw(seeds),
    )


@st.composite
def rows(draw, vocabularies):
    """Rows of one call: logits with many ties, positions below and above the history's length, masks, all options."""
    V = draw(st.sampled_from(vocabularies))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = []
    for _ in range(draw(st.integers(1, 5))):
        logits = (generator.normal(size=V) * draw(st.sampled_from([0.0, 1.0, 20.0]))).astype(np.float32)
        if draw(st.booleans()):
            logits = np.round(logits)
        position = draw(st.sampled_from([1, 2, 5, 1023, 1024, 1025, 5000, 2**20 - 1]))
        history = generator.integers(0, V, size=min(position, HISTORY_TOKENS)).astype(np.int32)
        minimum, drawn = draw(st.sampled_from([(0, 0), (3, 2), (3, 3)]))
        row = Row(
            history,
            position - 1,
            np.empty(0, dtype=np.int32),
            draw(parameters(V)),
            max_tokens=9,
            min_tokens=minimum,
            end_id=draw(st.sampled_from([None, 1])),
            ignore_eos=draw(st.booleans()),
            stops=compile_stops((), (V - 1,), ("x",) * V) if V > 2 and draw(st.booleans()) else None,
        )
        made.append((row, logits, drawn))
    return V, made


def masked_of(row, drawn):
    early = drawn < row.min_tokens
    end = [row.end_id] if row.end_id is not None and (row.ignore_eos or early) else []
    return tuple(end) + (row.stops.token_ids if row.stops and early else ())
