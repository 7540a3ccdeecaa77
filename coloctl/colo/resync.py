"""Make the disks of a new secondary equal while the guest serves, with one short pause.

Called by `colo.protect`, and by `ha.failover` to drop its jobs. Where the replica held nearly the
same, only what differs is sent (`colo.difference`). Else, and where that fails, the disks are
mirrored (`colo.mirror_plan`): mirror -> ready -> pause -> attached. QEMU's jobs are watched with
`qmp.wait`.

Invariant: the guest is resumed on every path out of the pause.
"""

from __future__ import annotations

from collections.abc import Callable

from coloctl.clock import Deadline
from coloctl.colo import difference, mirror_plan, plan, retune
from coloctl.colo.programs import NotComparable
from coloctl.errors import DeadlineMissed, MonitorError, ResyncFailed
from coloctl.model.copied import CopyReport, Method
from coloctl.model.pair import PairSpec
from coloctl.model.qapi import JobStatus
from coloctl.qmp import command as qmp
from coloctl.qmp.sequence import run
from coloctl.qmp.wait import Job, until_job
from coloctl.vm import VM

#: Called with bytes copied and bytes to copy, of all disks together.
ByteReport = Callable[[int, int], None]
#: Called at each step: its name, and bytes done and to do where that is known.
StepReport = Callable[[str, int | None, int | None], None]

#: The last pass of a mirror in READY, seconds; the guest is stopped meanwhile.
FINISH_DEADLINE_S = 30.0


async def join(
    spec: PairSpec,
    primary: VM,
    secondary: VM,
    *,
    deadline: Deadline,
    report: StepReport,
    known: bool,
    rate: Callable[[], int] = lambda: 0,
) -> CopyReport:
    """Make both sides' disks equal and attach the replicas; the guest runs again.

    Afterwards every guest write goes to both. ``known``: the replica held this pair's disk once, so
    that comparing is worth it. ``rate`` is asked when the copy begins: bytes per second over the
    link while the guest runs, 0 for no limit. Raises `ResyncFailed`.
    """
    why = ""
    if known:
        report("compare", 0, None)
        try:
            return await difference.send(
                spec,
                primary,
                secondary,
                deadline=deadline,
                report=lambda done, total: report("compare", done, total),
                rate=rate(),
            )
        except NotComparable as error:
            why = error.why
            if not secondary.process.alive():
                raise ResyncFailed(f"The replica is gone: {why}", stage="resync") from error
    report("mirror", 0, None)
    return await mirror_and_join(
        spec,
        primary,
        deadline=deadline,
        report=lambda done, total: report("mirror", done, total),
        rate=rate,
        why=why,
    )


async def mirror_and_join(
    spec: PairSpec,
    primary: VM,
    *,
    deadline: Deadline,
    report: ByteReport,
    rate: Callable[[], int] = lambda: 0,
    why: str = "",
) -> CopyReport:
    """Make both sides' disks equal by sending every block; ``why`` is kept in the report.

    Otherwise as `join`. The guest is stopped only from the last pass of the mirror until the
    replica has joined the quorum, and is resumed on every path. ``rate`` is asked when the copy
    begins, bytes per second; a later change is sent to QEMU by its author. Raises `ResyncFailed`.
    """
    full = sum(await difference.disk_sizes(spec, primary))
    given = rate()
    await run(mirror_plan.mirror_disks(spec, given), primary.monitor, deadline=deadline)
    if (now := rate()) != given:  # changed before there was a job to be limited
        await run(retune.limit_mirrors(spec, now), primary.monitor, deadline=deadline)
    sent = await _until_ready(spec, primary, deadline, report)
    try:
        await primary.execute(qmp.stop(), deadline.at_most(10))
        for disk, _ in enumerate(spec.disks):
            await _finish(primary, disk, deadline)
        await run(plan.attach_replicas(spec), primary.monitor, deadline=deadline)
    finally:
        await primary.execute(qmp.cont(), 10)
    return CopyReport(sent, sent, full, Method.FULL, why)


async def _until_ready(spec: PairSpec, primary: VM, deadline: Deadline, report: ByteReport) -> int:
    """Wait until every mirror follows the guest's writes; return how many bytes that took.

    A copy has no fixed end: ``deadline`` is renewed whenever one of them has come further.
    """
    done: dict[str, Job] = {}

    def seen(job: Job) -> None:
        if (before := done.get(job.id)) is None or job.current > before.current:
            deadline.renew()
        done[job.id] = job
        report(sum(one.current for one in done.values()), sum(one.total for one in done.values()))

    for disk, described in enumerate(spec.disks):
        try:
            seen(await _ready(primary, mirror_plan.resync_job(disk), deadline, seen))
        except MonitorError as error:
            raise ResyncFailed(
                f"Disk {described.id} could not be mirrored: {error.message}",
                stage="resync",
                hint="the replication link, or the other node's disk",
            ) from error
    return sum(job.current for job in done.values())


async def _ready(primary: VM, job_id: str, deadline: Deadline, seen: Callable[[Job], None]) -> Job:
    """Wait for one mirror as long as ``seen`` renews ``deadline``; raises `DeadlineMissed`."""
    while True:
        try:
            return await until_job(
                primary.monitor,
                job_id,
                {JobStatus.READY},
                deadline.remaining(),
                progress=seen,
            )
        except DeadlineMissed:
            if deadline.expired:
                raise


async def _finish(primary: VM, disk: int, deadline: Deadline) -> None:
    """End the mirror of one disk without an error, and dismiss its job."""
    job_id = mirror_plan.resync_job(disk)
    await run(mirror_plan.finish_mirror(disk), primary.monitor, deadline=deadline)
    job = await until_job(
        primary.monitor, job_id, {JobStatus.CONCLUDED}, deadline.at_most(FINISH_DEADLINE_S)
    )
    await primary.execute(qmp.job_dismiss(job_id))
    if job.error:
        raise ResyncFailed(f"The mirror could not be completed: {job.error}", stage="resync")


async def drop_jobs(spec: PairSpec, primary: VM) -> None:
    """Remove mirrors and comparisons of this pair from ``primary``, however far one had come."""
    await difference.drop(spec, primary)
    listed = {str(job["id"]): str(job["status"]) for job in await primary.execute(qmp.query_jobs())}
    for disk, _ in enumerate(spec.disks):
        job_id = mirror_plan.resync_job(disk)
        if job_id not in listed:
            continue
        if listed[job_id] != JobStatus.CONCLUDED:
            await run(
                mirror_plan.drop_mirror(disk), primary.monitor, deadline=Deadline(FINISH_DEADLINE_S)
            )
            await until_job(primary.monitor, job_id, {JobStatus.CONCLUDED}, FINISH_DEADLINE_S)
        await primary.execute(qmp.job_dismiss(job_id))
