"""The QEMUs that a dead supervisor left, found by process, socket and journal, and asked.

Invariant: a QEMU that the journal does not name and that only waits to receive a guest is ended
here; whatever may run a guest is answered to the caller, alive or dead, and decided about there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from coloctl.colo.launch import Ground
from coloctl.errors import MonitorError
from coloctl.host.base import Identity
from coloctl.host.gone import GoneProcess
from coloctl.host.process import kill_identity
from coloctl.machine.cmdline import monitor_sockets
from coloctl.model.pair import NODES, NodeName, Role
from coloctl.qmp.lost import LostMonitor
from coloctl.supervisor import leftovers
from coloctl.supervisor.reconcile import ABSENT, Belief, Found, Launch
from coloctl.vm import VM, Recorder

#: A QEMU answers within milliseconds, within a second in a checkpoint on a busy machine. One that
#: is silent for so long is taken over without its monitor, and judged by that.
ANSWER_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Sighting:
    """One node as it was found; ``vm`` is there for dead QEMUs too, where one was launched."""

    found: Found = ABSENT
    vm: VM | None = None


async def look(
    ground: Ground, belief: Belief, records: Mapping[NodeName, Recorder]
) -> dict[NodeName, Sighting]:
    """What is left of the pair, node by node; ``records`` get what is said to each QEMU.

    Raises `PreconditionFailed` where the kernel does not tell whether a process is the one that was
    launched, and `FencingFailed` for a stray that would not die.
    """
    launches = await _with_strays(ground, belief)
    seen = await asyncio.gather(
        *(_sight(ground, node, launches.get(node), records[node]) for node in NODES)
    )
    return dict(zip(NODES, seen, strict=True))


async def _with_strays(ground: Ground, belief: Belief) -> dict[NodeName, Launch]:
    """The launches of the journal, and a primary that was launched and not yet written down."""
    launches = dict(belief.launches)
    known = {Identity(one.pid, one.start_time) for one in launches.values()}
    for stray in tuple(leftovers.running_in(ground.folder)):
        node = next(name for name in NODES if name == stray.node)
        if stray.identity in known:
            continue
        if stray.role == Role.PRIMARY:
            identity = stray.identity
            launches[node] = Launch(Role.PRIMARY, identity.pid, identity.start_time)
        else:
            await kill_identity(stray.identity, node=node, deadline_s=leftovers.KILL_DEADLINE_S)
    return launches


async def _sight(
    ground: Ground, node: NodeName, launch: Launch | None, record: Recorder
) -> Sighting:
    if launch is None:
        return Sighting()
    identity = Identity(launch.pid, launch.start_time)
    host, rundir = ground.hosts[node], ground.rundir(node)
    process = await host.adopt(identity, node=node)
    if process is None:
        gone = LostMonitor(node, "it is gone")
        vm = VM(node, host, GoneProcess(identity, node=node), gone, rundir)
        return Sighting(Found(launch.role, alive=False), vm)
    found = Found(launch.role, alive=True, held="-S" in process.argv)
    adopted: VM | None = None
    if not process.frozen():
        with contextlib.suppress(MonitorError, TimeoutError):
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                sockets = monitor_sockets(rundir)
                adopted = await VM.adopt(node, host, identity, sockets, rundir, record=record)
    if adopted is None:
        silent = LostMonitor(node, "it did not answer when it was taken over")
        return Sighting(found, VM(node, host, process, silent, rundir))
    process.close()
    with contextlib.suppress(MonitorError):
        vitals = await adopted.observe(ANSWER_DEADLINE_S)
        found = replace(
            found,
            run_state=vitals.run_state,
            migration=vitals.migration,
            colo_mode=vitals.colo_mode,
        )
    return Sighting(found, adopted)
