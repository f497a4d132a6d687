"""Session records, written to a store and read back."""

from __future__ import annotations

from gruve.model.sampling import SamplingParameters
from gruve.sessions.encoding import prepare_write, unpack_session
from gruve.sessions.record import DEFAULT_TENANT, Generation, Session

NOW = 1.7e9


def session_of(id_="a", created_s=NOW, model="m", tokens=0, ttl_s=100.0, tenant=DEFAULT_TENANT):
    session = Session(id_, model, "d" * 64, "n", ttl_s, created_s, created_s, tenant, tokenizer_digest="t")
    session.transcript.extend(i * 7 % 65_536 for i in range(tokens))
    return session


def generation_of(at, **more):
    sampling = SamplingParameters(seed=2**64 - 1, temperature=0.1, logit_bias=((3, -0.1),))
    return Generation("g", at, at + 1, sampling, 9, 0, False, ("x\n",), (4,), NOW, at + 1, **more)


def grow(session, tokens):
    """Generates `count` tokens, in a new generation if the last one has ended."""
    if not session.generations or session.generations[-1].finished:
        session.generations.append(generation_of(session.position - 1))
        session.next_sampling = None
        session.store_progress.events += 1
    session.transcript.extend(tokens)
    session.generations[-1].next_position = session.position


def save(store, *sessions, owner="me", **how):
    handed = [prepare_write(session, **how) for session in sessions]
    lost = store.write(owner, [each.write for each in handed])
    for each in handed:
        if each.session.id not in lost:
            each.succeed()
    return lost


def load(store, id_="a", now_s=NOW):
    stored = store.read(id_, now_s)
    return None if stored is None else unpack_session(stored, 1)
