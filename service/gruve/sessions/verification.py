"""Recomputes a generation from its receipt and compares."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gruve.decode import HISTORY_TOKENS, Backend, Row, RowStatus
from gruve.decode.stops import compile_stops
from gruve.engine.sequence import FinishReason
from gruve.errors import InvalidField, ReceiptInvalid
from gruve.model.repository import Model
from gruve.model.sampling import SamplingParameters
from gruve.receipt.token_hash import TokenHash
from gruve.sessions.admission import stop_state
from gruve.sessions.generation_request import check_bias
from gruve.sessions.receipts import Receipt, encode_entries, hash_prompt

SLOT = 0
STEPS = 256
"""The steps of one call of the backend."""
ENDS = {RowStatus.STOP: FinishReason.STOP, RowStatus.END_OF_SEQUENCE: FinishReason.END_OF_SEQUENCE}


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a recomputation."""

    identical: bool
    position: int | None = None
    """The first position that differs; None if there is none, or if the receipt has the hash alone."""
    reason: str = ""
    """What differs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """What a receipt has only hashes of."""

    context: Sequence[int]
    """The transcript before the generation, the start token included."""
    inserted: Sequence[Sequence[int]] = ()
    """The tokens of each inserted prompt."""
    token_ids: Sequence[int] | None = None
    """The generated tokens, if they are known."""

    def matches_prompt(self, receipt: Receipt) -> bool:
        """Whether the context and the inserted prompts are those that the receipt has the hash of."""
        places = [(change.position, change.inserted) for change in receipt.changes if change.inserted]
        if len(self.context) != receipt.start_position or [size for _, size in places] != list(map(len, self.inserted)):
            return False
        inserted = [(position, tokens) for (position, _), tokens in zip(places, self.inserted, strict=True)]
        return hash_prompt(self.context, inserted) == receipt.prompt_sha256


def verify(receipt: Receipt, evidence: Evidence, model: Model, backend: Backend) -> Verdict:
    """Generates the receipt's tokens again, with its model and arithmetic, and compares.

    `evidence` must match the receipt's prompt hash. Raises `ReceiptInvalid` if the receipt cannot be of this model, or
    if tokens that other arithmetic has computed, before `computed_from`, are needed and missing.
    """
    tokens = evidence.token_ids
    if receipt.computed_from > receipt.start_position and tokens is None:
        raise ReceiptInvalid(
            f"the tokens before position {receipt.computed_from} were computed with another model or arithmetic, "
            "and the file has no token_ids"
        )
    computed, status = _Recomputation(receipt, evidence, model, backend).run()
    ranges, at = receipt.generated_ranges, 0
    places = [position for begin, end in ranges for position in range(begin, end)]
    if tokens is not None:
        for at, (given, again) in enumerate(zip(tokens, computed, strict=False)):
            if given != again:
                return Verdict(False, places[at], f"the token is {given}; recomputed it is {again}")
        if len(tokens) != len(places):
            return Verdict(False, None, f"the file has {len(tokens)} tokens; the receipt is about {len(places)}")
    if len(computed) < len(places):
        return Verdict(False, places[len(computed)], f"recomputed, the generation ends before it with {status.name}")
    if _hash(ranges, computed) != receipt.tokens_sha256:
        return Verdict(False, None, "the tokens have another hash than the receipt says")
    if receipt.computed_from == receipt.next_position:
        return Verdict(True)
    return _check_end(receipt, len(computed), status)


def _check_end(receipt: Receipt, generated: int, status: RowStatus) -> Verdict:
    """Whether a recomputation with the same tokens ends for the same reason."""
    said, found = receipt.finish_reason, ENDS.get(status)
    if said in ENDS.values() and said is not found:
        again = "nothing ends it there" if found is None else f"it is {found.value}"
        return Verdict(False, receipt.next_position, f"the finish reason is {said.value}; recomputed, {again}")
    if said is FinishReason.LENGTH and (found is not None or generated != receipt.max_tokens):
        return Verdict(
            False,
            receipt.next_position,
            f"the finish reason is length with max_tokens {receipt.max_tokens}; recomputed, {generated} tokens end it "
            f"with {found.value if found else 'length'}",
        )
    return Verdict(True)


def _hash(ranges: Sequence[tuple[int, int]], tokens: Sequence[int]) -> bytes:
    """The rolling hash of tokens whose positions are the (begin, end) ranges, one after the other."""
    rolling, hashed = TokenHash(encode_entries), 0
    for begin, end in ranges:
        rolling.add(begin, tokens[hashed : hashed + end - begin])
        hashed += end - begin
    return rolling.digest()


class _Recomputation:
    """Generates the tokens of a receipt, segment by segment: from a change of the parameters to the next."""

    def __init__(self, receipt: Receipt, evidence: Evidence, model: Model, backend: Backend) -> None:
        self._receipt, self._backend, self._model = receipt, backend, model
        tokenizer = model.tokenizer
        try:
            self._stops = compile_stops(receipt.stop, receipt.stop_token_ids, tokenizer.texts)
            for sampling in (receipt.sampling, *(change.sampling for change in receipt.changes)):
                check_bias(sampling.logit_bias, tokenizer.size)
        except InvalidField as error:
            raise ReceiptInvalid(str(error)) from error
        self._inserted = list(evidence.inserted)
        given = sum(max(0, min(end, receipt.computed_from) - begin) for begin, end in receipt.generated_ranges)
        self._given = list((evidence.token_ids or ())[:given])
        """The generated tokens before `computed_from`, which are taken as they are."""
        self._transcript = list(evidence.context)
        for token in itertools.chain(self._transcript, *self._inserted, self._given):
            if token >= tokenizer.size:
                raise ReceiptInvalid(f"token {token} is not one of the model; ids are 0 to {tokenizer.size - 1}")
        self._generated: list[int] = []
        self._matching = receipt.start_position
        """Where the text begins in which a stop can be completed."""
        self._state: NDArray[np.float32] | None = None
        self._consumed = 0

    def run(self) -> tuple[list[int], RowStatus]:
        """The generated tokens, and how the last segment ended."""
        receipt, sampling = self._receipt, self._receipt.sampling
        status, changes, inserted = RowStatus.LENGTH, list(receipt.changes), list(self._inserted)
        while len(self._transcript) < receipt.next_position:
            while changes and changes[0].position == len(self._transcript):
                change = changes.pop(0)
                sampling = change.sampling
                if change.inserted:
                    self._transcript += inserted.pop(0)
                    self._matching = len(self._transcript)
            end = changes[0].position if changes else receipt.next_position
            status = self._continue(sampling, end)
            if len(self._transcript) < end:
                break
        return self._generated, status

    def _continue(self, sampling: SamplingParameters, end: int) -> RowStatus:
        """Takes the tokens up to `end` that others have computed, then generates the rest."""
        given = self._given[: max(0, end - len(self._transcript))]
        del self._given[: len(given)]
        self._append(given)
        if len(self._transcript) >= end:
            return RowStatus.LENGTH
        self._backend.admit(SLOT, self._row(sampling, end), self._state)
        forced = len(self._transcript) - self._consumed - 1
        try:
            status = RowStatus.RUNNING
            while status is RowStatus.RUNNING:
                block = self._backend.decode([SLOT], [STEPS], STEPS)
                steps = int(block.steps_taken[0])
                tokens = block.tokens[:steps, 0].tolist()
                self._append(tokens[forced:])
                forced = max(0, forced - steps)
                status = RowStatus(int(block.statuses[0]))
            self._state, self._consumed = self._backend.snapshot(SLOT), len(self._transcript) - 1
        finally:
            self._backend.release(SLOT)
        return status

    def _row(self, sampling: SamplingParameters, end: int) -> Row:
        """What is left to decode up to `end`: the transcript that the state lacks, then new tokens."""
        receipt, consumed = self._receipt, self._consumed
        transcript: NDArray[np.int32] = np.array(
            self._transcript[max(0, consumed + 1 - HISTORY_TOKENS) :], dtype=np.int32
        )
        split, generated = min(consumed + 1, HISTORY_TOKENS), len(self._generated)
        return Row(
            history=transcript[:split],
            position=consumed,
            forced=transcript[split:],
            sampling=sampling,
            max_tokens=generated + end - len(self._transcript),
            min_tokens=receipt.min_tokens,
            end_id=self._model.tokenizer.end_id,
            ignore_eos=receipt.ignore_eos,
            stops=self._stops,
            stop_state=0 if self._stops is None else stop_state(self._stops, self._transcript[self._matching :]),
            generated=generated,
        )

    def _append(self, tokens: Sequence[int]) -> None:
        self._transcript += tokens
        self._generated += tokens
