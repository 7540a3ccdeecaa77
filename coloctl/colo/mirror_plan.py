"""Build the QMP sequences of a full copy by ``blockdev-mirror``; pure (`colo.plan`).

Called by `colo.resync`, which runs them, by `colo.retune` and `supervisor.dialogue_disks`; the
commands are those of `qmp.command`.

Invariant: a mirror is ended in READY with the guest stopped, or its replica is given up.
"""

from __future__ import annotations

from coloctl.colo.plan import Plan
from coloctl.model.pair import PairSpec
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import Step


def resync_job(disk: int) -> str:
    """Return the job id of the mirror of one disk."""
    return f"resync{disk}"


def mirror_disks(spec: PairSpec, rate: int = 0) -> Plan:
    """Copy every disk to its replica while the guest writes; ``rate`` as in `Policy`."""
    return tuple(
        Step(
            qmp.blockdev_mirror(resync_job(i), f"colo-disk{i}", f"nbd{i}", speed=rate or None),
            why="full copy, following every write of the guest" if i == 0 else "",
        )
        for i, _ in enumerate(spec.disks)
    )


def finish_mirror(disk: int) -> Plan:
    """End the mirror of one disk with both sides equal; the guest must be stopped."""
    why = "a cancel in READY completes the copy without changing the graph"
    return (Step(qmp.block_job_cancel(resync_job(disk)), why=why),)


def drop_mirror(disk: int) -> Plan:
    """End the mirror of one disk, its copy incomplete; it may have ended by itself meanwhile."""
    ended = ("cannot accept command verb 'cancel'", "DeviceNotActive")
    cancel = qmp.block_job_cancel(resync_job(disk), force=True)
    return (Step(cancel, why="the replica is given up", tolerate=ended),)
