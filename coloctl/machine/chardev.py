"""Build the character devices between colo-proxy's filters, as ``-chardev`` and ``chardev-add``.

Called by `machine.cmdline` for a QEMU that starts, by `colo.plan` for one that runs, and by
`machine.netfilter` for names. Names and directions are those of QEMU's COLO document. The two loops
inside the primary (``compare0`` to ``compare0-0``, ``compare_out0`` to ``compare_out``) are unix
sockets in its run directory, so that they need no port. `coloctl.model.wires` has the addresses of
the two links between the QEMUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coloctl import paths
from coloctl.machine.option import Scalar, pairs
from coloctl.model.dialect import Dialect
from coloctl.model.pair import NodeName, PairSpec, other
from coloctl.model.tls import TlsWire
from coloctl.model.wires import Address, SocketFile, Wires


@dataclass(frozen=True)
class SocketChardev:
    """One end of a stream; a server never waits for its client, a client connects at once.

    Raises `PreconditionFailed` for a socket file whose path is too long for one.
    """

    id: str
    address: Address
    server: bool
    reconnect: tuple[str, int] | None = None  #: the dialect's option and value, for clients
    #: A server lets in the peers of the list alone; a client checks that the certificate is valid
    #: for the address that it connects to.
    tls: TlsWire | None = None

    def __post_init__(self) -> None:
        if isinstance(self.address, SocketFile):
            paths.check_socket_path(self.address.path)

    def option(self) -> str:
        """Build the value of ``-chardev``."""
        values: dict[str, Scalar] = {"id": self.id}
        if isinstance(self.address, SocketFile):
            values["path"] = str(self.address.path)
        else:
            values |= {"host": self.address.address, "port": self.address.port, "nodelay": True}
        if self.server:
            values |= {"server": True, "wait": False}
        if self.reconnect:
            values[self.reconnect[0]] = self.reconnect[1]
        values |= self._tls()
        return pairs(values, implied="socket")

    def backend(self) -> dict[str, Any]:
        """Build the ``backend`` of ``chardev-add``, whose ``server`` is true by default."""
        data: dict[str, Any] = {"addr": self.address.wrapped(), "server": self.server}
        if not isinstance(self.address, SocketFile):
            data["nodelay"] = True
        if self.server:
            data["wait"] = False
        if self.reconnect:
            data[self.reconnect[0]] = self.reconnect[1]
        return {"type": "socket", "data": data | self._tls()}

    def _tls(self) -> dict[str, str]:
        if self.tls is None:
            return {}
        if not self.server:
            return {"tls-creds": self.tls.ids.client}
        return {"tls-creds": self.tls.ids.server, "tls-authz": self.tls.ids.peers}


def suffixed(document_id: str, nic: int) -> str:
    """Return the id for a NIC: that of QEMU's document for NIC 0, followed by ``-nN`` for NIC N."""
    return document_id if nic == 0 else f"{document_id}-n{nic}"


def primary(
    spec: PairSpec, nic: int, node: NodeName, rundir: Path, *, tls: TlsWire | None = None
) -> tuple[SocketChardev, ...]:
    """Describe what the filters of a primary speak through; every server precedes its client.

    ``rundir`` is the folder of ``node`` in the pair's state folder; ``tls`` is that of ``node``
    where the pair is encrypted. The loops stay in this QEMU and have none.
    """

    def loop(server: str, client: str) -> tuple[SocketChardev, SocketChardev]:
        meeting = SocketFile(rundir / f"{suffixed(server, nic)}.sock")
        return (
            SocketChardev(suffixed(server, nic), meeting, server=True),
            SocketChardev(suffixed(client, nic), meeting, server=False),
        )

    wires = Wires(spec, rundir.parent, {node: tls} if tls else {})
    mirror, compare, tls = wires.mirror(node, nic), wires.compare(node, nic), wires.security(node)
    return (
        SocketChardev(suffixed("mirror0", nic), mirror, server=True, tls=tls),
        SocketChardev(suffixed("compare1", nic), compare, server=True, tls=tls),
        *loop("compare0", "compare0-0"),
        *loop("compare_out", "compare_out0"),
    )


def secondary(
    spec: PairSpec,
    nic: int,
    node: NodeName,
    rundir: Path,
    dialect: Dialect,
    *,
    tls: TlsWire | None = None,
) -> tuple[SocketChardev, ...]:
    """Describe what the filters of a secondary speak through; both ends connect again when cut.

    ``rundir`` and ``tls`` as for `primary`.
    """
    again = dialect.reconnect_option()
    wires, peer = Wires(spec, rundir.parent, {node: tls} if tls else {}), other(node)
    mirror, compare, tls = wires.mirror(peer, nic), wires.compare(peer, nic), wires.security(node)
    return (
        SocketChardev(suffixed("red0", nic), mirror, server=False, reconnect=again, tls=tls),
        SocketChardev(suffixed("red1", nic), compare, server=False, reconnect=again, tls=tls),
    )


def ids_primary(nic: int) -> tuple[str, ...]:
    """List ids for ``chardev-remove`` after the filters; clients leave before their servers."""
    names = ("mirror0", "compare1", "compare0-0", "compare0", "compare_out0", "compare_out")
    return tuple(suffixed(name, nic) for name in names)


def ids_secondary(nic: int) -> tuple[str, ...]:
    """List ids for ``chardev-remove`` once the filters are gone, in the document's order."""
    return tuple(suffixed(name, nic) for name in ("red1", "red0"))


def peer_ids_primary(nic: int) -> tuple[str, ...]:
    """List the ids of the chardevs that lead to the secondary, which a yank may cut."""
    return tuple(suffixed(name, nic) for name in ("mirror0", "compare1"))
