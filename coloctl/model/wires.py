"""Choose the addresses at which the two QEMUs of a pair meet: one per wire, here and nowhere else.

Used by every layer: each that opens, names or tries a wire asks `Wires` for its address. Two QEMUs
on one host meet at unix sockets in the pair's private folder (mode 0700), which no other user of
the machine can reach. QEMUs on two hosts meet at TCP ports of the replication addresses, encrypted
where `PairSpec.encrypted` demands it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coloctl.model.pair import MigrationTransport, NodeName, PairSpec
from coloctl.model.tls import TlsWire

#: Name under which both QEMUs know the migration socket that coloctl hands them.
MIGRATION_FD = "migration"


@dataclass(frozen=True)
class Endpoint:
    """An IP address and a TCP or UDP port; port 0 lets the kernel choose."""

    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"

    def flat(self) -> dict[str, Any]:
        """Return the address as QAPI's ``SocketAddress``."""
        return {"type": "inet", "host": self.address, "port": str(self.port)}

    def wrapped(self) -> dict[str, Any]:
        """Return the address as QAPI's ``SocketAddressLegacy``."""
        return {"type": "inet", "data": {"host": self.address, "port": str(self.port)}}

    def uri(self) -> str:
        """Return the address as ``migrate`` takes it."""
        return f"tcp:{self}"


@dataclass(frozen=True)
class SocketFile:
    """A unix socket, reached by its path."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def flat(self) -> dict[str, Any]:
        """Return the address as QAPI's ``SocketAddress``."""
        return {"type": "unix", "path": str(self.path)}

    def wrapped(self) -> dict[str, Any]:
        """Return the address as QAPI's ``SocketAddressLegacy``."""
        return {"type": "unix", "data": {"path": str(self.path)}}

    def uri(self) -> str:
        """Return the address as ``migrate`` takes it."""
        return f"unix:{self.path}"


Address = Endpoint | SocketFile


@dataclass(frozen=True)
class Wires:
    """The addresses of one pair; ``folder`` is its state folder, with one folder per node."""

    spec: PairSpec
    folder: Path
    #: Of the nodes whose wires are to be opened, where the pair is encrypted.
    tls: Mapping[NodeName, TlsWire] = field(default_factory=dict)

    def security(self, node: NodeName) -> TlsWire | None:
        """Return the TLS of the wires of ``node``; None: the pair is not encrypted.

        Raises `KeyError` where the pair is encrypted and the caller has no TLS for this node: no
        wire of such a pair is ever opened in plain.
        """
        return self.tls[node] if self.spec.encrypted() else None

    def exports(self, node: NodeName) -> Address:
        """Return where ``node`` serves its disks over NBD while it is the secondary."""
        return self._at(node, "nbd", self.spec.replication.nbd_port())

    def mirror(self, node: NodeName, nic: int) -> Address:
        """Return where ``node``, as primary, hands out a copy of what its guest receives."""
        return self._at(node, _nth("mirror0", nic), self.spec.replication.mirror_port(nic))

    def compare(self, node: NodeName, nic: int) -> Address:
        """Return where ``node``, as primary, takes in what the secondary's guest sends."""
        return self._at(node, _nth("compare1", nic), self.spec.replication.compare_port(nic))

    def stream(self, node: NodeName) -> Address:
        """Return where ``node`` takes in the guest's memory, where a connection must be opened."""
        return self._at(node, "stream", self.spec.replication.migration_port())

    def migration_uri(self, secondary: NodeName) -> str:
        """Return what ``migrate`` and ``migrate-incoming`` get."""
        if self.spec.replication.stream is MigrationTransport.FD:
            return f"fd:{MIGRATION_FD}"
        return self.stream(secondary).uri()

    def ports(self) -> Mapping[int, str]:
        """Return the TCP ports that a node listens on in one role or the other, and what for."""
        if self.spec.shares_host():
            return {}
        replication = self.spec.replication
        wanted = {
            replication.nbd_port(): "the disk export",
            replication.migration_port(): "the migration stream",
        }
        for i, _ in enumerate(self.spec.nics):
            wanted[replication.mirror_port(i)] = "mirrored packets"
            wanted[replication.compare_port(i)] = "packets to compare"
        return wanted

    def _at(self, node: NodeName, name: str, port: int) -> Address:
        if self.spec.shares_host():
            return SocketFile(self.folder / node / f"{name}.sock")
        return Endpoint(self.spec.nodes[node].address, port)


def _nth(name: str, nic: int) -> str:
    """Return the name of a wire of one NIC, spelled as the id of its chardev is."""
    return name if nic == 0 else f"{name}-n{nic}"
