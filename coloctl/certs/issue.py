"""Make a CA and the certificates of machines, with the library `cryptography`.

Called by `certs.store` and `chaos.run.credentials`. Keys are ECDSA over P-256: GnuTLS and OpenSSL
of Debian 12 and 13 use them by default, and a handshake costs a tenth of RSA's. Times are
arguments; only keys and serial numbers are random.

Invariant: a machine's certificate serves both ends of a connection (QEMU is the server of some
wires and the client of others), and its subject is "CN=NAME" alone, which QEMU's authorization
compares as a whole.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
MACHINE_DAYS = 365
#: So that a machine with a slow clock accepts the certificate too.
_CLOCK_TOLERANCE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate and its private key, both in PEM."""

    cert: bytes
    key: bytes


def new_authority(name: str, now: datetime, days: int = AUTHORITY_DAYS) -> Credentials:
    """Make a CA called ``name`` that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = (
        _builder(subject, subject, key, now)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
    )
    return _signed(builder, key, key)


def new_machine(
    authority: Credentials,
    name: str,
    addresses: Sequence[str],
    now: datetime,
    days: int = MACHINE_DAYS,
) -> Credentials:
    """Make a key for the machine ``name`` and a certificate signed by ``authority``.

    ``addresses`` are IP addresses: QEMU's clients of the packet wires check the address they dial.
    The certificate never outlives its CA. Raises `ValueError` for a PEM that is damaged.
    """
    issuer = x509.load_pem_x509_certificate(authority.cert)
    signer = serialization.load_pem_private_key(authority.key, password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError("The CA's key is not an elliptic curve key.")
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    until = min(now + timedelta(days=days), issuer.not_valid_after_utc)
    builder = (
        _builder(_subject(name), issuer.subject, key, now)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    return _signed(builder, key, signer)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_TOLERANCE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
) -> Credentials:
    certificate = builder.sign(signer, hashes.SHA256())
    return Credentials(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
