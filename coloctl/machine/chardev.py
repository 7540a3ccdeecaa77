"""The character devices between colo-proxy's filters, as ``-chardev`` and as ``chardev-add``.

Names and directions are those of QEMU's COLO document. The two loops inside the primary
(``compare0`` to ``compare0-0``, ``compare_out0`` to ``compare_out``) are unix sockets in its run
directory, so that they need no port; the two links between the hosts are TCP.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coloctl import paths
from coloctl.machine.option import Scalar, pairs
from coloctl.model.dialect import Dialect
from coloctl.model.pair import PairSpec


@dataclass(frozen=True)
class Unix:
    """A socket file; raises `PreconditionFailed` when its path is too long for one."""

    path: Path

    def __post_init__(self) -> None:
        paths.check_socket_path(self.path)


@dataclass(frozen=True)
class Inet:
    host: str
    port: int


@dataclass(frozen=True)
class SocketChardev:
    """One end of a stream; a server never waits for its client, a client connects at once."""

    id: str
    address: Unix | Inet
    server: bool
    reconnect: tuple[str, int] | None = None  #: the dialect's option and value, for clients

    def option(self) -> str:
        """The value of ``-chardev``."""
        values: dict[str, Scalar] = {"id": self.id}
        if isinstance(self.address, Unix):
            values["path"] = str(self.address.path)
        else:
            values |= {"host": self.address.host, "port": self.address.port, "nodelay": True}
        if self.server:
            values |= {"server": True, "wait": False}
        if self.reconnect:
            values[self.reconnect[0]] = self.reconnect[1]
        return pairs(values, implied="socket")

    def backend(self) -> dict[str, Any]:
        """The ``backend`` of ``chardev-add``, whose ``server`` is true unless it is said."""
        data: dict[str, Any]
        if isinstance(self.address, Unix):
            addr = {"type": "unix", "data": {"path": str(self.address.path)}}
            data = {"addr": addr, "server": self.server}
        else:
            inet = {"host": self.address.host, "port": str(self.address.port)}
            data = {"addr": {"type": "inet", "data": inet}, "server": self.server, "nodelay": True}
        if self.server:
            data["wait"] = False
        if self.reconnect:
            data[self.reconnect[0]] = self.reconnect[1]
        return {"type": "socket", "data": data}


def suffixed(document_id: str, nic: int) -> str:
    """The id for a NIC: QEMU's document's own for NIC 0, with ``-nN`` behind it for NIC N."""
    return document_id if nic == 0 else f"{document_id}-n{nic}"


def primary(spec: PairSpec, nic: int, address: str, rundir: Path) -> tuple[SocketChardev, ...]:
    """What the filters of a primary speak through; every server stands before its client.

    ``address`` is where this node receives replication traffic.
    """

    def loop(server: str, client: str) -> tuple[SocketChardev, SocketChardev]:
        meeting = Unix(rundir / f"{suffixed(server, nic)}.sock")
        return (
            SocketChardev(suffixed(server, nic), meeting, server=True),
            SocketChardev(suffixed(client, nic), meeting, server=False),
        )

    mirror = Inet(address, spec.replication.mirror_port(nic))
    compare = Inet(address, spec.replication.compare_port(nic))
    return (
        SocketChardev(suffixed("mirror0", nic), mirror, server=True),
        SocketChardev(suffixed("compare1", nic), compare, server=True),
        *loop("compare0", "compare0-0"),
        *loop("compare_out", "compare_out0"),
    )


def secondary(
    spec: PairSpec, nic: int, primary_address: str, dialect: Dialect
) -> tuple[SocketChardev, ...]:
    """What the filters of a secondary speak through; both ends connect again when cut."""
    again = dialect.reconnect_option()
    mirror = Inet(primary_address, spec.replication.mirror_port(nic))
    compare = Inet(primary_address, spec.replication.compare_port(nic))
    return (
        SocketChardev(suffixed("red0", nic), mirror, server=False, reconnect=again),
        SocketChardev(suffixed("red1", nic), compare, server=False, reconnect=again),
    )


def ids_primary(nic: int) -> tuple[str, ...]:
    """Ids for ``chardev-remove`` once the filters are gone; clients leave before their servers."""
    names = ("mirror0", "compare1", "compare0-0", "compare0", "compare_out0", "compare_out")
    return tuple(suffixed(name, nic) for name in names)


def ids_secondary(nic: int) -> tuple[str, ...]:
    """Ids for ``chardev-remove`` once the filters are gone, in the document's order."""
    return tuple(suffixed(name, nic) for name in ("red1", "red0"))


def peer_ids_primary(nic: int) -> tuple[str, ...]:
    """Ids of the chardevs that lead to the secondary: what a yank may cut."""
    return tuple(suffixed(name, nic) for name in ("mirror0", "compare1"))
