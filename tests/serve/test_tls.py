"""TLS on both ports: who may connect, and certificates that change while streams run."""

from __future__ import annotations

import re
import socket
import ssl
import urllib.request

import grpc
import pytest
from cryptography import x509

from certificates import Authority
from gruve.certificates import Certificates
from gruve.errors import CredentialsBroken
from gruve.ports import TlsFiles
from gruve.v1 import generation_pb2 as g
from gruve.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc
from serving import first


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def started(start, authority):
    """A server with TLS."""
    return start(tls=TlsFiles(*authority.issue("server")))


def connected(server, ca, pair=None):
    cert, key = (None, None) if pair is None else (pair[0].read_bytes(), pair[1].read_bytes())
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key, cert)
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(f"127.0.0.1:{server.serving.port}", credentials, options)


def models(channel):
    with channel:
        listed = model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest(), timeout=20)
    return [model.name for model in listed.models]


def metrics(server, ca, pair=None):
    context = ssl.create_default_context(cafile=ca)
    if pair is not None:
        context.load_cert_chain(*pair)
    url = f"https://127.0.0.1:{server.serving.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=20, context=context) as answer:
        return answer.read()


def serial(port):
    """The serial number of the certificate that a port shows now."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True)).serial_number


def test_a_client_that_knows_the_authority_is_served_on_both_ports(started, authority):
    assert models(connected(started, authority.ca)) == ["tiny"]
    assert b"gruve_build_info" in metrics(started, authority.ca)


def test_a_client_without_tls_or_of_another_authority_is_not(started, tmp_path):
    with grpc.insecure_channel(started.address) as channel, pytest.raises(grpc.RpcError):
        models(channel)
    with pytest.raises(grpc.RpcError):
        models(connected(started, Authority(tmp_path, "other").ca))
    with pytest.raises(urllib.error.URLError):
        metrics(started, Authority(tmp_path, "other").ca)


def test_with_client_certificates_a_connection_without_one_is_refused(start, authority, tmp_path):
    server = start(tls=TlsFiles(*authority.issue("server"), authority.ca))
    pair, foreign = authority.issue("client"), Authority(tmp_path, "other").issue("stranger")
    assert models(connected(server, authority.ca, pair)) == ["tiny"]
    assert b"gruve_build_info" in metrics(server, authority.ca, pair)
    for refused in (None, foreign):
        with pytest.raises(grpc.RpcError):
            models(connected(server, authority.ca, refused))
        with pytest.raises(OSError):
            metrics(server, authority.ca, refused)


def test_a_new_certificate_is_used_at_the_next_handshake_and_the_old_stream_goes_on(started, authority):
    ports = (started.serving.port, started.serving.metrics_port)
    before = {serial(port) for port in ports}
    with connected(started, authority.ca) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        stream = stub.Generate(g.GenerateRequest(model="tiny", max_tokens=40, max_tokens_per_second=20.0))
        first(stream)
        authority.issue("server")
        after = {serial(port) for port in ports}
        assert len(before) == len(after) == 1
        assert before != after
        assert models(connected(started, authority.ca)) == ["tiny"]
        assert list(stream)[-1].end.usage.generated_tokens == 40


def test_a_half_written_certificate_leaves_the_old_one_in_use_until_its_key_is_there(started, authority, caplog):
    cert, key = (path.read_bytes() for path in authority.issue("next"))
    before, files = serial(started.serving.port), started.server.config.tls
    files.cert.write_bytes(cert)
    assert serial(started.serving.port) == before
    assert "cannot be used" in caplog.text
    files.key.write_bytes(key)
    assert serial(started.serving.port) != before


def test_a_certificate_that_is_gone_is_logged_once_and_stays_in_use(started, caplog):
    before = serial(started.serving.port)
    started.server.config.tls.cert.unlink()
    assert {serial(started.serving.port) for _ in range(3)} == {before}
    assert [record.why for record in caplog.records if "cannot be used" in record.message] == [
        f"{str(started.server.config.tls.cert)!r} cannot be read: No such file or directory"
    ]


def test_the_expiry_of_the_certificate_is_a_metric_and_follows_a_new_one(started, authority):
    def expiry():
        return float(re.search(rb"^gruve_certificate_expiry_timestamp_seconds (\S+)", metrics(*at), re.MULTILINE)[1])

    at = started, authority.ca
    for days in (30, 20):
        cert, _ = authority.issue("server", days=days)
        assert expiry() == x509.load_pem_x509_certificate(cert.read_bytes()).not_valid_after_utc.timestamp()


def test_a_server_without_tls_has_no_metric_of_a_certificate(server):
    url = f"http://127.0.0.1:{server.serving.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert b"gruve_certificate" not in answer.read()


@pytest.mark.parametrize(("days", "says"), [(-1, ["has expired"]), (6, ["expires soon"]), (8, [])])
def test_the_log_warns_of_a_certificate_that_has_expired_or_soon_will(authority, caplog, days, says):
    pair = authority.issue("server", days=days)
    Certificates(TlsFiles(*pair))
    found = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.message for record in found] == [f"the certificate {said}" for said in says]
    assert [record.file for record in found] == [str(pair[0])] * len(says)


def test_the_log_warns_of_an_intermediate_certificate_and_of_one_read_later(authority, caplog):
    pair, (old, _) = authority.issue("server"), authority.issue("intermediate", days=-1)
    pair[0].write_bytes(pair[0].read_bytes() + old.read_bytes())
    certificates = Certificates(TlsFiles(*pair))
    assert [record.message for record in caplog.records] == ["the certificate has expired"]
    authority.issue("server", days=1)
    certificates.current()
    assert "the certificate expires soon" in caplog.text


def test_a_short_lived_certificate_is_warned_of_in_the_last_third_of_its_life(authority, caplog, monkeypatch):
    monkeypatch.setattr("certificates.LIFETIME_DAYS", 3)
    for days in (2, 0.9):
        Certificates(TlsFiles(*authority.issue("server", days=days)))
    assert [record.message for record in caplog.records] == ["the certificate expires soon"]


def test_a_client_that_never_shakes_hands_does_not_stop_the_metrics_of_others(started, authority):
    with socket.create_connection(("127.0.0.1", started.serving.metrics_port)):
        assert b"gruve_build_info" in metrics(started, authority.ca)


@pytest.mark.parametrize("broken", ["missing", "empty", "the key of another", "no authority"])
def test_files_that_cannot_be_used_are_named(authority, tmp_path, broken):
    cert, key = authority.issue("server")
    files = {
        "missing": TlsFiles(tmp_path / "absent.pem", key),
        "empty": TlsFiles(_empty(tmp_path / "empty.pem"), key),
        "the key of another": TlsFiles(cert, authority.issue("another")[1]),
        "no authority": TlsFiles(cert, key, _empty(tmp_path / "empty.pem")),
    }[broken]
    with pytest.raises(CredentialsBroken, match=r"absent\.pem|empty\.pem|another\.key"):
        Certificates(files)


def _empty(path):
    path.touch()
    return path
