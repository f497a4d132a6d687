"""Makes the receipt of a generation from its session's record; see `gruve.receipt`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gruve.engine.sequence import FinishReason
from gruve.errors import InvalidField, ReceiptInvalid
from gruve.model.sampling import SamplingParameters
from gruve.receipt.token_hash import TokenHash
from gruve.sessions.record import Change, Generation, Session

MAX_TOKENS = 1 << 30
"""The most tokens of a receipt that can be recomputed: backends count in 32 bits."""
ENTRY = np.dtype([("position", "<u8"), ("token", "<u4")])


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """Everything that the tokens of a generation follow from, except the model and the prompt, and their hashes."""

    model_digest: str
    numerics_id: str
    computed_from: int
    """The first position that this model and this arithmetic have computed."""
    start_position: int
    next_position: int
    sampling: SamplingParameters
    changes: tuple[Change, ...]
    """By position. Each has an effect: it inserts a prompt, or the parameters differ from those before."""
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_sha256: bytes
    """Of the tokens before `start_position` and of the inserted prompts."""
    tokens_sha256: bytes
    """Of the generated tokens."""

    @property
    def generated_ranges(self) -> list[tuple[int, int]]:
        """The (begin, end) positions of the generated tokens, where they alternate with inserted prompts."""
        return generated_ranges(self.start_position, self.next_position, self.changes)


def encode_entries(position: int, tokens: Sequence[int]) -> bytes:
    """The same as `token_hash.encode_entries`, in a tenth of the time: 7 ns a token."""
    entries = np.empty(len(tokens), ENTRY)
    entries["position"] = np.arange(position, position + len(tokens))
    entries["token"] = tokens
    return entries.tobytes()


def make_receipt(session: Session, generation: Generation) -> Receipt:
    """The receipt of a generation that has finished for good.

    A function of the record alone, so neither resumes nor restarts change it. `session.prefix_hash` saves hashing the
    transcript of a long session again for each generation.
    """
    start, end = generation.start_position, generation.next_position
    finish_reason = generation.finish_reason or FinishReason.CANCELLED
    changes = _effective_changes(generation, end)
    prompt, tokens, transcript = _prefix_hash(session, start), TokenHash(encode_entries), session.transcript
    for change in changes:
        prompt.add(change.position, transcript[change.position : change.position + change.inserted])
    ranges = generated_ranges(start, end, changes)
    for begin, after in ranges:
        tokens.add(begin, transcript[begin:after])
    generated = sum(after - begin for begin, after in ranges)
    return Receipt(
        model_digest=generation.digest,
        numerics_id=generation.numerics_id,
        computed_from=max(start, generation.computed_from),
        start_position=start,
        next_position=end,
        sampling=generation.sampling,
        changes=changes,
        max_tokens=generated if finish_reason is FinishReason.LENGTH else generation.max_tokens,
        min_tokens=generation.min_tokens,
        ignore_eos=generation.ignore_eos,
        stop=generation.stop,
        stop_token_ids=generation.stop_token_ids,
        finish_reason=finish_reason,
        prompt_sha256=prompt.digest(),
        tokens_sha256=tokens.digest(),
    )


def generated_ranges(start: int, end: int, changes: Sequence[Change]) -> list[tuple[int, int]]:
    """The (begin, end) positions from `start` to `end` that no prompt was inserted at."""
    ranges, begin = [], start
    for change in changes:
        if change.inserted:
            ranges.append((begin, change.position))
            begin = change.position + change.inserted
    ranges.append((begin, end))
    return [(begin, after) for begin, after in ranges if begin < after]


def hash_prompt(context: Sequence[int], inserted: Sequence[tuple[int, Sequence[int]]]) -> bytes:
    """The hash of the transcript before a generation and of the prompts inserted later: (position, tokens) each."""
    prompt = TokenHash(encode_entries)
    prompt.add(0, context)
    for position, tokens in inserted:
        prompt.add(position, tokens)
    return prompt.digest()


def parse_receipt(receipt: dict[str, Any]) -> Receipt:
    """The receipt of a checked file; see `gruve.receipt.file`. Raises `ReceiptInvalid` for a value out of range."""
    try:
        parsed = Receipt(
            model_digest=receipt["model_digest"],
            numerics_id=receipt["numerics_id"],
            computed_from=receipt["computed_from"],
            start_position=receipt["start_position"],
            next_position=receipt["next_position"],
            sampling=_sampling(receipt["sampling"]),
            changes=tuple(
                Change(change["position"], _sampling(change["sampling"]), change["inserted"])
                for change in receipt["changes"]
            ),
            max_tokens=receipt["max_tokens"],
            min_tokens=receipt["min_tokens"],
            ignore_eos=receipt["ignore_eos"],
            stop=tuple(receipt["stop"]),
            stop_token_ids=tuple(receipt["stop_token_ids"]),
            finish_reason=FinishReason(receipt["finish_reason"]),
            prompt_sha256=bytes.fromhex(receipt["prompt_sha256"]),
            tokens_sha256=bytes.fromhex(receipt["tokens_sha256"]),
        )
    except (ValueError, InvalidField) as error:
        raise ReceiptInvalid(str(error)) from error
    for name in ("next_position", "max_tokens", "min_tokens"):
        if (tokens := getattr(parsed, name)) > MAX_TOKENS:
            raise ReceiptInvalid(f"{name} is {tokens}; must be {MAX_TOKENS} or less")
    after = parsed.start_position
    for number, change in enumerate(parsed.changes):
        if not after <= change.position < parsed.next_position:
            raise ReceiptInvalid(
                f"changes[{number}].position is {change.position}; must be {after} to {parsed.next_position - 1}"
            )
        after = change.position + max(1, change.inserted)
    if after > max(parsed.next_position, parsed.start_position):
        raise ReceiptInvalid(f"the last prompt ends at {after}; must be next_position {parsed.next_position} or less")
    if not parsed.start_position <= parsed.computed_from <= parsed.next_position:
        raise ReceiptInvalid(
            f"computed_from is {parsed.computed_from}; must be {parsed.start_position} to {parsed.next_position}"
        )
    return parsed


def _prefix_hash(session: Session, position: int) -> TokenHash:
    """The hash of the transcript's first `position` tokens, which can be added to."""
    prefix = session.prefix_hash
    if prefix is None or prefix.position > position:
        prefix = TokenHash(encode_entries)
    prefix.add(prefix.position, session.transcript[prefix.position : position])
    session.prefix_hash = prefix
    return prefix.copy()


def _effective_changes(generation: Generation, end: int) -> tuple[Change, ...]:
    """The recorded changes before `end` that have an effect. Of those at one position the last one counts."""
    last: list[Change] = []
    for change in generation.changes:
        if change.position >= end:
            break
        if last and last[-1].position == change.position and not last[-1].inserted:
            last.pop()
        last.append(dataclasses.replace(change, inserted=min(change.inserted, end - change.position)))
    effective, sampling = [], generation.sampling
    for change in last:
        if change.inserted or change.sampling != sampling:
            effective.append(change)
        sampling = change.sampling
    return tuple(effective)


def _sampling(fields: dict[str, Any]) -> SamplingParameters:
    bias = tuple((int(token), float(value)) for token, value in fields["logit_bias"].items())
    return SamplingParameters(**fields | {"logit_bias": bias, "seed": int(fields["seed"])})
