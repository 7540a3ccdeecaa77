"""Find out before the guest runs whether both nodes' disks are equal, if that is soon known.

Called by `supervisor.acts.start` and by its dry run in `cli.verbs.start`; compares with
`machine.image`, and by `colo.digests` where each machine has its own image. Equal disks need no
copy: the guest is held at its first instruction and boots as a protected one. If they are not known
to be equal, nothing is lost: the guest runs at once, and only what differs is sent to the other
node while it serves (`colo.difference`).

Invariant: True only after every byte that a guest can read was compared, with any record
about the disks. The records decide only whether comparing is worth a wait.
"""

from __future__ import annotations

from coloctl.colo import digests, launch
from coloctl.colo.companion import Companions, Worth
from coloctl.colo.ground import Ground
from coloctl.errors import DeadlineMissed
from coloctl.machine import image
from coloctl.model.pair import NODES, PairSpec
from coloctl.model.units import MIB

#: How long a guest waits for the answer, seconds: new disks and small ones take less than one, and
#: a guest that boots under protection is worth a few more. Longer, it had better run.
COMPARE_WAIT_S = 5.0

#: Disks that were written separately are compared only where both together have less than this: a
#: stop within seconds of a failover leaves equal disks, and so do guests that write nothing.
SMALL_BYTES = 256 * MIB


def worth_comparing(companions: Companions, allocated_bytes: int) -> bool:
    """Decide whether disks of that many allocated bytes on both nodes may be equal.

    Any run of the guest makes them differ: it goes on alone for a while when it is stopped, and
    after a failover. So they are equal when they are new, or by chance.
    """
    apart = any(
        one.doubt or one.state in (Worth.DIVERGED, Worth.RESYNC_TARGET, Worth.OVERLAY_PENDING)
        for one in companions.values()
    )
    differ = len({one.generation for one in companions.values()}) > 1
    return allocated_bytes < SMALL_BYTES if apart or differ else True


async def disks_alike(spec: PairSpec, ground: Ground, companions: Companions) -> bool:
    """Return whether both nodes' disks are equal; False also where that is not soon known.

    Raises `PreconditionFailed` where a disk is not there on both nodes, or has two sizes.
    """
    allocated = await launch.require_same_sizes(spec, ground)
    if not worth_comparing(companions, allocated):
        return False
    host = ground.hosts[NODES[0]]
    try:
        if not ground.facts.one_machine:  # no program sees both
            return await digests.alike(spec, ground, COMPARE_WAIT_S)
        for disk in spec.disks:
            if not await image.same_content(
                disk.image["a"],
                disk.image["b"],
                disk.format,
                host.run,
                qemu_img=ground.node(NODES[0]).qemu_img,
                deadline_s=COMPARE_WAIT_S / len(spec.disks),
            ):
                return False
    except (DeadlineMissed, TimeoutError):
        return False
    return True
