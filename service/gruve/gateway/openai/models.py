"""`/v1/models`: the models that take requests."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gruve.client import AsyncClient
from gruve.gateway.errors import Refused
from gruve.gateway.forms import json_response
from gruve.v1 import model_pb2


async def list_models(request: Request) -> Response:
    """Lists the models in OpenAI's form, with what gruve knows of each."""
    client: AsyncClient = request.app.state.client
    return json_response({"object": "list", "data": [_described(m) for m in await usable_models(client)]})


async def get_model(request: Request) -> Response:
    """Describes one model, or a version of it."""
    return json_response(_described(await find_model(request.app.state.client, request.path_params["model"])))


async def usable_models(client: AsyncClient) -> list[model_pb2.Model]:
    """The models that are not broken."""
    return [model for model in await client.models() if model.state != model_pb2.MODEL_STATE_BROKEN]


async def find_model(client: AsyncClient, name: str) -> model_pb2.Model:
    """The model that a name means, such as `folk` or `folk@2`; its `name` is the one given. Raises `Refused`."""
    model = await client.get_model(name)
    if model.state == model_pb2.MODEL_STATE_BROKEN:
        why = f"model {name[:80]!r} is not serving: {model.state_reason}"
        raise Refused(400, "MODEL_NOT_SERVING", why, field="model")
    model.name = name
    return model


def _described(model: model_pb2.Model) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "digest": model.digest,
        "numerics_id": model.numerics_id,
        "tokenizer": model.tokenizer,
        "vocabulary_size": model.vocabulary_size,
        "description": model.description,
        "license": model.license,
    }
    if model.HasField("default_temperature"):
        extra["default_temperature"] = round(model.default_temperature, 6)
    return {
        "id": model.name,
        "object": "model",
        "created": model.load_time.seconds,
        "owned_by": "gruve",
        "gruve": extra,
    }
