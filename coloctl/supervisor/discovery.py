"""Find the QEMUs that a dead supervisor left, by journal and by socket, and query their state.

Called by `supervisor.adopt`; a QEMU that answers is adopted as a `vm.VM`, one that does not gets a
`qmp.lost.LostMonitor`.

Invariant: nothing is ended here. Every QEMU that is found is returned to the caller, alive or dead,
and decided about there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from coloctl.colo.ground import Ground
from coloctl.errors import MonitorError
from coloctl.host.gone import GoneProcess
from coloctl.machine.cmdline import monitor_sockets
from coloctl.model.observation import Life
from coloctl.model.pair import NODES, NodeName, Role
from coloctl.qmp.lost import LostMonitor
from coloctl.supervisor import leftovers
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


def with_strays(folder: Path, known: Mapping[NodeName, KnownQemu]) -> dict[NodeName, KnownQemu]:
    """Add to ``known`` the QEMUs that were launched for ``folder`` and not yet recorded.

    One that the journal names and that lives is never replaced. Blocks for some milliseconds.
    """
    launches = dict(known)
    for stray in tuple(leftovers.running_in(folder)):
        node = next(name for name in NODES if name == stray.node)
        if node in known and lives(known[node], node):
            continue
        launches[node] = KnownQemu(Role(stray.role), stray.identity)
    return launches


def lives(launch: KnownQemu, node: NodeName) -> bool:
    """Return whether the QEMU of ``launch`` exists, or the wrapper that started it."""
    both = (launch.identity, launch.leader)
    return any(one is not None and leftovers.exists(one, node) for one in both)


async def _sight(
    ground: Ground, node: NodeName, launch: KnownQemu | None, record: Recorder
) -> DiscoveredNode:
    if launch is None:
        return DiscoveredNode()
    identity = launch.identity
    host, rundir = ground.hosts[node], ground.rundir(node)
    sockets = monitor_sockets(rundir)
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
