"""Cut a survivor off from its dead peer, and from clients of its disks that keep it waiting.

Called by `ha.failover` once the peer is proven dead, and when a protection is abandoned; sends the
plans of `colo.plan` on the rescue monitor, and closes NBD connections from outside QEMU.

Invariant: nothing here needs the survivor's main loop, which may be what hangs.
"""

from __future__ import annotations

from coloctl.clock import Deadline
from coloctl.colo import plan
from coloctl.errors import CommandRefused
from coloctl.model.pair import PairSpec, Role
from coloctl.model.wires import Wires
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import run
from coloctl.vm import VM

#: How often a yank is built again when an instance went away between asking and yanking.
YANK_TRIES = 5


async def free(spec: PairSpec, survivor: VM, role: Role, deadline: Deadline) -> None:
    """Cut every connection between the survivor and its dead peer, and every client of its disks.

    Half a write that an NBD client holds open keeps QEMU from draining the disk: the guest would
    stand still, and ``nbd-server-stop`` would never answer. A yank does not reach NBD clients.
    """
    if role is Role.SECONDARY:
        exports = Wires(spec, survivor.rundir.parent).exports(survivor.node)
        await survivor.host.hang_up(survivor.process.identity, exports)
    await yank_peer(spec, survivor, role, deadline)


async def yank_peer(spec: PairSpec, survivor: VM, role: Role, deadline: Deadline) -> None:
    """Cut what QEMU itself can cut of the connections to the dead peer, out of band.

    The survivor has the whole ``deadline`` for its answers: no other node is left, so that giving
    up earlier would gain nothing and end a guest whose machine is only slow.
    """
    ours = (
        plan.peer_instances_secondary(spec)
        if role is Role.SECONDARY
        else plan.peer_instances_primary(spec)
    )
    for attempt in range(YANK_TRIES):
        present = await survivor.monitor.rescue(qmp.query_yank(), deadline.remaining())
        try:
            await run(plan.yank_peer(present, ours), survivor.monitor, deadline=deadline)
        except CommandRefused:
            if attempt == YANK_TRIES - 1:
                raise
        else:
            return
