"""List the steps that bring disks in sync and compare both copies; pure.

Called by `supervisor.dialogue`; takes the sequences of `colo.plan` and `colo.difference_plan`.
"""

from __future__ import annotations

from coloctl.colo import difference_plan, mirror_plan, pages, plan
from coloctl.colo.ground import Ground
from coloctl.model.pair import NodeName, PairSpec, other
from coloctl.nbd.scan import Grain
from coloctl.qmp import command as qmp
from coloctl.qmp import ram
from coloctl.supervisor.dialogue_items import Items, act, command, commands


def joined(spec: PairSpec, primary: NodeName) -> Items:
    """Attach the replicas; the disks are equal already."""
    return commands(primary, plan.attach_replicas(spec))


def compared(spec: PairSpec, ground: Ground, primary: NodeName) -> Items:
    """Send only what differs; one turn is shown, and there are as many as the guest needs."""
    socket, chunk = ground.rundir(primary) / "resync.sock", Grain().chunk
    turns = [
        item
        for disk, _ in enumerate(spec.disks)
        for item in (
            *commands(primary, difference_plan.take_turn(disk, 1, chunk)),
            act(primary, "send the chunks that the bitmap names", ""),
        )
    ]
    return [
        *commands(primary, difference_plan.begin(spec, socket, chunk)),
        act(primary, "hash every disk on both nodes, send the chunks that differ", ""),
        command(primary, qmp.stop(), "the last turn needs a guest that does not write"),
        *turns,
        *commands(primary, plan.attach_replicas(spec)),
        command(primary, qmp.cont(), ""),
        *commands(primary, difference_plan.drop(spec)),
    ]


def verified(spec: PairSpec, ground: Ground, primary: NodeName, checkpoint: Items) -> Items:
    """Compare both copies while the guest runs; ``checkpoint`` has the steps of one checkpoint."""
    return [
        *commands(primary, difference_plan.drop(spec)),
        *commands(primary, difference_plan.show(spec, ground.rundir(primary) / "resync.sock")),
        act(primary, "hash every disk on both nodes, and compare", "nothing is written"),
        *checkpoint,
        act(primary, "read again what differed, after each of four checkpoints", ""),
        *commands(primary, difference_plan.drop(spec)),
    ]


def compared_pages(primary: NodeName, checkpoint: Items) -> Items:
    """Compare the memory of both, by the chunk; ``checkpoint`` has the steps of one checkpoint."""
    nodes = (primary, other(primary))
    return [
        *(
            command(node, one, why)
            for node in nodes
            for one, why in (
                (ram.query_memory_size_summary(), ""),
                (ram.info_mtree(), "which addresses are memory and no device"),
                (ram.remove_fd(pages.FDSET), ""),
                (ram.add_fd(pages.FDSET), "memory without a name, for a chunk at a time"),
            )
        ),
        *(act(node, "pmemsave of every MiB, hash each page", "") for node in nodes),
        *checkpoint,
        *(act(node, "the same again, compare pages that did not change", "") for node in nodes),
        act(primary, f"look again at pages that differ, after {pages.LOOKS} checkpoints", ""),
        *(command(node, ram.remove_fd(pages.FDSET), "") for node in nodes),
    ]


def mirrored(spec: PairSpec, primary: NodeName) -> Items:
    """Send every block."""
    ready = [
        act(primary, f"wait until job {mirror_plan.resync_job(i)} is ready", "")
        for i, _ in enumerate(spec.disks)
    ]
    finished = [item for i, _ in enumerate(spec.disks) for item in _finished(primary, i)]
    return [
        *commands(primary, mirror_plan.mirror_disks(spec, spec.policy.mirror_rate)),
        *ready,
        command(primary, qmp.stop(), "the last pass needs a guest that does not write"),
        *finished,
        *commands(primary, plan.attach_replicas(spec)),
        command(primary, qmp.cont(), ""),
    ]


def _finished(primary: NodeName, disk: int) -> Items:
    job = mirror_plan.resync_job(disk)
    return [
        *commands(primary, mirror_plan.finish_mirror(disk)),
        act(primary, f"wait until job {job} is concluded", ""),
        command(primary, qmp.job_dismiss(job), ""),
    ]
