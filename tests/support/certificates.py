"""Creates certificates: an authority for each test, and certificates that it signs."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LIFETIME_DAYS = 31
ADDRESSES = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


class Authority:
    """Signs certificates of 127.0.0.1 and writes them into `folder`. Its own certificate is `ca`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"gruve test {name}")])
        self.ca = folder / f"{name}.pem"
        own = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        _write(self.ca, own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *hosts: str, days: float = 30) -> tuple[Path, Path]:
        """Writes a certificate, also of `hosts`, and its key. Files of the same name are replaced atomically.

        It expires in `days`, and was made `LIFETIME_DAYS` before.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key, days).add_extension(
            x509.SubjectAlternativeName([*ADDRESSES, *map(x509.DNSName, hosts)]), False
        )
        cert, key_file = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        _write(cert, builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        _write(
            key_file,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        return cert, key_file

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: float = 30
    ) -> x509.CertificateBuilder:
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - datetime.timedelta(days=LIFETIME_DAYS))
            .not_valid_after(end)
        )


def _write(path: Path, data: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(data)
    os.replace(new, path)
