"""ModelService: lists models, and converts texts to tokens and back."""

from __future__ import annotations

from typing import Any

import grpc

from gruve.serve import messages, validation
from gruve.serve.model_host import ModelHost
from gruve.serve.model_hosts import ModelHosts, ServedModel
from gruve.v1 import model_pb2, model_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
CELLS = {"gru": model_pb2.CELL_GRU, "lstm": model_pb2.CELL_LSTM, "elman": model_pb2.CELL_ELMAN}
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
        """Lists every entry of the repository."""
        served = [self._models.served[name] for name in sorted(self._models.served)]
        return model_pb2.ListModelsResponse(models=[self._message(model) for model in served])

    async def GetModel(
        self,
        request: model_pb2.GetModelRequest,
        context: Context,
    ) -> model_pb2.GetModelResponse:
        """Shows one entry, serving or broken."""
        return model_pb2.GetModelResponse(model=self._message(self._models.model(request.name)))

    async def Tokenize(
        self,
        request: model_pb2.TokenizeRequest,
        context: Context,
    ) -> model_pb2.TokenizeResponse:
        """Converts a text to tokens."""
        async with self._models.use(request.model) as host:
            ids = await validation.tokenize(host.model.tokenizer, request.text)
        validation.check_prompt_size("text", ids)
        return model_pb2.TokenizeResponse(token_ids=ids)

    async def Detokenize(
        self,
        request: model_pb2.DetokenizeRequest,
        context: Context,
    ) -> model_pb2.DetokenizeResponse:
        """Converts tokens to a text."""
        async with self._models.use(request.model) as host:
            tokenizer = host.model.tokenizer
        validation.check_prompt_size("token_ids", request.token_ids)
        validation.check_ids("token_ids", request.token_ids, tokenizer)
        return model_pb2.DetokenizeResponse(text=tokenizer.decode(request.token_ids))

    async def ReloadModel(
        self,
        request: model_pb2.ReloadModelRequest,
        context: Context,
    ) -> model_pb2.ReloadModelResponse:
        """Reads a model's folder again and switches to what it holds."""
        return model_pb2.ReloadModelResponse(model=self._message(await self._models.reload(request.name)))

    def _message(self, served: ServedModel) -> model_pb2.Model:
        """Describes the newest version of a model, or says why there is none."""
        version = served.newest
        host = None if version is None else self._models.host(served, version)
        if host is None:
            reason = served.state_reason
            return model_pb2.Model(name=served.name, state=model_pb2.MODEL_STATE_BROKEN, state_reason=reason)
        return _host_message(host)


def _host_message(entry: ModelHost) -> model_pb2.Model:
    model, config = entry.model, entry.model.config
    message = model_pb2.Model(
        name=model.name,
        digest=model.digest,
        state=model_pb2.MODEL_STATE_SERVING,
        load_time=messages.timestamp(entry.load_time_s),
        cell=CELLS[config.cell],
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        embedding_size=config.embedding_size,
        vocabulary_size=config.vocabulary_size,
        parameter_count=config.parameter_count(),
        tokenizer=model.tokenizer.kind,
        start_token_id=model.tokenizer.start_id,
        end_token_id=model.tokenizer.end_id,
        backend=entry.backend.name,
        backend_reason=entry.backend.selection_reason,
        precision=config.precision,
        numerics_id=entry.backend.numerics_id,
        description=model.description,
        license=model.license,
        default_temperature=config.default_temperature,
    )
    if config.reset is not None:
        message.reset_convention = RESETS[config.reset]
    return message
