"""OpenAI's API for text completions, as far as a recurrent model has it, and the tokenizer routes of vLLM."""

from starlette.routing import Route

from gruve.gateway.openai.chat import chat_completions
from gruve.gateway.openai.completions import completions
from gruve.gateway.openai.models import get_model, list_models
from gruve.gateway.openai.tokenizer import detokenize, tokenize, tokenizer_info

ROUTES = (
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/models", list_models),
    Route("/v1/models/{model:path}", get_model),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokenizer_info),
)
