"""Find the QEMUs that a dead supervisor left, by journal and by socket, and query their state.

Called by `supervisor.adopt`; a QEMU that answers is adopted as a `vm.VM`, one that does not gets a
`qmp.lost.LostMonitor`. So does one whose machine is out of reach; its `host.base.Process` finds it
again when the machine is back.

Invariant: nothing is ended here. Every QEMU that is found is returned to the caller, alive, dead or
not known, and decided about there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from coloctl.colo.ground import Ground
from coloctl.errors import HostOutOfReach, MonitorError
from coloctl.host.base import Host, Identity
from coloctl.host.gone import GoneProcess
from coloctl.machine.cmdline import monitor_sockets
from coloctl.model.observation import Life
from coloctl.model.pair import NODES, NodeName, Role
from coloctl.qmp.lost import LostMonitor
from coloctl.supervisor import leftovers
from coloctl.supervisor.pair_hosts import REACH_WAIT_S, require_same_machine
from coloctl.supervisor.reconcile import ABSENT, FoundQemu, KnownQemu
from coloctl.vm import VM, Recorder

#: A QEMU answers within milliseconds, within a second in a checkpoint on a busy machine. One that
#: is silent for so long is taken over without its monitor, and counts as silent.
ANSWER_DEADLINE_S = 10.0


@dataclass(frozen=True)
class DiscoveredNode:
    """One node as it was found; ``vm`` is there for dead QEMUs too, where one was launched."""

    found: FoundQemu = ABSENT
    vm: VM | None = None


async def look(
    ground: Ground, launches: Mapping[NodeName, KnownQemu], records: Mapping[NodeName, Recorder]
) -> dict[NodeName, DiscoveredNode]:
    """Find what is left of ``launches``, node by node; ``records`` get the traffic of each QEMU.

    Raises `PreconditionFailed` where the kernel does not show whether a process is the one that was
    launched.
    """
    seen = await asyncio.gather(
        *(_sight(ground, node, launches.get(node), records[node]) for node in NODES)
    )
    return dict(zip(NODES, seen, strict=True))


async def with_strays(
    folder: Path,
    hosts: Mapping[NodeName, Host],
    known: Mapping[NodeName, KnownQemu],
    left: Mapping[NodeName, KnownQemu],
) -> dict[NodeName, KnownQemu]:
    """Add to ``known`` the QEMUs that were launched for ``folder`` and not yet recorded.

    One that the journal names and that lives is never replaced, and neither is one that may live.
    Those that are in ``left`` are no part of the pair any more.
    """
    launches = {node: one for node, one in known.items() if not _is(left.get(node), one.identity)}
    for stray in await leftovers.running_in(folder, hosts):
        node = next(name for name in NODES if name == stray.node)
        if _is(left.get(node), stray.identity):
            continue
        if node in known and await lives(known[node], node, hosts[node]):
            continue
        launches[node] = KnownQemu(Role(stray.role), stray.identity)
    return launches


def _is(launch: KnownQemu | None, identity: Identity) -> bool:
    """Return whether ``identity`` is the QEMU of ``launch``, or the wrapper that started it."""
    return launch is not None and identity in (launch.identity, launch.leader)


async def lives(launch: KnownQemu, node: NodeName, host: Host) -> bool:
    """Return whether the QEMU of ``launch`` exists, or the wrapper that started it, or may."""
    try:
        return await leftovers.exists(launch.identity, node, host, leader=launch.leader)
    except HostOutOfReach:
        return not launch.ended


async def _sight(
    ground: Ground, node: NodeName, launch: KnownQemu | None, record: Recorder
) -> DiscoveredNode:
    if launch is None:
        return DiscoveredNode()
    try:
        return await _asked(ground, node, launch, record)
    except HostOutOfReach as error:
        why = error.message.rstrip(".")
    host, rundir = ground.hosts[node], ground.rundir(node)
    if launch.ended:
        monitor = LostMonitor(node, "it is gone")
        vm = VM(node, host, GoneProcess(launch.identity, node=node), monitor, rundir)
        return DiscoveredNode(FoundQemu(launch.role, alive=False), vm)
    process = host.known(
        launch.identity,
        node=node,
        leader=launch.leader,
        sockets=tuple(monitor_sockets(rundir).values()),
    )
    found = FoundQemu(launch.role, alive=True, known=False)
    return DiscoveredNode(found, VM(node, host, process, LostMonitor(node, why), rundir))


async def _asked(
    ground: Ground, node: NodeName, launch: KnownQemu, record: Recorder
) -> DiscoveredNode:
    """Return the node as its host and its QEMU answer; raises `HostOutOfReach`."""
    identity = launch.identity
    host, rundir = ground.hosts[node], ground.rundir(node)
    sockets = monitor_sockets(rundir)
    await host.ready(REACH_WAIT_S)
    require_same_machine(identity, host)
    process = await host.adopt(identity, node=node, leader=launch.leader, sockets=sockets.values())
    if process is None or not process.alive():  # of the latter a wrapper may be left
        gone = LostMonitor(node, "it is gone")
        vm = VM(node, host, process or GoneProcess(identity, node=node), gone, rundir)
        return DiscoveredNode(FoundQemu(launch.role, alive=False), vm)
    found = FoundQemu(launch.role, alive=True, held="-S" in process.argv)
    adopted: VM | None = None
    if process.life() is not Life.STOPPED:
        with contextlib.suppress(MonitorError, TimeoutError):
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                adopted = await VM.adopt(
                    node, host, identity, sockets, rundir, leader=launch.leader, record=record
                )
    if adopted is None:
        silent = LostMonitor(node, "it did not answer when it was taken over")
        return DiscoveredNode(found, VM(node, host, process, silent, rundir))
    process.close()
    with contextlib.suppress(MonitorError):
        vitals = await adopted.observe(ANSWER_DEADLINE_S)
        found = replace(
            found,
            run_state=vitals.run_state,
            migration=vitals.migration,
            colo_mode=vitals.colo_mode,
        )
    return DiscoveredNode(found, adopted)
