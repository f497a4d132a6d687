"""Compiles stop strings into a table that a backend walks one token at a time (Aho and Corasick 1975).

Knows the texts of tokens; nothing of sequences or tensors.
"""

from __future__ import annotations

import collections
import dataclasses
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gruve.errors import InvalidField, LimitExceeded

MATCHED = 1 << 30
"""Set in an entry of the table when a stop ends inside or at the end of that token."""
MAX_TABLE_ENTRIES = 1 << 20
"""The maximum of states times vocabulary size (4 MiB). Only many long stops over a large vocabulary reach it."""
STATE_BYTES = 400
"""What a state takes at most beside its row of the table."""
MAX_BYTES = 256 << 20
"""What all tables in use may take together."""
SMALL_BYTES = 64 << 10
"""A table of at most this size is made even beyond that: long stops of some streams must not refuse short ones of
others."""
RETRY_AFTER_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True)
class StopTable:
    """For each state and token, the next state, with MATCHED set if the token's text completes a stop.

    State 0 has matched nothing. Sequences share a table, so nobody writes to one.
    """

    strings: tuple[str, ...]
    token_ids: tuple[int, ...]
    table: NDArray[np.int32]
    """(states, V)"""
    depth: NDArray[np.int32]
    """(states,): how many characters at the end of the text may still become a stop. A stream withholds them."""
    _edges: tuple[dict[str, int], ...]
    """The trie of the strings. Without the transitions that follow from `_fail`, which would be most of the memory."""
    _fail: tuple[int, ...]
    """The state of the longest suffix that is a prefix of a stop; where no edge fits, it is tried next."""
    _output: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return _size(len(self.depth), self.table.shape[1])

    def walk(self, state: int, text: str) -> tuple[int, int | None, int | None]:
        """Appends `text` character by character.

        Returns the new state, the index of the stop that is completed first, and the number of characters of `text` up
        to its end; the last two are None if no stop is completed. If several stops end together, the longest is
        returned.
        """
        for index, character in enumerate(text):
            while (following := self._edges[state].get(character, 0)) == 0 and state:
                state = self._fail[state]
            state = following
            if self._output[state] >= 0:
                return state, self._output[state], index + 1
        return state, None, None


_Key = tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]]
_in_use: weakref.WeakValueDictionary[_Key, StopTable] = weakref.WeakValueDictionary()
"""The tables in use. Most clients of a model send the same stops, and a table can take 4 MiB."""


def compile_stops(strings: Sequence[str], token_ids: Sequence[int], texts: Sequence[str]) -> StopTable | None:
    """Compiles `strings` and `token_ids` over tokens with `texts`; None if there are none.

    Returns the same table for the same arguments while it is in use. Raises `InvalidField` for a token id outside the
    vocabulary, an empty string, or a table that would be too large, and `LimitExceeded` if it would be too large beside
    those in use.
    """
    if not strings and not token_ids:
        return None
    key = (tuple(strings), tuple(token_ids), tuple(texts))
    table = _in_use.get(key)
    if table is None:
        table = _in_use.setdefault(key, _compile(*key))
    return table


def _compile(strings: tuple[str, ...], token_ids: tuple[int, ...], texts: tuple[str, ...]) -> StopTable:
    for token in token_ids:
        if not 0 <= token < len(texts):
            raise InvalidField("stop_token_ids", f"id {token} is not in 0 to {len(texts) - 1}")
    if any(not string for string in strings):
        raise InvalidField("stop", "an empty string would stop before the first token")
    states = 1 + sum(len(string) for string in strings)
    if states * len(texts) > MAX_TABLE_ENTRIES:
        raise InvalidField(
            "stop",
            f"{states - 1} characters of stops over {len(texts)} tokens need {states * len(texts)} table entries; "
            f"at most {MAX_TABLE_ENTRIES}",
        )
    _check_room(_size(states, len(texts)))
    edges, fail, output, depth = _automaton(strings)
    table = _fill(_transitions(edges, fail), output, texts)
    table[:, list(token_ids)] |= MATCHED
    depths = np.array(depth, dtype=np.int32)
    return StopTable(strings, token_ids, table, depths, tuple(edges), tuple(fail), tuple(output))


