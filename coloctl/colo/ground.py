"""Hold on which hosts, with which QEMU, tools and accelerator a pair runs.

Made by `colo.inspect` once at a pair's start, by `check.doctor` and by `check.trial`. Used by every
module that launches a QEMU of the pair or runs a program beside its disks; finds the ``qemu-img``
beside a binary by `machine.image`.

Invariant: a fact is a node's own. Both nodes share the accelerator alone: COLO between KVM and TCG
is no pair of equal guests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coloctl.host.base import Host
from coloctl.machine import image
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.model.wires import Wires
from coloctl.vm import Binary


@dataclass(frozen=True)
class NodeFacts:
    """QEMU, its tools and the images of one node, as they were found on that node's machine."""

    binary: Binary
    accel: str  #: what that machine can do; the pair may run under less, see `Facts.accel`
    qemu_img: Path
    devices: frozenset[Path] = frozenset()  #: images that are block devices, with any path


@dataclass(frozen=True)
class Facts:
    """The facts of both nodes as they were found, once, when their pair was started.

    Note the difference: a `Ground` has open hosts besides, and belongs to one process.
    """

    nodes: Mapping[NodeName, NodeFacts]
    accel: str  #: of both QEMUs: kvm only where both machines have it


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

    @property
    def accel(self) -> str:
        """The accelerator of both QEMUs."""
        return self.facts.accel

    def node(self, node: NodeName) -> NodeFacts:
        """Return the facts of one node."""
        return self.facts.nodes[node]

    def rundir(self, node: NodeName) -> Path:
        """Return the folder of one node."""
        return self.folder / node

    def wires(self, spec: PairSpec) -> Wires:
        """Return the addresses at which the two QEMUs meet."""
        return Wires(spec, self.folder)

    async def aclose(self) -> None:
        """Release what the host objects hold."""
        for host in self.hosts.values():
            await host.aclose()
