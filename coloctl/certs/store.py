"""Keep the files of a deployment's CA, and those of one machine, with mode 0600 in folders of 0700.

Called by `cli.verbs.certs`, `cli.verbs.host`, `lab.machine_store` and `chaos.run.credentials`;
`colo.tls` and `check.machine_there` ask for the folder of this machine. A CA's folder is on the
machine of the person who runs the deployment; the folder of a machine holds three files:
`ca-cert.pem`, `cert.pem` and `key.pem`.

Invariant: the CA's key is in no machine's folder. A key is written before its certificate: after a
crash between the two, the pair is refused with a sentence, and `renew` mends it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from coloctl import paths, wholefile
from coloctl.certs import read
from coloctl.certs.issue import Credentials, new_authority, new_machine
from coloctl.errors import PreconditionFailed, UsageError

CA_CERT, CERT, KEY = "ca-cert.pem", "cert.pem", "key.pem"
_CA_KEY = "ca-key.pem"
_MACHINES = "machines"
#: A DNS name that needs no quoting in a subject; X.520 limits a common name to 64 characters.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Made:
    """One machine's certificate after `Authority.provide`: a new one, or the one that was there."""

    name: str
    folder: Path
    facts: read.CertFacts
    new: bool


class Authority:
    """The CA of a deployment in its folder, with the keys that it made for machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def exists(self) -> bool:
        """Return whether the CA has been made."""
        return (self.folder / CA_CERT).exists() or (self.folder / _CA_KEY).exists()

    def make(self, now: datetime) -> None:
        """Make the CA; raises `PreconditionFailed` where its folder cannot be written."""
        made = new_authority(f"coloctl CA {now:%Y-%m-%d} {socket.gethostname()}"[:64], now)
        _private(self.folder)
        _write(self.folder / _CA_KEY, made.key)
        _write(self.folder / CA_CERT, made.cert)

    def credentials(self) -> Credentials:
        """Read the CA; raises `PreconditionFailed` for a file that is missing or damaged."""
        cert, key = _read(self.folder / CA_CERT), _read(self.folder / _CA_KEY)
        if not read.belongs(key, cert, str(self.folder / CA_CERT)):
            raise PreconditionFailed(
                f"The keys in {self.folder} do not belong to each other.",
                hint="restore both files of the CA from one copy",
            )
        return Credentials(cert, key)

    def machines(self) -> list[str]:
        """List the machines that the CA made a key for."""
        folder = self.folder / _MACHINES
        return sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []

    def folder_of(self, name: str) -> Path:
        """Return the folder of a machine's three files, as its machine needs them."""
        return self.folder / _MACHINES / name

    def provide(
        self, name: str, addresses: Collection[str], now: datetime, *, renew: bool = False
    ) -> Made:
        """Make a machine's key and certificate where there are none for these addresses.

        With ``renew`` they are made in any case. Raises `PreconditionFailed`.
        """
        folder = self.folder_of(name)
        if not renew and (found := self._usable(name, addresses, now)) is not None:
            return Made(name, folder, found, new=False)
        authority = self.credentials()
        ended = read.facts(authority.cert, str(self.folder / CA_CERT)).until
        if ended <= now:
            raise PreconditionFailed(
                f"The CA in {self.folder} ended on {ended:%Y-%m-%d}.",
                hint="make another one: move that folder away, then `coloctl certs init`",
            )
        made = new_machine(authority, name, sorted(addresses), now)
        install(folder, authority.cert, made)
        return Made(name, folder, read.facts(made.cert, str(folder / CERT)), new=True)

    def _usable(
        self, name: str, addresses: Collection[str], now: datetime
    ) -> read.CertFacts | None:
        """Return the certificate that is there, if it serves: same addresses, not ended."""
        folder = self.folder_of(name)
        try:
            cert, key = _read(folder / CERT), _read(folder / KEY)
            found = read.facts(cert, str(folder / CERT))
            right = read.belongs(key, cert, str(folder / CERT)) and read.issued_by(
                cert, _read(self.folder / CA_CERT), str(folder / CERT)
            )
        except PreconditionFailed:
            return None
        same = set(found.addresses) == set(addresses)
        return found if right and same and found.until > now else None


def install(folder: Path, ca_cert: bytes, made: Credentials) -> None:
    """Write the three files of a machine into ``folder``; raises `PreconditionFailed`."""
    _private(folder)
    _write(folder / CA_CERT, ca_cert)
    _write(folder / KEY, made.key)
    _write(folder / CERT, made.cert)


def install_from(source: Path, folder: Path) -> None:
    """Copy the three files of a machine from ``source``; raises `PreconditionFailed`."""
    install(folder, _read(source / CA_CERT), Credentials(_read(source / CERT), _read(source / KEY)))


def authority_dir() -> Path:
    """Return the folder of the CA where none is named."""
    return paths.config_dir() / "ca"


def machine_dir() -> Path:
    """Return the folder with this machine's own certificate."""
    return paths.config_dir() / "tls"


def is_here(name: str) -> bool:
    """Return whether ``name`` is the host name of this machine, with its domain or without."""
    own = socket.gethostname()
    return name in (own, own.partition(".")[0])


def parse_machine(text: str) -> tuple[str, tuple[str, ...]]:
    """Read ``NAME[=ADDRESS[,ADDRESS]]``; raises `UsageError`."""
    name, _, listed = text.partition("=")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be the name of a machine.",
            hint="use letters, digits, dots and dashes, at most 64, such as hv1",
        )
    addresses = [one.strip() for one in listed.split(",") if one.strip()]
    try:
        parsed = [ipaddress.ip_address(one) for one in addresses]
        if local := [one for one in parsed if one.version == 6 and one.is_link_local]:
            raise UsageError(
                f"{name}: {local[0]} is a link-local address, and QEMU cannot listen at one.",
                hint="give the link addresses of its own, like fd00::1 and fd00::2",
            )
        return name, tuple(map(str, parsed))
    except ValueError as error:
        raise UsageError(
            f"{name}: {error}.", hint=f"write its addresses as in {name}=10.66.0.1,fd00::1"
        ) from None


def _private(folder: Path) -> None:
    paths.make_private(paths.require_own(folder, variable=paths.CONFIG), variable=paths.CONFIG)


def _write(file: Path, content: bytes) -> None:
    try:
        wholefile.replace(file, content, mode=0o600)
    except OSError as error:
        raise PreconditionFailed(f"{file} cannot be written: {error.strerror}.") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise PreconditionFailed(
            f"There is no {file}.", hint="`coloctl certs init` makes the CA and its machines' keys"
        ) from None
    except OSError as error:
        raise PreconditionFailed(f"{file} cannot be read: {error.strerror}.") from None