def _check_room(needed: int) -> None:
    """Raises `LimitExceeded` if a table is not small and has no room beside those in use."""
    if needed <= SMALL_BYTES:
        return
    used = sum([table.size_bytes for table in _in_use.values()])
    if used + needed > MAX_BYTES:
        raise LimitExceeded(
            f"the stops take {needed} bytes beside {used} of the different stops of other streams; at most {MAX_BYTES}",
            limit="stops",
            bound=MAX_BYTES,
            retry_after_s=RETRY_AFTER_S,
        )


def _size(states: int, vocabulary_size: int) -> int:
    return states * (STATE_BYTES + 4 * vocabulary_size)


def _fill(goto: Sequence[dict[str, int]], output: Sequence[int], texts: Sequence[str]) -> NDArray[np.int32]:
    """Fills the table (states, V): walks every token's text from every state, one column of characters at a time."""
    known = sorted({character for edges in goto for character in edges})
    columns = {character: i for i, character in enumerate(known)}
    after = np.zeros((len(goto), len(known) + 1), dtype=np.int32)  # the last: characters of no stop
    for state, edges in enumerate(goto):
        for character, following in edges.items():
            after[state, columns[character]] = following | (MATCHED if output[following] >= 0 else 0)
    table = np.repeat(np.arange(len(goto), dtype=np.int32)[:, None], len(texts), axis=1)
    tokens = list(range(len(texts)))
    for at in range(max(map(len, texts), default=0)):
        tokens = [token for token in tokens if len(texts[token]) > at]
        column = np.array([columns.get(texts[token][at], len(known)) for token in tokens])
        before = table[:, tokens]
        table[:, tokens] = after[before & (MATCHED - 1), column] | (before & MATCHED)
    return table


def _transitions(edges: Sequence[dict[str, int]], fail: Sequence[int]) -> list[dict[str, int]]:
    """For each state, the next one by character; absent means state 0."""
    goto = list(edges)
    for state in _by_depth(edges):
        goto[state] = {**goto[fail[state]], **edges[state]}
    return goto


def _automaton(strings: Sequence[str]) -> tuple[list[dict[str, int]], list[int], list[int], list[int]]:
    """Builds the Aho-Corasick automaton.

    Returns the edges of the trie; for each state the one of its longest suffix that is a prefix of a stop; the longest
    stop that ends in it, or -1; and the length of the longest suffix of the text that is a proper prefix of a stop.
    """
    edges: list[dict[str, int]] = [{}]
    output, depth = [-1], [0]
    for index, string in enumerate(strings):
        state = 0
        for character in string:
            if character not in edges[state]:
                edges[state][character] = len(edges)
                edges.append({})
                output.append(-1)
                depth.append(depth[state] + 1)
            state = edges[state][character]
        output[state] = index if output[state] < 0 else output[state]
    fail = [0] * len(edges)
    for state in _by_depth(edges):
        if output[state] < 0:
            output[state] = output[fail[state]]
        if not edges[state]:  # the state itself is a whole stop, so look at shorter suffixes
            depth[state] = depth[fail[state]]
        for character, following in edges[state].items():
            shorter = fail[state]
            while character not in edges[shorter] and shorter:
                shorter = fail[shorter]
            fail[following] = edges[shorter].get(character, 0)
    return edges, fail, output, depth


def _by_depth(edges: Sequence[dict[str, int]]) -> Iterator[int]:
    """The states but the first, the shortest prefixes first."""
    queue = collections.deque(edges[0].values())
    while queue:
        state = queue.popleft()
        yield state
        queue.extend(edges[state].values())
