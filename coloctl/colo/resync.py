"""Disks brought in sync while the guest serves: mirror -> ready -> one short pause -> attached."""

from __future__ import annotations

from collections.abc import Callable

from coloctl.clock import Deadline
from coloctl.colo import plan
from coloctl.errors import MonitorError, ResyncFailed
from coloctl.model.pair import PairSpec
from coloctl.model.qapi import JobStatus
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import run
from coloctl.qmp.wait import Job, until_job
from coloctl.vm import VM

#: Called with bytes copied and bytes to copy, of all disks together.
ByteReport = Callable[[int, int], None]

#: The last pass of a mirror in READY, seconds; the guest is stopped meanwhile.
FINISH_DEADLINE_S = 30.0


async def mirror_and_join(
    spec: PairSpec, primary: VM, *, deadline: Deadline, report: ByteReport
) -> None:
    """Both sides hold the same disks, and every guest write goes to both; the guest runs again.

    The guest is stopped only from the last pass of the mirror until the replica has joined the
    quorum, and is resumed whatever happens. Raises `ResyncFailed`.
    """
    await run(plan.mirror_disks(spec), primary.monitor, deadline=deadline)
    await _until_ready(spec, primary, deadline, report)
    await primary.execute(qmp.stop(), deadline.at_most(10))
    try:
        for disk, _ in enumerate(spec.disks):
            await _finish(primary, disk, deadline)
        await run(plan.attach_replicas(spec), primary.monitor, deadline=deadline)
    finally:
        await primary.execute(qmp.cont(), 10)


async def _until_ready(spec: PairSpec, primary: VM, deadline: Deadline, report: ByteReport) -> None:
    """Every mirror follows the guest's writes."""
    done: dict[str, Job] = {}

    def seen(job: Job) -> None:
        done[job.id] = job
        report(sum(one.current for one in done.values()), sum(one.total for one in done.values()))

    for disk, described in enumerate(spec.disks):
        try:
            seen(
                await until_job(
                    primary.monitor,
                    plan.resync_job(disk),
                    {JobStatus.READY},
                    deadline.remaining(),
                    progress=seen,
                )
            )
        except MonitorError as error:
            raise ResyncFailed(
                f"Disk {described.id} could not be mirrored: {error.message}",
                stage="resync",
                hint="the replication link, or the other node's disk",
            ) from error


async def _finish(primary: VM, disk: int, deadline: Deadline) -> None:
    """The mirror of one disk has ended without an error, and is forgotten."""
    job_id = plan.resync_job(disk)
    await run(plan.finish_mirror(disk), primary.monitor, deadline=deadline)
    job = await until_job(
        primary.monitor, job_id, {JobStatus.CONCLUDED}, deadline.at_most(FINISH_DEADLINE_S)
    )
    await primary.execute(qmp.job_dismiss(job_id))
    if job.error:
        raise ResyncFailed(f"The mirror could not be completed: {job.error}", stage="resync")


async def drop_jobs(spec: PairSpec, primary: VM) -> None:
    """No mirror of this pair is left on ``primary``, whether it ran, failed or never began."""
    listed = {str(job["id"]): str(job["status"]) for job in await primary.execute(qmp.query_jobs())}
    for disk, _ in enumerate(spec.disks):
        job_id = plan.resync_job(disk)
        if job_id not in listed:
            continue
        if listed[job_id] != JobStatus.CONCLUDED:
            await run(plan.drop_mirror(disk), primary.monitor, deadline=Deadline(FINISH_DEADLINE_S))
            await until_job(primary.monitor, job_id, {JobStatus.CONCLUDED}, FINISH_DEADLINE_S)
        await primary.execute(qmp.job_dismiss(job_id))
