"""OpenAI's API for text completions, as far as a recurrent model has it, and the tokenizer routes of vLLM."""

from starlette.routing import Route

from gruve.gateway.openai.models import get_model, list_models
from gruve.gateway.openai.refused import chat_completions

ROUTES = (
    Route("/v1/models", list_models),
    Route("/v1/models/{model:path}", get_model),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
)
