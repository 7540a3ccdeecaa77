"""Look at what QEMU makes of the overlays of a promoted secondary, and steer how it may end.

Called by `supervisor.acts.merge`; asks QEMU through its command monitor, with names of
`machine.blockdev` and plans of `colo.plan` and `colo.overlay_plan`. On promotion QEMU commits the
active and the hidden overlay of each disk into its image by a job of its own, which no query lists
and no event announces; it shows in the block graph alone.

Invariant: a merge is over only where no overlay is in the graph any more; from then on, and not
before, the guest writes to the image.
"""

from __future__ import annotations

from dataclasses import dataclass

from coloctl.clock import Deadline
from coloctl.colo import overlay_plan, plan
from coloctl.machine import blockdev
from coloctl.model.pair import PairSpec
from coloctl.model.view import Merge
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import run
from coloctl.vm import VM

#: For an order to a QEMU that is busy with its merge, seconds.
STAY_DEADLINE_S = 10.0

#: The filter that QEMU puts above an overlay for as long as its commit runs.
_COMMITTING = "mirror_top"


@dataclass(frozen=True)
class Look:
    """One look at a merge; sizes in bytes."""

    merge: Merge
    disks: frozenset[str] = frozenset()  #: ids of those whose overlays are in the graph yet
    committing: int = 0  #: how many of these QEMU is still merging
    held: int = 0  #: what the overlays take on disk
    left: int = 0  #: what is still to be read from them


async def look(spec: PairSpec, vm: VM, deadline_s: float) -> Look:
    """Ask ``vm``, a promoted secondary, how far its merge is; raises `MonitorError`."""
    listed = await vm.execute(qmp.query_named_block_nodes(), deadline_s)
    wanted = {name for i, _ in enumerate(spec.disks) for name in blockdev.overlay_ids(i)}
    overlays = [node for node in listed if node.get("node-name") in wanted]
    if not overlays:
        return Look(Merge.NONE)
    held = sum(int(node.get("image", {}).get("actual-size", 0)) for node in overlays)
    committing = [node for node in listed if node.get("drv") == _COMMITTING]
    left = sum(
        int(bitmap.get("count", 0))
        for node in (*overlays, *committing)
        for bitmap in node.get("dirty-bitmaps", ())
        if "name" not in bitmap  # the job's own
    )
    names = {node["node-name"] for node in overlays}
    disks = frozenset(
        disk.id for i, disk in enumerate(spec.disks) if names & set(blockdev.overlay_ids(i))
    )
    # One commit runs per disk that still has overlays; one that failed is not there any more.
    state = Merge.UNDER_WAY if len(committing) >= len(disks) else Merge.REFUSED
    return Look(state, disks, len(committing), held, left)


async def stay_when_off(vm: VM, *, stay: bool) -> None:
    """Order the QEMU to stay, or to end, when its guest powers off; raises `MonitorError`.

    One that ends in the middle of a merge would leave it to the next start.
    """
    await run(plan.stay_when_off(stay=stay), vm.monitor, deadline=Deadline(STAY_DEADLINE_S))


async def log_no_more(vm: VM) -> None:
    """Let the QEMU note nothing more: the merges are on record; raises `MonitorError`."""
    await run(overlay_plan.log_no_merges(), vm.monitor, deadline=Deadline(STAY_DEADLINE_S))
