"""Cut a survivor off from its dead peer, and from clients of its disks that keep it waiting.

Called by `ha.failover` once the peer is proven dead, and when a protection is abandoned; sends the
plans of `colo.plan` on the rescue monitor, and closes NBD connections from outside QEMU.

Invariant: nothing here needs the survivor's main loop, which may be what hangs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coloctl.clock import Deadline
from coloctl.colo import plan
from coloctl.errors import CommandRefused
from coloctl.model.pair import PairSpec, Role
from coloctl.model.wires import Wires
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import run
from coloctl.tasks import side_by_side
from coloctl.vm import VM

#: How often QEMU is asked for what it can cut, when an instance went away before it was cut.
YANK_TRIES = 5


async def free(spec: PairSpec, survivor: VM, role: Role, deadline: Deadline) -> None:
    """Cut every connection between the survivor and its dead peer, and every client of its disks.

    Half a write that an NBD client holds open keeps QEMU from draining the disk: the guest would
    stand still, and ``nbd-server-stop`` would never answer. A yank does not reach NBD clients.
    """
    yanking = yank_peer(spec, survivor, role, deadline)
    if role is Role.PRIMARY:
        await yanking
        return
    exports = Wires(spec, survivor.rundir.parent).exports(survivor.node)
    hanging_up = survivor.host.hang_up(survivor.process.identity, exports)
    await side_by_side(yanking, hanging_up)


async def yank_peer(spec: PairSpec, survivor: VM, role: Role, deadline: Deadline) -> None:
    """Cut what QEMU itself can cut of the connections to the dead peer, out of band.

    In COLO all of its instances are there, so they are cut without asking first: a round trip that
    the guest does not wait for. Where one is absent, QEMU refuses, and is asked which ones it has.

    The survivor has the whole ``deadline`` for its answers: no other node is left, so that giving
    up earlier would gain nothing and end a guest whose machine is only slow.
    """
    ours = (
        plan.peer_instances_secondary(spec)
        if role is Role.SECONDARY
        else plan.peer_instances_primary(spec)
    )
    present: Sequence[Mapping[str, Any]] = ours
    for attempt in range(YANK_TRIES + 1):
        try:
            await run(plan.yank_peer(present, ours), survivor.monitor, deadline=deadline)
        except CommandRefused:
            if attempt == YANK_TRIES:
                raise
        else:
            return
        present = await survivor.monitor.rescue(qmp.query_yank(), deadline.remaining())
