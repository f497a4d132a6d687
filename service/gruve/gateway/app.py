"""The application: the routes of every form, and what all of them share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from gruve.client import AsyncClient, CallFailed, Reconnect
from gruve.gateway import openai, page, rpc
from gruve.gateway.body import BodyBounds
from gruve.gateway.caller import CallerMiddleware, caller_metadata
from gruve.gateway.config import GatewayConfig
from gruve.gateway.errors import Refused
from gruve.gateway.events import generate
from gruve.gateway.forms import on_error
from gruve.gateway.health import health
from gruve.gateway.openai.logprobs import TokenTexts
from gruve.gateway.origins import OriginCheck
from gruve.gateway.tune import beginning, tune


def create_app(config: GatewayConfig) -> Starlette:
    """The application. Its state has the `config`, and the `client` that all requests share.

    It also has `end_calls`, which ends all calls to servers, and so all responses with an error that allows a retry.
    """
    client = AsyncClient(
        config.servers,
        credentials=config.credentials,
        metadata=caller_metadata,
        reconnect=Reconnect(wait_when_refused=False),
        channel_options=rpc.CHANNEL_OPTIONS,
    )

    servers = rpc.Servers(config)

    async def end_calls() -> None:
        await client.close()
        await servers.aclose()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await end_calls()

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/generate", generate, methods=["GET", "POST"]),
            Route("/v1/tune", tune, methods=["POST"]),
            Route("/v1/tune/beginning", beginning, methods=["POST"]),
            *openai.ROUTES,
            *rpc.routes(servers, config),
            *page.ROUTES,
        ],
        middleware=[
            Middleware(OriginCheck, allowed=config.allowed_origins),
            Middleware(
                CORSMiddleware,
                allow_origins=config.allowed_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["*"],
            ),
            Middleware(CallerMiddleware),
            Middleware(BodyBounds, max_bytes=config.max_body_bytes, max_s=config.body_s),
        ],
        exception_handlers={
            Refused: on_error,
            ClientDisconnect: on_error,
            CallFailed: on_error,
            HTTPException: on_error,
            Exception: on_error,
        },
        lifespan=lifespan,
    )
    app.state.config, app.state.client, app.state.texts = config, client, TokenTexts(client)
    app.state.end_calls = end_calls
    app.state.tune_turn = asyncio.Lock()
    return app
