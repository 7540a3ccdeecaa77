"""Require that the QEMUs of both nodes can be one pair, and that no binary was replaced since.

Called by `colo.inspect` before a start, and for the binary of a secondary by
`supervisor.acts.protect` and `supervisor.acts.switchover`; asks `vm` for a binary.

Invariant: a pair begins only where both nodes' QEMUs have one version and one machine type, and no
secondary is launched from a binary that was replaced by another version since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial

from coloctl.colo.ground import Ground, one_machine
from coloctl.errors import UnsupportedQEMU
from coloctl.host.records import Machine
from coloctl.model.dialect import Dialect
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.tasks import side_by_side
from coloctl.vm import Binary, inspect


def require_equal(
    spec: PairSpec, binaries: Mapping[NodeName, Binary], machines: Mapping[NodeName, Machine]
) -> None:
    """Require that both nodes' QEMUs can be one pair; raises `UnsupportedQEMU`, naming both.

    COLO holds between equal versions only (docs/qemu.md); the patches of a distribution may differ.
    An alias such as ``pc`` has to be the same machine type for both: the state of the guest's
    devices is written by one QEMU and read by the other. So are the commands and devices that
    each build has: both QEMUs are given the same.
    """
    a, b = (binaries[node] for node in NODES)
    where = partial(_where, binaries, machines)
    if a.release != b.release:
        raise UnsupportedQEMU(
            f"Node {where('b')} has QEMU {b.version} and node {where('a')} has "
            f"{a.version}: both need the same version.",
            hint="install one version on both, or name it by node.a.qemu and node.b.qemu",
        )
    if differ := [
        one.name
        for one in fields(Dialect)
        if one.name != "version" and getattr(a.dialect, one.name) != getattr(b.dialect, one.name)
    ]:
        raise UnsupportedQEMU(
            f"Node {where('b')} and node {where('a')} have builds of QEMU {a.release} that differ "
            f"in {', '.join(differ)}.",
            hint="install the same build on both",
        )
    wanted = spec.guest.machine
    types = {node: binaries[node].machines.get(wanted, wanted) for node in NODES}
    if types["a"] != types["b"]:
        raise UnsupportedQEMU(
            f"The machine type {wanted} is {types['b']} for node {where('b')} and "
            f"{types['a']} for node {where('a')}.",
            hint=f'set guest.machine = "{min(types.values())}" if both know it',
        )


def _where(
    binaries: Mapping[NodeName, Binary], machines: Mapping[NodeName, Machine], node: NodeName
) -> str:
    """Name a node by what makes it another than its peer: its machine, or the path of its QEMU."""
    if one_machine(machines["a"], machines["b"]):
        return f"{node} ({binaries[node].path})"
    return f"{node} on {machines[node].name}"


async def require_same_binary(ground: Ground) -> None:
    """Require that each binary on disk is the version in which the guest runs.

    A package that was renewed meanwhile would make a secondary of another version, and COLO holds
    between equal versions only (docs/qemu.md). Raises `UnsupportedQEMU`.
    """
    one = ground.facts.one_machine
    alike = one and ground.node("a").binary.path == ground.node("b").binary.path
    nodes = NODES[:1] if alike else NODES
    found = await side_by_side(
        *(inspect(ground.node(node).binary.path, ground.hosts[node]) for node in nodes)
    )
    for node, now in zip(nodes, found, strict=True):
        began, machine = ground.node(node).binary, ground.node(node).machine
        if now.version != began.version:
            there = "" if one or machine is None else f" on {machine.name}"
            raise UnsupportedQEMU(
                f"{now.path}{there} is {now.version} now, and the guest runs in {began.version}: "
                "both nodes need the same version.",
                hint="stop and start the pair for the new version, or bring the old one back",
            )
