"""The tokenizer's routes, in the form that vLLM gave them: `/tokenize`, `/detokenize` and `/tokenizer_info`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from gruve.client import AsyncClient
from gruve.gateway.errors import InvalidField
from gruve.gateway.fields import Fields, json_fields
from gruve.gateway.forms import json_response
from gruve.gateway.openai.models import find_model, usable_models
from gruve.v1 import model_pb2

MAX_TOKENS = 65_536
"""The longest prompt; a state that is carried along has no other bound."""


async def tokenize(request: Request) -> Response:
    """Splits a text into tokens in the same way as a prompt."""
    client: AsyncClient = request.app.state.client
    fields = await json_fields(request)
    name, text = fields.string("model"), fields.string("prompt")
    fields.boolean("add_special_tokens")  # a start token stands before every prompt anyway
    with_texts = fields.boolean("return_token_strs")
    fields.refuse_rest()
    if text is None:
        raise InvalidField("prompt", "is absent; must be a string")
    model = await _model(client, name)
    tokens = await client.tokenize(text, model=model.name)
    texts = None
    if with_texts:
        known = await request.app.state.texts.of(model.name, model.digest, tokens)
        texts = [known[token] for token in tokens]
    return json_response({"count": len(tokens), "max_model_len": MAX_TOKENS, "tokens": tokens, "token_strs": texts})


async def detokenize(request: Request) -> Response:
    """Joins tokens into their text."""
    client: AsyncClient = request.app.state.client
    fields = await json_fields(request)
    name, tokens = fields.string("model"), fields.integers("tokens")
    fields.refuse_rest()
    if tokens is None:
        raise InvalidField("tokens", "is absent; must be a list of token ids")
    model = await _model(client, name)
    return json_response({"prompt": await client.detokenize(tokens, model=model.name)})


async def tokenizer_info(request: Request) -> Response:
    """Describes a model's tokenizer. Start and end tokens have no text, so their texts are null, as in vLLM's answers.

    A client takes a text to be what it can send: `lm_eval` has the text of the start token tokenized, and stops
    generating at the text of the end token. Both fail with an empty text.
    """
    fields = Fields(request.query_params, from_query=True)
    model = await _model(request.app.state.client, fields.string("model"))
    fields.refuse_rest()
    return json_response(
        {
            "model": model.name,
            "tokenizer_class": model.tokenizer,
            "vocab_size": model.vocabulary_size,
            "model_max_length": MAX_TOKENS,
            "bos_token": None,
            "bos_token_id": model.start_token_id,
            "eos_token": None,
            "eos_token_id": model.end_token_id if model.HasField("end_token_id") else None,
            "chat_template": None,
        }
    )


async def _model(client: AsyncClient, name: str | None) -> model_pb2.Model:
    """A model by its name; the only one if none is named."""
    if name is not None:
        return await find_model(client, name)
    models = await usable_models(client)
    if len(models) != 1:
        raise InvalidField("model", f"is absent, and the servers have {len(models)} models; GET /v1/models lists them")
    return models[0]
