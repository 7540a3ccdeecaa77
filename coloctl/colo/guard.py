"""The ports of a pair on two hosts are its own: packet rules keep everybody else out.

Raised before a QEMU is launched that may listen, lifted when nothing of the pair runs. A pair on
one host listens at no port and has none. Where the kernel has no packet rules the pair runs all the
same: `coloctl.colo.peers` turns strangers away, but only when the pair is protected, and `doctor`
says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping

from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.host.guard import GuardedPorts
from coloctl.model.pair import NODES, NodeName, other
from coloctl.model.wires import Wires

log = logging.getLogger(__name__)


def guarded(wires: Wires, node: NodeName, name: str | None = None) -> GuardedPorts:
    """What is guarded on the host of ``node``, under ``name`` or the pair's own."""
    spec = wires.spec
    return GuardedPorts(
        name=name or table_name(wires),
        at=spec.nodes[node].address,
        peer=spec.nodes[other(node)].address,
        tcp=tuple(wires.ports()),
        udp=(spec.replication.heartbeat_port(),),
    )


async def raise_guard(wires: Wires, hosts: Mapping[NodeName, Host]) -> None:
    """Let only the two hosts and this user reach the pair's ports on both hosts."""
    if not wires.ports():
        return
    await asyncio.gather(*(_raise_at(wires, node, hosts[node]) for node in NODES))


async def _raise_at(wires: Wires, node: NodeName, host: Host) -> None:
    try:
        await host.guard(guarded(wires, node))
    except PreconditionFailed as error:
        log.warning("Other users may reach node %s's ports: %s", node, error.message)


async def lift(wires: Wires, hosts: Mapping[NodeName, Host]) -> None:
    """Remove the pair's packet rules from both hosts."""
    for node in NODES:
        await lift_at(wires, hosts[node])


async def lift_at(wires: Wires, host: Host) -> None:
    """Remove the pair's packet rules from one of its hosts."""
    if not wires.ports():
        return
    try:
        await host.unguard(table_name(wires))
    except PreconditionFailed as error:
        log.debug("The packet rules of %s were not removed: %s", host.name, error.message)


def table_name(wires: Wires) -> str:
    """Name the table of packet rules: another pair of that name, elsewhere, has one of its own.

    So what is refused or ended under one state folder lifts no rule of a guest that lives under
    another.
    """
    folder = hashlib.blake2s(bytes(wires.folder), digest_size=4).hexdigest()
    return f"coloctl-{wires.spec.name}-{folder}"
