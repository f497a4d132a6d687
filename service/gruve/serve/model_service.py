"""ModelService: lists models, and converts texts to tokens and back."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc

from gruve.model.config import ModelConfig
from gruve.model.versions import About, Version
from gruve.serve import messages, validation
from gruve.serve.models.host import ModelHost
from gruve.serve.models.hosts import ModelHosts
from gruve.serve.models.served import ServedModel
from gruve.serve.paging import MAX_PAGE_BYTES, page_size, page_start, page_token
from gruve.v1 import model_pb2, model_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
CELLS = {"gru": model_pb2.CELL_GRU, "lstm": model_pb2.CELL_LSTM, "elman": model_pb2.CELL_ELMAN}
DEFAULT_PAGE, MAX_PAGE = 100, 1_000
NAME = re.compile(r"[^/]{1,255}")
RESETS = {"before": model_pb2.RESET_CONVENTION_BEFORE, "after": model_pb2.RESET_CONVENTION_AFTER}


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Serves `gruve.v1.ModelService`."""

    def __init__(self, models: ModelHosts) -> None:
        self._models = models

    async def ListModels(
        self,
        request: model_pb2.ListModelsRequest,
        context: Context,
    ) -> model_pb2.ListModelsResponse:
        """Lists the entries of the repository, a page at a time."""
        size = page_size(request, DEFAULT_PAGE, MAX_PAGE, minimum=1)
        start = page_start(request.page_token, NAME)
        names = sorted(name for name in self._models.served if not start or name > start[0])
        response = model_pb2.ListModelsResponse()
        size_bytes = 0
        for name in names[:size]:
            served = self._models.served[name]
            response.models.append(await self._message(served, served.newest))
            size_bytes += response.models[-1].ByteSize()
            if size_bytes > MAX_PAGE_BYTES:
                break
        if len(response.models) < len(names):
            response.next_page_token = page_token(response.models[-1].name)
        return response

    async def GetModel(
        self,
        request: model_pb2.GetModelRequest,
        context: Context,
    ) -> model_pb2.GetModelResponse:
        """Shows one entry, serving or broken."""
        return model_pb2.GetModelResponse(model=await self._message(*self._models.look_up(request.name)))

    async def Tokenize(
        self,
        request: model_pb2.TokenizeRequest,
        context: Context,
    ) -> model_pb2.TokenizeResponse:
        """Converts a text to tokens."""
        ids = await validation.tokenize(await self._models.tokenizer(request.model), request.text)
        return model_pb2.TokenizeResponse(token_ids=ids)

    async def Detokenize(
        self,
        request: model_pb2.DetokenizeRequest,
        context: Context,
    ) -> model_pb2.DetokenizeResponse:
        """Converts tokens to a text."""
        tokenizer = await self._models.tokenizer(request.model)
        validation.check_size("token_ids", len(request.token_ids), 0, validation.MAX_PROMPT_TOKENS, "tokens")
        validation.check_ids("token_ids", request.token_ids, tokenizer)
        return model_pb2.DetokenizeResponse(text=tokenizer.decode(request.token_ids))

    async def ReloadModel(
        self,
        request: model_pb2.ReloadModelRequest,
        context: Context,
    ) -> model_pb2.ReloadModelResponse:
        """Reads a model's folder again and switches to what it holds."""
        served = await self._models.reload(request.name)
        return model_pb2.ReloadModelResponse(model=await self._message(served, served.newest))

    async def _message(self, served: ServedModel, version: Version | None) -> model_pb2.Model:
        """Describes a version of a model, or says why there is none that can be used."""
        why = served.state_reason if version is None else served.why(version)
        host = None if version is None else self._models.host(served, version)
        if host is not None:
            message = _host_message(host)
        elif version is None or version.config is None or why:
            message = model_pb2.Model(state=model_pb2.MODEL_STATE_BROKEN, state_reason=why)
        else:
            message = model_pb2.Model(state=model_pb2.MODEL_STATE_UNLOADED, digest=version.digest)
            _add_config(message, version.config)
            _add_about(message, await asyncio.to_thread(served.about, version))
        message.name, message.version = served.name, 0 if version is None else version.number
        message.versions.extend(self._version_message(served, version) for version in served.entry.versions)
        return message

    def _version_message(self, served: ServedModel, version: Version) -> model_pb2.ModelVersion:
        why = served.why(version)
        if why:
            state = model_pb2.MODEL_STATE_BROKEN
        elif self._models.host(served, version) is None:
            state = model_pb2.MODEL_STATE_UNLOADED
        else:
            state = model_pb2.MODEL_STATE_SERVING
        return model_pb2.ModelVersion(number=version.number, digest=version.digest, state=state, state_reason=why)


def _host_message(host: ModelHost) -> model_pb2.Model:
    """Describes a model that is loaded."""
    message = model_pb2.Model(
        digest=host.model.digest,
        state=model_pb2.MODEL_STATE_SERVING,
        load_time=messages.timestamp(host.load_time_s),
        backend=host.backend.name,
        backend_reason=host.backend.selection_reason,
        numerics_id=host.numerics_id,
    )
    _add_config(message, host.model.config)
    _add_about(message, About.of(host.model))
    return message


def _add_config(message: model_pb2.Model, config: ModelConfig) -> None:
    message.cell = CELLS[config.cell]
    message.num_layers = config.num_layers
    message.hidden_size = config.hidden_size
    message.embedding_size = config.embedding_size
    message.vocabulary_size = config.vocabulary_size
    message.parameter_count = config.parameter_count()
    message.precision = config.precision
    if config.reset is not None:
        message.reset_convention = RESETS[config.reset]
    if config.default_temperature is not None:
        message.default_temperature = config.default_temperature


def _add_about(message: model_pb2.Model, about: About) -> None:
    message.tokenizer = about.tokenizer
    message.start_token_id = about.start_id
    if about.end_id is not None:
        message.end_token_id = about.end_id
    message.description = about.description
    message.license = about.license
