"""What `complete` asks for: the generations of one prompt or several, and the seed of each.

Independent of sockets, so both clients share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from gruve.client.messages import CompletionOptions, GenerateOptions, check_names, whole_number

MAX_AT_ONCE: Final = 64
"""How many generations of one `complete` run at the same time. The server decodes them together."""
SEEDS: Final = 2**64

Prompts = list[str] | tuple[str, ...]


def derived_seed(seed: int, number: int) -> int:
    """The seed of completion `number`, counted from 0: the request's seed plus the number, modulo 2^64."""
    return (seed + number) % SEEDS


def completion_requests(
    prompt: str | Prompts | None, n: int | None, options: CompletionOptions
) -> Iterator[tuple[str | None, GenerateOptions]]:
    """The prompt and the options of each generation: all of the first prompt, then all of the second one.

    Each is made when it is taken, because there may be millions. Raises `TypeError` for an unknown option and for a
    prompt that is no text, `ValueError` for an `n` below 1, before any is taken.
    """
    check_names(options, CompletionOptions)
    if n is not None and n < 1:
        raise ValueError(f"n is {n}; must be 1 or more")
    prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    for text in prompts:
        if not isinstance(text, str | None):
            raise TypeError(f"a prompt is {text!r:.80}; complete takes texts, generate takes token ids as well")
    numbers = range(n or 1)
    return ((text, _options_of(number, options)) for text in prompts for number in numbers)


def _options_of(number: int, options: CompletionOptions) -> GenerateOptions:
    """The options of completion `number` of a prompt, counted from 0."""
    own, seed = cast("GenerateOptions", dict(options)), whole_number(options.get("seed"))
    if seed is not None and 0 <= seed < SEEDS:  # others are refused where the request is made
        own["seed"] = derived_seed(seed, number)
    return own


def arranged(texts: list[str], prompt: str | Prompts | None, n: int | None) -> str | list[str] | list[list[str]]:
    """The texts in the form that `complete` returns for this prompt and `n`."""
    if not isinstance(prompt, list | tuple):
        return texts[0] if n is None else texts
    return texts if n is None else [texts[begin : begin + n] for begin in range(0, len(texts), n)]
