"""Describe the TLS of a pair's wires as each side uses it; frozen values.

`TlsSpec` is a part of a pair as asked for (`model.pair`). `machine.chardev`, `machine.tls` and
`colo.plan` use a `TlsWire` for QEMU's side; `nbd.client` and `nbd.tls` use a `TlsFiles`.

Invariant: a wire of an encrypted pair is encrypted, and both ends are checked, or it is not opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

Node = Literal["a", "b"]  # `pair.NodeName`, which is defined with what uses this module

#: The folder in a node's run directory that holds the files of one serial.
FOLDER = "tls-{serial}"
#: The names of QEMU's TLS objects begin so; the serial follows.
SERVER, CLIENT, PEERS = "tls-server-", "tls-client-", "tls-peers-"


class TlsMode(StrEnum):
    """The pairs whose wires are encrypted."""

    AUTO = "auto"  #: where a node is on another machine
    ON = "on"
    OFF = "off"


@dataclass(frozen=True)
class TlsSpec:
    """The encryption of all traffic between the two nodes, and what each machine proves itself by.

    Every wire is encrypted and both ends are checked, or none is.
    """

    mode: TlsMode = TlsMode.AUTO
    """on encrypts every wire between the nodes, off none; auto is on where a node is reached by
    ssh."""
    folder: Path | None = None
    """Folder on each machine with ca-cert.pem, cert.pem and key.pem; else /etc/coloctl/tls."""
    folders: Mapping[Node, Path] = field(default_factory=dict)
    """That folder for one node alone."""
    ca: Path | None = None
    """Certificate of the authority on each machine, where it is not ca-cert.pem of folder."""
    cert: Path | None = None
    """Certificate on each machine, where it is not cert.pem of folder."""
    key: Path | None = None
    """Private key on each machine, where it is not key.pem of folder."""
    names: Mapping[Node, str] = field(default_factory=dict)
    """Name for which the certificate of a node is valid, where it is not that of its machine."""

    def files(self, node: Node, folder: Path) -> tuple[Path, Path, Path]:
        """Return where the machine of ``node`` keeps authority, certificate and key.

        ``folder`` is the one of a machine for which the pair file names none.
        """
        where = self.folders.get(node) or self.folder or folder
        return (
            self.ca or where / "ca-cert.pem",
            self.cert or where / "cert.pem",
            self.key or where / "key.pem",
        )


@dataclass(frozen=True)
class TlsIds:
    """The names of one QEMU's TLS objects.

    ``serial`` is derived from the certificate, so that a renewed one gets objects of its own and
    an adopted QEMU shows which it has.
    """

    serial: str

    @property
    def server(self) -> str:
        """The credentials with which this QEMU accepts a connection."""
        return f"{SERVER}{self.serial}"

    @property
    def client(self) -> str:
        """The credentials with which this QEMU opens a connection."""
        return f"{CLIENT}{self.serial}"

    @property
    def peers(self) -> str:
        """The list of subjects that may connect."""
        return f"{PEERS}{self.serial}"

    @property
    def accepting(self) -> dict[str, Any]:
        """The arguments of a command by which QEMU accepts connections over TLS alone."""
        return {"tls_creds": self.server, "tls_authz": self.peers}

    @property
    def all(self) -> tuple[str, str, str]:
        """All three, in the order in which they are made."""
        return (self.server, self.client, self.peers)


@dataclass(frozen=True)
class TlsWire:
    """The TLS of one node's ends of the wires, as its QEMU uses it.

    Note the difference: a `TlsFiles` is for a program of coloctl on that machine.
    """

    ids: TlsIds
    peer: str  #: the name that the other node's certificate must have
    folder: Path  #: the files, under the names that QEMU wants
    #: Distinguished names that may connect, such as "CN=hv1"; a QEMU that runs has them already.
    subjects: tuple[str, ...] = ()


@dataclass(frozen=True)
class TlsFiles:
    """The files by which a program of coloctl proves its machine and checks the other one.

    The paths are those of the machine that runs the program.
    """

    ca: Path  #: the authority that must have issued the other machine's certificate
    cert: Path
    key: Path
    name: str  #: the name that the other machine's certificate must have

    def document(self) -> dict[str, str]:
        """Return the value as such a program reads it from the address that it is sent."""
        return {
            "ca": str(self.ca),
            "cert": str(self.cert),
            "key": str(self.key),
            "name": self.name,
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> TlsFiles:
        """Return the value of such a document."""
        ca, cert, key = (Path(str(document[word])) for word in ("ca", "cert", "key"))
        return cls(ca, cert, key, str(document["name"]))


def folder(rundir: Path, ids: TlsIds) -> Path:
    """Return the folder of a node's TLS files, below its run directory."""
    return rundir / FOLDER.format(serial=ids.serial)
