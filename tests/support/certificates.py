"""Certificates of machines that exist in tests only, as `coloctl certs` would make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from coloctl.certs import store
from coloctl.certs.issue import Credentials, new_authority, new_machine
from coloctl.machine import tls
from coloctl.model.tls import TlsFiles


@dataclass(frozen=True)
class Authority:
    """A CA, and the certificates that it makes."""

    credentials: Credentials

    @classmethod
    def new(cls, name: str = "test CA") -> Authority:
        return cls(new_authority(name, datetime.now(UTC)))

    def machine(self, folder: Path, name: str, *addresses: str, age_days: int = 0) -> Path:
        """``folder`` with the three files of machine ``name``, made ``age_days`` ago for a year."""
        made = self.issue(name, *addresses, age_days=age_days)
        store.install(folder, self.credentials.cert, made)
        return folder

    def issue(self, name: str, *addresses: str, age_days: int = 0) -> Credentials:
        then = datetime.now(UTC) - timedelta(days=age_days)
        return new_machine(self.credentials, name, addresses, then)


def write(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """``folder`` with these files."""
    folder.mkdir(mode=0o700, parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def for_qemu(machine: Path) -> Path:
    """The folder of a machine's files under QEMU's names, beside that of the machine."""
    ca, cert, key = ((machine / n).read_bytes() for n in (store.CA_CERT, store.CERT, store.KEY))
    return write(machine.with_name(f"{machine.name}-qemu"), tls.contents(ca, cert, key))


def files(machine: Path, name: str) -> TlsFiles:
    """What a program on ``machine`` needs to connect to the machine ``name``."""
    return TlsFiles(machine / store.CA_CERT, machine / store.CERT, machine / store.KEY, name)
