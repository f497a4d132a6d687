"""The request of `/v1/completions`, validated completely before a server is called."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from gruve.client import GenerateOptions
from gruve.client.completions import SEEDS, derived_seed
from gruve.client.messages import Text
from gruve.gateway.errors import InvalidField
from gruve.gateway.fields import Fields, is_token, text_or_tokens
from gruve.gateway.sampling import MAX_JSON_SEED, take_options

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""
PROMPTS = "a string, a list of strings, a list of token ids, or a list of such lists"
MAX_CHOICES = 128
"""The most answers to one request: prompts times `n`."""
MAX_LOGPROBS = 20
MAX_WHOLE_LOGPROBS = 262_144
"""The most log-probabilities, alternatives included, of answers that are not streamed: the gateway holds them all, and
answers nobody else for 0.2 s while it writes them."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What is asked for."""

    model: str
    prompts: tuple[Text | None, ...]
    """None continues a session, or the start token, without a prompt."""
    n: int
    max_tokens: int
    echo: bool
    logprobs: int | None
    stream: bool
    include_usage: bool
    session_id: str | None
    """The session to continue."""
    new_session: bool
    """Whether to keep the answer as a new session."""
    seed: int | None
    """The seed of each prompt's first answer; that of each further answer is one more. None inherits a session's."""
    generation_id: str | None
    options: GenerateOptions

    def seed_of(self, answer: int) -> int | None:
        """The seed of a prompt's answer, by its number from 0."""
        return None if self.seed is None else derived_seed(self.seed, answer)


def completion_request(fields: Fields) -> CompletionRequest:
    """Reads the fields. Raises `InvalidField`."""
    model = fields.string("model")
    if not model:
        raise InvalidField("model", "is absent; GET /v1/models lists the names")
    session_id, seed = fields.string("session_id"), fields.integer("seed", 0, SEEDS - 1)
    max_tokens = fields.integer("max_tokens", 0)
    n = fields.integer("n", 1, MAX_CHOICES) or 1
    stream = fields.boolean("stream")
    asked = CompletionRequest(
        model=model,
        prompts=_prompts(fields.take("prompt")),
        n=n,
        max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
        echo=fields.boolean("echo"),
        logprobs=fields.integer("logprobs", 0, MAX_LOGPROBS),
        stream=stream,
        include_usage=_include_usage(fields.mapping("stream_options"), stream=stream),
        session_id=session_id,
        new_session=fields.boolean("new_session"),
        seed=secrets.randbelow(MAX_JSON_SEED) if seed is None and session_id is None else seed,
        generation_id=fields.string("generation_id"),
        options=take_options(fields),
    )
    fields.string("user")  # names the end user to OpenAI; gruve keeps no such record
    _refuse_what_is_not_offered(fields, n)
    fields.refuse_rest()
    _check_together(asked)
    return asked


def _prompts(value: Any) -> tuple[Text | None, ...]:
    """The prompts: a text, a list of texts, a list of token ids, or a list of such lists."""
    many = value if isinstance(value, list) and value and not is_token(value[0]) else [value]
    if len(many) > MAX_CHOICES:
        raise InvalidField("prompt", f"has {len(many)} prompts; must be at most {MAX_CHOICES}")
    return tuple(text_or_tokens("prompt", one, PROMPTS) for one in many)


def _include_usage(value: dict[str, Any] | None, *, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise InvalidField("stream_options", "is allowed only if stream is true")
    options = Fields(value)
    include = options.boolean("include_usage")
    options.boolean("include_obfuscation")  # padding against observers of encrypted traffic, which is not offered
    options.refuse_rest()
    return include


def _refuse_what_is_not_offered(fields: Fields, n: int) -> None:
    if fields.string("suffix"):
        raise InvalidField("suffix", "is not offered: a recurrent model continues a text and cannot look ahead")
    best_of = fields.integer("best_of", 1)
    if best_of is not None and best_of != n:
        raise InvalidField("best_of", f"is {best_of}; must equal n, which is {n}: every answer is returned")
    for name in ("presence_penalty", "frequency_penalty"):
        if fields.number(name):
            raise InvalidField(name, "is not offered; repetition_penalty and repetition_window are")


def _most_logprobs(asked: CompletionRequest) -> int:
    """How many log-probabilities the answers may have, with the alternatives. A token has at least one character."""
    if asked.logprobs is None:
        return 0
    echoed = sum(len(prompt or "") for prompt in asked.prompts) if asked.echo else 0
    return asked.n * (echoed + len(asked.prompts) * asked.max_tokens) * (1 + asked.logprobs)


def _check_together(asked: CompletionRequest) -> None:
    choices = len(asked.prompts) * asked.n
    if choices > MAX_CHOICES:
        raise InvalidField("n", f"asks for {choices} answers with all prompts; must be at most {MAX_CHOICES}")
    logprobs = _most_logprobs(asked)
    if logprobs > MAX_WHOLE_LOGPROBS and not asked.stream:
        why = f"asks for up to {logprobs} log-probabilities in all; without stream at most {MAX_WHOLE_LOGPROBS}"
        raise InvalidField("logprobs", why)
    if asked.new_session and asked.session_id is not None:
        raise InvalidField("new_session", "is true, and session_id is given too; give one of the two")
    for name in ("session_id", "new_session", "generation_id"):
        if choices > 1 and getattr(asked, name) not in (None, False):
            raise InvalidField(name, f"is allowed for one answer; n and the prompts ask for {choices}")
    if asked.max_tokens == 0:
        if not asked.echo:
            raise InvalidField("max_tokens", "is 0; must be at least 1 without echo")
        for name in ("stream", "session_id", "new_session", "generation_id"):
            if getattr(asked, name):
                raise InvalidField(name, "is not allowed with max_tokens 0, which measures the prompts")
        if None in asked.prompts:
            raise InvalidField("prompt", "is empty; max_tokens 0 measures a prompt")
        if asked.n > 1:
            raise InvalidField("n", f"is {asked.n}; must be 1 with max_tokens 0, which measures the prompts")
