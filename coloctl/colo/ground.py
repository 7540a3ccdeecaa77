"""Hold on which hosts, with which QEMU, tools and accelerator a pair runs.

Made by `colo.inspect` once at a pair's start, by `check.doctor` and by `check.trial`. Used by every
module that launches a QEMU of the pair or runs a program beside its disks; finds the ``qemu-img``
beside a binary by `machine.image`.

Invariant: a fact is a node's own. Both nodes share the accelerator alone: COLO between KVM and TCG
is no pair of equal guests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from coloctl.host import open_host
from coloctl.host.base import Host
from coloctl.host.records import Machine
from coloctl.machine import image
from coloctl.model.launch import Account
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.model.tls import TlsWire
from coloctl.model.wires import Wires
from coloctl.procfs import boot_id, machine_id
from coloctl.vm import Binary


@dataclass(frozen=True)
class NodeFacts:
    """QEMU, its tools and the images of one node, as they were found on that node's machine."""

    binary: Binary
    accel: str  #: what that machine can do; the pair may run under less, see `Facts.accel`
    qemu_img: Path
    devices: frozenset[Path] = frozenset()  #: images that are block devices, with any path
    machine: Machine | None = None  #: None: this one
    plugin: Path | None = None  #: the fresh-code plugin on another machine, see `colo.plugin`
    account: Account | None = None  #: the user as which QEMU runs there; None: as coloctl


@dataclass(frozen=True)
class Facts:
    """The facts of both nodes as they were found, once, when their pair was started.

    Note the difference: a `Ground` has open hosts besides, and belongs to one process.
    """

    nodes: Mapping[NodeName, NodeFacts]
    accel: str  #: of both QEMUs: kvm only where both machines have it

    @property
    def one_machine(self) -> bool:
        """True where both nodes see the same files."""
        a, b = (self.nodes[node].machine for node in NODES)
        return a is None or b is None or one_machine(a, b)


def one_machine(a: Machine, b: Machine) -> bool:
    """Return whether both hosts are of one machine: of one boot, and not two copies of a disk."""
    return (a.machine_id, a.boot_id) == (b.machine_id, b.boot_id)


def is_here(machine: Machine) -> bool:
    """Return whether ``machine`` is the one on which this process runs."""
    return (machine.machine_id, machine.boot_id) == (machine_id(), boot_id())


def placed(spec: PairSpec, facts: Facts) -> PairSpec:
    """Return the pair with the folder for overlays of devices that each other machine has."""
    nodes = dict(spec.nodes)
    for node in NODES:
        machine = facts.nodes[node].machine
        if machine is not None and not is_here(machine):
            nodes[node] = replace(nodes[node], overlay_dir=machine.overlay_dir)
    return replace(spec, nodes=nodes)


def same_on_both(binary: Binary, accel: str) -> Facts:
    """Return the facts of a pair whose nodes share this machine, its QEMU and no device."""
    one = NodeFacts(binary, accel, image.tool(binary.path))
    return Facts(dict.fromkeys(NODES, one), accel)


@dataclass(frozen=True)
class Ground:
    """The hosts, facts and folder that one pair uses."""

    hosts: Mapping[NodeName, Host]
    facts: Facts
    folder: Path  #: the pair's state directory
    #: Of an encrypted pair, as `colo.tls` finds it before each launch.
    tls: Mapping[NodeName, TlsWire] = field(default_factory=dict)

    @property
    def accel(self) -> str:
        """The accelerator of both QEMUs."""
        return self.facts.accel

    def node(self, node: NodeName) -> NodeFacts:
        """Return the facts of one node."""
        return self.facts.nodes[node]

    def rundir(self, node: NodeName) -> Path:
        """Return the folder of one node, on that node's machine."""
        machine = self.node(node).machine
        return (machine.pair_dir(self.folder.name) if machine else self.folder) / node

    def wires(self, spec: PairSpec) -> Wires:
        """Return the addresses at which the two QEMUs meet; on one host these are files there."""
        return Wires(spec, self.rundir("a").parent, self.tls)

    async def aclose(self) -> None:
        """Release what the host objects hold."""
        await close(self.hosts)


def open_hosts(spec: PairSpec, *, pair: str = "") -> dict[NodeName, Host]:
    """Open the host of each node: one of two nodes that name the same machine elsewhere.

    ``pair`` is that of a supervisor, for which agents stay.
    """
    a, b = (spec.nodes[node] for node in NODES)
    hosts: dict[NodeName, Host] = {"a": open_host(a.host, pair=pair)}
    shared = b.machine and b.host == a.host
    hosts["b"] = hosts["a"] if shared else open_host(b.host, pair=pair)
    return hosts


async def close(hosts: Mapping[NodeName, Host]) -> None:
    """Release what the hosts of a pair hold, once where both nodes have the same."""
    for host in {id(one): one for one in hosts.values()}.values():
        await host.aclose()
