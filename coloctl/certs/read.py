"""Read a certificate and find what stands in the way of its use, as a sentence with a hint.

Called by `certs.store`, `colo.tls`, `check.machine_there` and `cli.verbs.certs`. Works on PEM
bytes, since a machine's files may lie on that machine; the time is an argument.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coloctl.errors import PreconditionFailed

Kind = TypeVar("Kind", bound=x509.ExtensionType)

#: A certificate that ends sooner than this is reported, in days.
SOON_DAYS = 30


@dataclass(frozen=True, slots=True)
class CertFacts:
    """The parts of a certificate that matter to a pair."""

    name: str  #: the common name of its subject
    names: tuple[str, ...]  #: the DNS names it is valid for
    addresses: tuple[str, ...]  #: the IP addresses it is valid for
    since: datetime
    until: datetime
    subject: str  #: as RFC 4514 writes it, such as "CN=hv1"
    issuer: str
    serial: str  #: hexadecimal
    server: bool  #: may be used by the server of a connection
    client: bool  #: may be used by the client

    def days_left(self, now: datetime) -> int:
        """Return the whole days until it ends; negative once it has ended."""
        return (self.until - now).days


def facts(cert_pem: bytes, what: str) -> CertFacts:
    """Read the first certificate of ``cert_pem``.

    Raises `PreconditionFailed`, which names ``what`` was read: a file, or a file on a machine.
    """
    certificate = _leaf(cert_pem, what)
    alternative = _extension(certificate, x509.SubjectAlternativeName)
    names = alternative.get_values_for_type(x509.DNSName) if alternative else []
    addresses = alternative.get_values_for_type(x509.IPAddress) if alternative else []
    usage = _extension(certificate, x509.ExtendedKeyUsage)
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return CertFacts(
        name=str(common[0].value) if common else "",
        names=tuple(names),
        addresses=tuple(str(address) for address in addresses),
        since=certificate.not_valid_before_utc,
        until=certificate.not_valid_after_utc,
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial=f"{certificate.serial_number:x}",
        server=usage is None or ExtendedKeyUsageOID.SERVER_AUTH in usage,
        client=usage is None or ExtendedKeyUsageOID.CLIENT_AUTH in usage,
    )


def issued_by(cert_pem: bytes, ca_pem: bytes, what: str) -> bool:
    """Return whether a CA of ``ca_pem`` signed the certificate, or signed one that did.

    ``cert_pem`` may hold intermediate certificates after its own. Raises `PreconditionFailed` as
    `facts` does.
    """
    chain = _certificates(cert_pem, what)
    authorities = _certificates(ca_pem, f"the CA of {what}")
    current, between = chain[0], chain[1:]
    while not any(_signed(current, authority) for authority in authorities):
        above = next((one for one in between if _signed(current, one)), None)
        if above is None:
            return False
        current, between = above, [one for one in between if one is not above]
    return True


def belongs(key_pem: bytes, cert_pem: bytes, what: str) -> bool:
    """Return whether the private key is the certificate's; raises `PreconditionFailed`."""
    certificate = _leaf(cert_pem, what)
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except TypeError:
        raise PreconditionFailed(
            f"The key of {what} is encrypted.",
            hint="QEMU reads it without a person: store it without a passphrase, with mode 0600",
        ) from None
    except ValueError:
        raise PreconditionFailed(f"The key of {what} is not a private key in PEM.") from None
    encoding = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return bool(
        key.public_key().public_bytes(*encoding) == certificate.public_key().public_bytes(*encoding)
    )


def require_usable(
    found: CertFacts, machine: str, *, name: str, address: str, now: datetime
) -> None:
    """Refuse a certificate that a peer would refuse; raises `PreconditionFailed`.

    ``machine`` is the machine that has it, ``name`` the name that it must be valid for, and
    ``address`` the address at which its QEMU is dialled; "" for none.
    """
    renew = f"`coloctl certs renew {name}` makes a new one"
    if found.until <= now:
        ended = f"{found.until:%Y-%m-%d %H:%M} UTC"
        raise PreconditionFailed(f"The certificate of {machine} ended on {ended}.", hint=renew)
    if found.since > now:
        raise PreconditionFailed(
            f"The certificate of {machine} is not valid before {found.since:%Y-%m-%d %H:%M} UTC.",
            hint=f"compare the clocks: it is {now:%Y-%m-%d %H:%M} UTC here",
        )
    if name not in (found.names or (found.name,)):
        raise PreconditionFailed(
            f"The certificate on {machine} is for {_listed(found)}, not for {name}.",
            hint=f"`coloctl certs init {name}` makes one, or name it by [tls] names",
        )
    if address and _canonical(address) not in found.addresses:
        raise PreconditionFailed(
            f"The certificate on {machine} does not name the address {address}.",
            hint=f"`coloctl certs init {name}={address}` makes one that does",
        )
    if not (found.server and found.client):
        end = "client" if found.server else "server"
        raise PreconditionFailed(
            f"The certificate on {machine} may not be used by the {end} of a connection.",
            hint="QEMU is both: issue it for serverAuth and clientAuth",
        )


def _listed(found: CertFacts) -> str:
    return ", ".join(found.names) or found.name or "no name"


def _canonical(address: str) -> str:
    return str(ipaddress.ip_address(address))


def _leaf(pem: bytes, what: str) -> x509.Certificate:
    return _certificates(pem, what)[0]


def _certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise PreconditionFailed(f"{what} is not a certificate in PEM.") from None


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _extension(certificate: x509.Certificate, kind: type[Kind]) -> Kind | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
