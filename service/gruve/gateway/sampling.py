"""The options of a generation that every form of request has, under the names that OpenAI, vLLM and gruve give them."""

from __future__ import annotations

import re
from typing import Any

from gruve.client.messages import GenerateOptions
from gruve.gateway.errors import InvalidField
from gruve.gateway.fields import Fields, quoted

TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,11}")
BIASES = "an object of token ids and numbers"
MAX_JSON_SEED = 1 << 53
"""A seed that the gateway draws is below this, so that every reader of JSON keeps it exactly."""


def take_options(fields: Fields) -> GenerateOptions:
    """Reads the options. Their bounds are the server's to check, except that a number has to be one."""
    options: GenerateOptions = {
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": fields.integer("top_k"),
        "min_p": fields.number("min_p"),
        "repetition_penalty": fields.number("repetition_penalty"),
        "repetition_window": fields.integer("repetition_window"),
        "min_tokens": fields.integer("min_tokens"),
        "ignore_eos": fields.boolean("ignore_eos"),
        "stop": fields.strings("stop"),
        "stop_token_ids": fields.integers("stop_token_ids"),
        "max_tokens_per_second": fields.number("max_tokens_per_second"),
        "logit_bias": _logit_bias(fields.mapping("logit_bias", BIASES)),
    }
    return options


def _logit_bias(value: dict[str, Any] | None) -> dict[int, float] | None:
    """The map of a logit bias, whose keys JSON has as strings."""
    if value is None:
        return None
    found: dict[int, float] = {}
    for key, number in value.items():
        if not TOKEN_ID.fullmatch(key) or isinstance(number, bool) or not isinstance(number, int | float):
            raise InvalidField("logit_bias", f"has {quoted(key)}: {quoted(number)}; must be {BIASES}")
        found[int(key)] = number
    return found
