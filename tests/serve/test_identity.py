"""The identity of a request: what it is without authentication, and that each rpc has its own."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from gruve.serve.callers.identity import LOCAL, Identity, Role, anonymous, current_identity, set_identity
from gruve.serve.calls.interceptor import Interceptor
from gruve.serve.metrics import Metrics


@pytest.mark.parametrize(
    ("peer", "tenant"),
    [
        ("ipv4:10.0.0.1:4711", "ipv4:10.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "ipv6:[::1]"),
        ("ipv6:[fe80::1%25eth0]:4711", "ipv6:[fe80::1%eth0]"),
        ("unix:", "unix"),
        ("", ""),
    ],
)
def test_without_authentication_the_tenant_is_the_address_without_its_port(peer, tenant):
    identity = anonymous(peer)
    assert (identity.tenant, identity.role, identity.owner) == (tenant, Role.ADMIN, "default")


def test_with_authentication_sessions_belong_to_the_tenant():
    assert Identity("acme", Role.USE).owner == "acme"


def test_tasks_of_different_rpcs_have_different_identities():
    async def serve_as(name: str) -> str:
        set_identity(Identity(name, Role.USE))
        await asyncio.sleep(0)
        return await asyncio.create_task(child())

    async def child() -> str:
        return current_identity().tenant

    async def both() -> list[str]:
        return await asyncio.gather(serve_as("a"), serve_as("b"))

    assert asyncio.run(both()) == ["a", "b"]
    assert current_identity() is LOCAL


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_interceptor_sets_the_identity_of_an_rpc(streaming):
    async def unary(request: bytes, context: object) -> bytes:
        return current_identity().tenant.encode()

    async def stream(request: bytes, context: object):
        yield current_identity().tenant.encode()

    server = grpc.aio.server(interceptors=[Interceptor(Metrics())])
    handler = (
        grpc.unary_stream_rpc_method_handler(stream, bytes)
        if streaming
        else grpc.unary_unary_rpc_method_handler(unary, bytes)
    )
    service, name = "gruve.v1.GenerationService", "Generate" if streaming else "Score"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        if streaming:
            answers = [answer async for answer in channel.unary_stream(f"/{service}/{name}")(b"")]
        else:
            answers = [await channel.unary_unary(f"/{service}/{name}")(b"")]
    await server.stop(0)
    assert answers == [b"ipv4:127.0.0.1"]
