"""Keep other users off the ports of a pair on two hosts, by packet rules.

Called by `colo.launch`, which raises the rules before a QEMU that may listen, and by
`supervisor.acts.stop` and `supervisor.leftovers`, which lift them when no process of the pair runs.
`check.network` asks whether there would be any; the rules are set by `host.guard`. A pair on one
host listens at no port and has none.

Invariant: where the kernel has no packet rules the pair runs all the same. Then `colo.peers` turns
strangers away, but only when the pair is protected, and `doctor` reports it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping

from coloctl.colo.ground import Ground
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.host.guard import GuardedPorts
from coloctl.model.pair import NODES, NodeName, PairSpec, other
from coloctl.model.wires import Wires

log = logging.getLogger(__name__)


def guarded(wires: Wires, node: NodeName, name: str, user: int | None = None) -> GuardedPorts:
    """Return the guarded ports on the host of ``node``, under the name of their table."""
    spec = wires.spec
    return GuardedPorts(
        name=name,
        at=spec.nodes[node].address,
        peer=spec.nodes[other(node)].address,
        tcp=tuple(wires.ports()),
        udp=(spec.replication.heartbeat_port(),),
        user=user,
    )


async def raise_guard(spec: PairSpec, ground: Ground) -> None:
    """Limit access to the pair's ports on both hosts to the two hosts, this user and QEMU's."""
    wires = ground.wires(spec)
    if not wires.ports():
        return
    await asyncio.gather(*(_raise_at(wires, ground, node) for node in NODES))


async def _raise_at(wires: Wires, ground: Ground, node: NodeName) -> None:
    host, account = ground.hosts[node], ground.node(node).account
    name, user = table_name(wires.spec, host), account.uid if account else None
    try:
        await host.guard(guarded(wires, node, name, user))
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
        await host.unguard(table_name(wires.spec, host))
    except PreconditionFailed as error:
        log.debug("The packet rules of %s were not removed: %s", host.name, error.message)


def table_name(spec: PairSpec, host: Host) -> str:
    """Name the table of packet rules on ``host``, by the pair's folder on that host's machine.

    So any supervisor finds it, on whichever machine it runs. Another pair of that name, under
    another state folder, has a table of its own: what is refused or ended there lifts no rule of a
    guest that runs here.
    """
    folder = bytes(host.machine.pair_dir(spec.name))
    return f"coloctl-{spec.name}-{hashlib.blake2s(folder, digest_size=4).hexdigest()}"
