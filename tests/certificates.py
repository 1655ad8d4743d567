"""Certificates as an authority would issue them, made anew for a test."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}
USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True)
class Certificate:
    """A signer's chain and key, in files."""

    chain: Path
    key: Path

    @property
    def environment(self) -> dict[str, str]:
        """What makes commands sign with it."""
        return {"GIGAGAN_C2PA_CERT": str(self.chain), "GIGAGAN_C2PA_KEY": str(self.key)}


def _name(common: str, organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
        ]
    )


def _issued(
    subject: x509.Name, issuer: x509.Name, public: Any, by: Any, *, uses: tuple[str, ...], authority: bool, days: int
) -> x509.Certificate:
    now = datetime.now(UTC)
    usage = x509.KeyUsage(**{use: use in uses for use in USES})
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(authority, None), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), False)
    )
    if not authority:
        built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return built.sign(by, hashes.SHA256())


def make_certificate(
    folder: Path,
    *,
    kind: str = "P-256",
    days: int = 30,
    form: PrivateFormat = PrivateFormat.PKCS8,
    password: bytes = b"",
    use: str = "digital_signature",
) -> Certificate:
    """Of "Signer of tests, The Studio", valid for so many days from now, of an authority that nobody trusts."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, own = KEYS["P-256"](), KEYS[kind]()
    name, root = _name("Signer of tests", "The Studio"), _name("Root", "Authority of tests")
    uses: tuple[str, ...] = ("key_cert_sign", "crl_sign")
    top = _issued(root, root, authority.public_key(), authority, uses=uses, authority=True, days=60)
    leaf = _issued(name, root, own.public_key(), authority, uses=(use,), authority=False, days=days)
    found = Certificate(folder / "chain.pem", folder / "key.pem")
    found.chain.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in (leaf, top)))
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    found.key.write_bytes(own.private_bytes(Encoding.PEM, form, encryption))
    return found
