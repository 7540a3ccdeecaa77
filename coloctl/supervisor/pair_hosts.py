"""Open the hosts of a pair whose supervisor is gone, and find where they keep its files.

Called by `supervisor.leftovers`, `supervisor.discovery` and `control.daemon`; opens by `host`, and
reads the pair from its folder by `supervisor.started`.

Invariant: a machine is dialled only where that was asked for. One that was not dialled is out of
reach, and never counts as one on which nothing lives. Nor does another machine of the same address.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from coloctl import paths
from coloctl.colo.ground import is_here
from coloctl.errors import ColoctlError, HostOutOfReach, PreconditionFailed
from coloctl.host import open_host
from coloctl.host.base import Host, Identity
from coloctl.model import sshaddress
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.supervisor.started import remembered

#: How long another machine may take to be reached, seconds: ssh gives a silent one up after 10 s,
#: and takes 24 s where each round trip takes 2 s.
REACH_WAIT_S = 30.0

Hosts = Mapping[NodeName, Host]


@contextlib.asynccontextmanager
async def opened(folder: Path, *, dial: bool = True) -> AsyncIterator[Hosts]:
    """Open the hosts of the pair in ``folder``; with ``dial``, wait for those that can be reached.

    Where the folder does not hold what the pair was started with, both are this machine. So is a
    network namespace that is gone: the processes in it are of this kernel all the same.
    """
    pair = started_pair(folder)
    hosts: dict[str, Host] = {}
    try:
        for node in NODES:
            name = pair.nodes[node].host if pair else "local"
            if name not in hosts:
                try:
                    hosts[name] = open_host(name)
                except PreconditionFailed:
                    hosts[name] = open_host("local")
        if dial:
            await asyncio.gather(*map(_dialled, hosts.values()))
        yield {node: hosts[pair.nodes[node].host if pair else "local"] for node in NODES}
    finally:
        for host in hosts.values():
            await host.aclose()


async def _dialled(host: Host) -> None:
    with contextlib.suppress(HostOutOfReach):
        await host.ready(REACH_WAIT_S)


def started_pair(folder: Path) -> PairSpec | None:
    """Return the pair of ``folder`` as it was started; None where that cannot be read."""
    with contextlib.suppress(ColoctlError):
        started = remembered(folder)
        return started.pair if started else None
    return None


def require_reach(host: Host) -> None:
    """Require that ``host`` can be asked now; raises `HostOutOfReach`."""
    if host.reach.out:
        raise HostOutOfReach(host.reach.why or f"{host.name} was not asked.")


def require_same_machine(identity: Identity, host: Host) -> None:
    """Require that ``host`` is the machine on which the process of ``identity`` was recorded.

    Raises `HostOutOfReach`: at that address another machine answers, or this machine is not the one
    that it was. It proves nothing about a process of the earlier one, not even by its boot.
    """
    there = host.machine
    if identity.machine and identity.machine != there.machine_id:
        name = host.name if host.name.startswith(sshaddress.SCHEME) else there.name
        raise HostOutOfReach(
            f"{name} is another machine now: its machine-id is {there.machine_id or 'unknown'}, "
            f"and was {identity.machine}."
        )


def rundir(folder: Path, host: Host, node: str) -> Path:
    """Return where ``host`` has the sockets of ``node`` for the pair in ``folder`` of this machine.

    Raises `HostOutOfReach` for a host that was never reached.
    """
    machine = host.machine
    here = machine.state_dir == paths.state_dir()
    return (folder if here else machine.pair_dir(folder.name)) / node


async def sweep_elsewhere(folder: Path, hosts: Hosts) -> None:
    """Remove the pair's folders on other machines, logs included; what cannot be reached is left.

    Nothing of the pair runs any more. ``folder`` is its folder on this machine, and is left alone.
    """
    for host in {id(one): one for one in hosts.values()}.values():
        with contextlib.suppress(ColoctlError):
            there = host.machine.pair_dir(folder.name)
            if there != folder or not is_here(host.machine):
                await host.sweep(there, logs=True)
