"""`gruve bench protection`: what API keys and TLS cost, beside the same server without them.

Three servers of one model exist throughout: plain, with keys, and with keys and TLS. Each round loads them in turn with
the same sessions. A row has the medians of the rounds' ratios to the plain server, so a machine that is busy with other
work changes all sides alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import ipaddress
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gruve.bench.figures import median
from gruve.bench.load.generator import Workload
from gruve.bench.load.window import Loaded, ServerAndClients
from gruve.bench.machine import describe_machine, describe_versions
from gruve.bench.result import Report, Result, Row, table
from gruve.bench.rounds import in_turn
from gruve.bench.synthetic import MODEL, SMALL, VOCABULARY_SIZE, Size, make_model
from gruve.decode.choose import DecodeConfig
from gruve.ports import TlsFiles
from gruve.serve.callers.access import AccessConfig
from gruve.serve.callers.api_keys import add_key
from gruve.serve.server import ServeConfig

KEYS = 100
"""How many keys the file has."""
COLUMNS = (
    *("protection", "sessions", "tokens_per_s", "tokens_ratio", "cpu_ratio", "cpu_ratio_least", "cpu_ratio_most"),
    *("ttft_ms_p50", "failed"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class ProtectionBenchConfig:
    """The model and the load."""

    size: Size = SMALL
    sessions: int = 64
    rounds: int = 9
    warm_s: float = 1.0
    seconds: float = 4.0
    client_processes: int = 2
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)

    @classmethod
    def quick(cls) -> ProtectionBenchConfig:
        """Fewer rounds, in less than 50 seconds."""
        return cls(rounds=4, warm_s=0.5, seconds=2.0)


def run_protection(config: ProtectionBenchConfig, report: Report) -> Result:
    """Loads the three servers in turn, round after round."""
    workload = Workload(MODEL, VOCABULARY_SIZE)
    with tempfile.TemporaryDirectory(prefix="gruve-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        make_model(folder / "models" / MODEL, config.size)
        sides = _sides(stack, config, folder)
        rounds: dict[str, list[Loaded]] = {protection: [] for protection in sides}
        for i in range(config.rounds):
            for protection in in_turn(sides, i):
                loaded = sides[protection].closed_loop(workload, config.sessions, config.warm_s, config.seconds)
                rounds[protection].append(loaded)
                report(f"round {i + 1}, {protection}: {loaded.figures.tokens_per_s:.0f} tokens/s")
    rows = [_row(config, protection, found, rounds["none"]) for protection, found in rounds.items()]
    for line in table(rows, COLUMNS):
        report(line)
    return Result("protection", describe_machine(), describe_versions(), rows)


def _sides(stack: contextlib.ExitStack, config: ProtectionBenchConfig, folder: Path) -> dict[str, ServerAndClients]:
    """The servers with their clients, by what protects them."""
    keys = folder / "keys.json"
    key = [add_key(keys, f"key-{i}", f"tenant-{i}") for i in range(KEYS)][KEYS // 2]
    tls, access = _certificate(folder), AccessConfig(keys)
    plain = ServeConfig(models=folder / "models", decode=config.decode, store="memory", drain_s=0.0)
    with_keys = dataclasses.replace(plain, access=access)
    with_both = dataclasses.replace(with_keys, tls=tls)
    clients = config.client_processes
    return {
        "none": ServerAndClients(stack, plain, clients),
        "keys": ServerAndClients(stack, with_keys, clients, key=key),
        "keys and TLS": ServerAndClients(stack, with_both, clients, key=key, ca=tls.cert.read_bytes()),
    }


def _row(config: ProtectionBenchConfig, protection: str, found: list[Loaded], plain: list[Loaded]) -> Row:
    pairs = list(zip(found, plain, strict=True))
    cpu = [one.cpu_s_per_million_tokens / other.cpu_s_per_million_tokens for one, other in pairs]
    return {
        "protection": protection,
        "sessions": config.sessions,
        "tokens_per_s": median(one.figures.tokens_per_s for one in found),
        "tokens_ratio": median(one.figures.tokens_per_s / other.figures.tokens_per_s for one, other in pairs),
        "cpu_ratio": median(cpu),
        "cpu_ratio_least": min(cpu),
        "cpu_ratio_most": max(cpu),
        "ttft_ms_p50": median(one.figures.ttft_ms_p50 for one in found),
        "failed": sum(one.figures.failed for one in found),
    }


def _certificate(folder: Path) -> TlsFiles:
    """Writes a certificate of 127.0.0.1 that signs itself, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gruve bench")])
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(addresses, critical=False)
        .sign(key, hashes.SHA256())
    )
    files = TlsFiles(folder / "server.pem", folder / "server.key")
    files.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return files
