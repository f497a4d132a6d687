"""`Client.from_env`: the variables of the commands, checked, with no secret in an error."""

from __future__ import annotations

import asyncio

import pytest

from certificates import Authority
from gruve.client import AsyncClient, Client, Tls
from gruve.client.environment import Environment
from gruve.ports import TlsFiles
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key


def test_without_variables_it_is_the_local_server():
    assert Environment.read({}) == Environment(["localhost:50051"], None, [])
    assert Environment.read({"GRUVE_ADDRESS": "", "GRUVE_TLS": "", "GRUVE_API_KEY": ""}) == Environment.read({})


def test_every_variable_counts(tmp_path):
    ca, (cert, key) = (authority := Authority(tmp_path)).ca, authority.issue("client")
    (tmp_path / "key").write_text("gruve_k\n")
    variables = {
        "GRUVE_ADDRESS": "a:1, b:2",
        "GRUVE_CA": str(ca),
        "GRUVE_CERT": str(cert),
        "GRUVE_CERT_KEY": str(key),
        "GRUVE_API_KEY_FILE": str(tmp_path / "key"),
        "GRUVE_TENANT": "ann",
    }
    expected = [("authorization", "Bearer gruve_k"), ("gruve-tenant", "ann")]
    found = Environment.read(variables)
    assert found == Environment(["a:1", "b:2"], Tls(str(ca), str(cert), str(key)), expected)
    assert Environment.read({"GRUVE_TLS": "1"}).credentials == Tls()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"GRUVE_ADDRESS": " , "}, "GRUVE_ADDRESS is ' , '; must be HOST:PORT"),
        ({"GRUVE_TLS": "true"}, "GRUVE_TLS is 'true'; must be 1 for TLS, or 0"),
        ({"GRUVE_CERT": "c.pem"}, "GRUVE_CERT is set without GRUVE_CERT_KEY"),
        ({"GRUVE_TENANT": "nobody é"}, "GRUVE_TENANT is 'nobody é'; must be of printable ASCII"),
        ({"GRUVE_API_KEY": "two words"}, "'GRUVE_API_KEY' holds no API key"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(variables, message):
    with pytest.raises(ValueError, match=message) as error:
        Environment.read(variables)
    assert "two words" not in str(error.value)


def test_a_file_that_is_not_there_is_refused_at_once():
    with pytest.raises(FileNotFoundError, match=r"absent\.pem"):
        Environment.read({"GRUVE_CA": "absent.pem"})


def test_both_clients_connect_by_the_environment(start, tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    key = add_key(tmp_path / "keys.json", "ann", "ann")
    server = start(tls=TlsFiles(*authority.issue("server")), access=AccessConfig(tmp_path / "keys.json"))
    for name, value in (("ADDRESS", server.address), ("CA", str(authority.ca)), ("API_KEY", key)):
        monkeypatch.setenv(f"GRUVE_{name}", value)
    with Client.from_env() as client:
        text = client.complete("O", model="tiny", seed=1, max_tokens=5)

    async def complete():
        async with AsyncClient.from_env() as client:
            return await client.complete("O", model="tiny", seed=1, max_tokens=5)

    assert asyncio.run(complete()) == text
    assert len(text) == 5
