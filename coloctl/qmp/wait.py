"""Wait for a fact: an event wakes, a query decides, never one of them alone.

Called by `colo.protect`, `colo.resync`, `colo.difference` and `ha.failover`; queries go over a
`qmp.monitor`. An event may have come before the wait began, and its content may be out of date. So
each function listens first, asks, and asks again on every event and at least every `RECHECK_S`.
Where QEMU has no event for the fact, it polls.

All raise `DeadlineMissed` when the fact does not come in time, `Unreachable` when QEMU is gone, and
`MonitorError` when the fact can no longer come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from coloctl.clock import Deadline
from coloctl.errors import DeadlineMissed, MonitorError, OutcomeUnknown, Unreachable
from coloctl.model.qapi import JobStatus, MigrationStatus, RunState
from coloctl.qmp import command as qmp
from coloctl.qmp.monitor import Monitor

T = TypeVar("T")

#: Seconds after which a fact is asked for again even if no event came.
RECHECK_S = 0.5
#: Seconds between two polls of a fact that has no event.
POLL_S = 0.02


@dataclass(frozen=True)
class Job:
    """A line of ``query-jobs``; a job that is not listed (any more) is ``null``."""

    id: str
    status: JobStatus
    current: int = 0  #: bytes, for block jobs
    total: int = 0  #: bytes; grows while the guest writes
    error: str | None = None


_JOB_ENDED = frozenset({JobStatus.CONCLUDED, JobStatus.NULL})
_MIGRATION_BEGINS = frozenset({"none", "setup", "active"})
_MIGRATION_ENDED = frozenset(
    {MigrationStatus.COMPLETED, MigrationStatus.FAILED, MigrationStatus.CANCELLED}
)


async def job(monitor: Monitor, job_id: str, deadline_s: float) -> Job:
    """Query the job as it is now."""
    for line in await monitor.execute(qmp.query_jobs(), deadline_s):
        if line["id"] == job_id:
            return Job(
                job_id,
                JobStatus(line["status"]),
                line["current-progress"],
                line["total-progress"],
                line.get("error"),
            )
    return Job(job_id, JobStatus.NULL)


async def until_job(
    monitor: Monitor,
    job_id: str,
    statuses: Collection[JobStatus],
    deadline_s: float,
    *,
    progress: Callable[[Job], None] | None = None,
) -> Job:
    """Wait until the job has one of ``statuses``; ``progress`` gets every look before that."""

    async def look(remaining_s: float) -> Job | None:
        seen = await job(monitor, job_id, remaining_s)
        if seen.status in statuses:
            return seen
        if seen.status in _JOB_ENDED:
            why = f": {seen.error}" if seen.error else ""
            raise MonitorError(f"Job {job_id} on {monitor.node} ended as {seen.status}{why}.")
        if progress:
            progress(seen)
        return None

    what = f"job {job_id} in {_either(statuses)}"
    return await _until(monitor, what, deadline_s, ("JOB_STATUS_CHANGE",), look)


async def until_migration(
    monitor: Monitor, statuses: Collection[MigrationStatus], deadline_s: float
) -> MigrationStatus:
    """Wait until the migration of this QEMU, out or in, has one of ``statuses``.

    Its ``MIGRATION`` event comes only with the migration capability ``events``.
    """

    async def look(remaining_s: float) -> MigrationStatus | None:
        answer = await monitor.execute(qmp.query_migrate(), remaining_s)
        status = MigrationStatus(answer.get("status", MigrationStatus.NONE))
        if status in statuses:
            return status
        if status in _MIGRATION_ENDED:
            why = f": {answer['error-desc']}" if answer.get("error-desc") else ""
            raise MonitorError(f"The migration of {monitor.node} ended as {status}{why}.")
        return None

    what = f"migration {_either(statuses)}"
    return await _until(monitor, what, deadline_s, ("MIGRATION",), look)


async def until_little_memory_left(
    monitor: Monitor,
    little: int,
    deadline_s: float,
    look: Callable[[Mapping[str, Any]], object] = lambda _: None,
) -> None:
    """Wait until all memory was sent once, and at most ``little`` bytes must be sent again.

    ``look`` is called with each answer to `query-migrate`. Returns as well when the migration is
    over, however it ended. Raises `DeadlineMissed`.
    """

    async def much(remaining_s: float) -> bool:
        answer = await monitor.execute(qmp.query_migrate(), remaining_s)
        look(answer)
        if answer.get("status") not in _MIGRATION_BEGINS:
            return False
        ram = answer.get("ram", {})
        # The count is 1 while the first pass runs, and grows with every look for dirty pages.
        return int(ram.get("dirty-sync-count", 0)) < 2 or int(ram.get("remaining", 0)) > little

    await _poll(monitor, f"at most {little} bytes of memory left", deadline_s, much)


async def until_runstate(
    monitor: Monitor, states: Collection[RunState], deadline_s: float
) -> RunState:
    """Wait until the guest is in one of ``states``."""

    async def look(remaining_s: float) -> RunState | None:
        answer = await monitor.execute(qmp.query_status(), remaining_s)
        state = RunState(answer["status"])
        return state if state in states else None

    events = ("STOP", "RESUME", "SHUTDOWN", "RESET", "SUSPEND", "WAKEUP", "GUEST_PANICKED")
    what = f"run state {_either(states)}"
    return await _until(monitor, what, deadline_s, events, look)


async def until_export_gone(monitor: Monitor, export_id: str, deadline_s: float) -> None:
    """Wait until the block export is gone."""

    async def present(remaining_s: float) -> bool:
        listed = await monitor.execute(qmp.query_block_exports(), remaining_s)
        return any(export["id"] == export_id for export in listed)

    await _poll(monitor, f"end of export {export_id}", deadline_s, present)


async def _until(
    monitor: Monitor,
    what: str,
    deadline_s: float,
    events: tuple[str, ...],
    look: Callable[[float], Awaitable[T | None]],
) -> T:
    deadline = Deadline(deadline_s)
    # One waiting event is enough: it wakes, the query shows the rest.
    with monitor.listen(*events, bound=1) as stream:
        while not deadline.expired:
            with suppress(DeadlineMissed, OutcomeUnknown):
                if (found := await look(deadline.remaining())) is not None:
                    return found
                await stream.next(deadline.at_most(RECHECK_S))
    raise _missed(monitor, what, deadline_s)


async def _poll(
    monitor: Monitor, what: str, deadline_s: float, present: Callable[[float], Awaitable[object]]
) -> None:
    deadline = Deadline(deadline_s)
    with suppress(OutcomeUnknown, DeadlineMissed):
        while await present(deadline.remaining()):
            if deadline.expired:
                break
            await asyncio.sleep(POLL_S)
        else:
            return
    raise _missed(monitor, what, deadline_s)


def _missed(monitor: Monitor, what: str, deadline_s: float) -> MonitorError:
    if monitor.gone:
        return Unreachable(f"The monitor of {monitor.node} is gone while waiting for {what}.")
    return DeadlineMissed(f"{monitor.node} did not reach {what} within {deadline_s:g} s.")


def _either(words: Collection[str]) -> str:
    return " or ".join(sorted(words))
