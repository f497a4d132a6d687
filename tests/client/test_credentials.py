"""What the clients show to a server: certificates, which may change, metadata, and calls through interceptors."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest

from certificates import Authority
from commands import gruve
from gruve.client import AccessDenied, AsyncClient, CallFailed, Client, ConnectionLost, Reconnect, Tls
from gruve.client.credentials import Access
from gruve.ports import TlsFiles
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from gruve.serve.callers.identity import Role

SOON = Reconnect(max_reconnects=2, first_reconnects=2, backoff_s=0.01)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def protected(start, authority, tmp_path):
    """A server with mutual TLS and keys: (server, the client's TLS, an API key)."""
    key = add_key(tmp_path / "keys.json", "ann", "ann")
    server = start(tls=TlsFiles(*authority.issue("server"), authority.ca), access=AccessConfig(tmp_path / "keys.json"))
    return server, Tls(authority.ca, *authority.issue("client")), key


def bearer(key):
    return [("authorization", f"Bearer {key}")]


def test_both_clients_show_certificates_and_a_key_with_every_kind_of_call(protected):
    server, tls, key = protected
    with Client(server.address, credentials=tls, metadata=bearer(key)) as client:
        assert [model.name for model in client.models()] == ["tiny"]
        text = client.generate("O", model="tiny", max_tokens=5, seed=1).text()
        assert client.converse("O", model="tiny", max_tokens=5, seed=1).text() == text

    async def use():
        async with AsyncClient(server.address, credentials=tls, metadata=lambda: bearer(key)) as client:
            assert [model.name for model in await client.models()] == ["tiny"]
            assert await client.generate("O", model="tiny", max_tokens=5, seed=1).text() == text
            assert await client.converse("O", model="tiny", max_tokens=5, seed=1).text() == text

    asyncio.run(use())


def test_a_client_without_a_key_or_a_certificate_is_refused(protected, authority):
    server, tls, key = protected
    with Client(server.address, credentials=tls) as client, pytest.raises(AccessDenied) as error:
        client.models()
    assert error.value.reason == "UNAUTHENTICATED"
    for credentials in (None, Tls(authority.ca)):
        client = Client(server.address, credentials=credentials, metadata=bearer(key), reconnect=SOON)
        with client, pytest.raises(ConnectionLost):
            client.models()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_reads_its_certificates_again_when_the_server_refuses_the_old_ones(
    protected, authority, tmp_path, kind
):
    server, tls, key = protected
    ca, cert, client_key = tls.ca, tls.cert, tls.key
    right = [path.read_bytes() for path in (ca, cert, client_key)]
    other = Authority(tmp_path, "other")
    wrong = [path.read_bytes() for path in (other.ca, *other.issue("stranger"))]
    mine = [tmp_path / name for name in ("mine-ca.pem", "mine.pem", "mine.key")]

    def put(contents):
        for path, content in zip(mine, contents, strict=True):
            path.write_bytes(content)

    put(wrong)
    options = {"credentials": Tls(*mine), "metadata": bearer(key)}
    patient = Reconnect(max_reconnects=50, first_reconnects=50, backoff_s=0.01, backoff_max_s=0.05)
    seen = []

    def on_reconnect(event):
        seen.append(event)
        put(right)

    if kind is Client:
        with Client(server.address, reconnect=patient, on_reconnect=on_reconnect, **options) as client:
            assert client.models()
    else:

        async def use():
            async with AsyncClient(server.address, reconnect=patient, on_reconnect=on_reconnect, **options) as client:
                assert await client.models()

        asyncio.run(use())
    assert seen


def test_interceptors_see_the_calls_of_both_clients(server):
    class Seen(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation, details, request):
            methods.append(details.method)
            return continuation(details, request)

    class AsyncSeen(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            methods.append(details.method.decode() if isinstance(details.method, bytes) else details.method)
            return await continuation(details, request)

    methods = []
    with Client(server.address, interceptors=[Seen()]) as client:
        client.models()

    async def use():
        async with AsyncClient(server.address, interceptors=[AsyncSeen()]) as client:
            await client.models()

    asyncio.run(use())
    assert methods == 2 * ["/gruve.v1.ModelService/ListModels"]


@pytest.mark.parametrize("given", [{"a": "1"}, [("a", "1")], lambda: {"a": "1"}, lambda: [("a", "1")]])
def test_metadata_may_be_pairs_a_mapping_or_a_function(given):
    assert list(Access(metadata=given).call_metadata()) == [("a", "1")]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "given", [{"Authorization": "k"}, {"a": "secret\n"}, {"a": "sécret"}, {"a": None}, {"": "k"}, {"a-bin": "k"}]
)
def test_metadata_that_cannot_be_sent_is_refused_at_once_without_its_value(kind, given):
    with pytest.raises(ValueError, match=f"{next(iter(given))!r}") as refused:
        kind("localhost:1", metadata=given)
    assert "cret" not in str(refused.value)


def test_a_function_with_metadata_that_cannot_be_sent_fails_the_call():
    with Client("localhost:1", metadata=lambda: {"Authorization": "k"}) as client, pytest.raises(ValueError):
        client.models()


def test_half_a_client_certificate_is_a_mistake():
    with pytest.raises(ValueError, match="needs both"):
        Tls(cert="client.pem")


def test_commands_take_the_key_from_a_file_or_the_environment_and_show_it_nowhere(protected, tmp_path, caplog):
    server, tls, key = protected
    caplog.set_level(logging.DEBUG)
    flags = ["--address", server.address, "--ca", str(tls.ca), "--cert", str(tls.cert), "--cert-key", str(tls.key)]
    (tmp_path / "key").write_text(f"{key}\n")
    listed = gruve("models", *flags, "--api-key-file", str(tmp_path / "key"))
    assert (listed.returncode, listed.stdout.split("\t")[0]) == (0, "name")
    generated = gruve("generate", "tiny", "O", "--max-tokens", "5", *flags, GRUVE_API_KEY=key)
    assert (generated.returncode, len(generated.stdout)) == (0, 5)
    wrong = gruve("models", *flags, GRUVE_API_KEY=key[:-2] + "aa")
    assert (wrong.returncode, "GRUVE_API_KEY" in wrong.stderr) == (1, True)
    shown = "".join(ran.stdout + ran.stderr for ran in (listed, generated, wrong)) + caplog.text
    assert key[:-2] not in shown


def test_an_admins_command_names_a_tenant(start, tmp_path):
    path = tmp_path / "keys.json"
    ann, ops = add_key(path, "ann", "ann"), add_key(path, "ops", "ops", role=Role.ADMIN)
    server = start(access=AccessConfig(path))
    with Client(server.address, metadata=bearer(ann)) as client:
        session = client.create_session("tiny").id
    listed = gruve("sessions", "list", "--address", server.address, "--tenant", "ann", GRUVE_API_KEY=ops)
    assert session in listed.stdout


def test_channel_options_reach_the_channel(start):
    options = [("grpc.max_receive_message_length", 64)]
    with (
        Client(start().address, channel_options=options) as client,
        pytest.raises(CallFailed, match="message larger than max"),
    ):
        client.generate("O", model="tiny", max_tokens=50).text()
