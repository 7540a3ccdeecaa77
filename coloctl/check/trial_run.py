"""Run one direction of a trial: enter COLO, take checkpoints, lose one side, go on with the other.

Called by `check.trial`; starts the pair with `check.pair`, protects it with `colo.protect` and
fails over with `ha.failover`.

Invariant: when `run_direction` ends, on any path, no QEMU of its pair runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from coloctl.check import pair
from coloctl.check.signs import examine
from coloctl.check.verdict import ColoSupport, Direction
from coloctl.clock import Deadline
from coloctl.colo.checkpoint import CheckpointStats
from coloctl.colo.ground import Ground
from coloctl.colo.known_bugs import Combination, Signs, explain
from coloctl.colo.protect import Protecting, protect
from coloctl.errors import (
    ColoctlError,
    CommandRefused,
    FailoverRefused,
    LaunchError,
    MigrationFailed,
)
from coloctl.ha.failover import Failover
from coloctl.ha.fencing import KILL_DEADLINE_S
from coloctl.model.pair import PairSpec, Role
from coloctl.model.timeline import FailoverStep
from coloctl.tasks import first_of
from coloctl.vm import VM

T = TypeVar("T")

#: Checkpoints before the failover. QEMU 7.2 and 10.0 deadlock under TCG by chance: in 23 pairs with
#: a guest that idled after thirteen at most, in 28 with one that booted after three at most.
CHECKPOINTS = 25
SIDES = ("primary", "secondary")

#: After this stage there is nothing left to prove.
LAST_STAGE = "verified"

#: Called when a stage begins.
StageReport = Callable[[str], None]


class _Died(Exception):
    """A QEMU ended although it was not asked to."""


class _TrialRun:
    """The state of one direction while it runs."""

    def __init__(
        self,
        ground: Ground,
        machine: str,
        killed: Role,
        *,
        deadline: Deadline,
        stage_s: float,
        report: StageReport,
    ) -> None:
        self.ground = ground
        self.machine = machine
        self.killed = killed
        self.deadline = deadline
        self.stage_s = stage_s
        self.report = report
        self.stage = "prepare"
        self.vms: list[VM] = []
        self.stats = CheckpointStats()
        self.failover_ms: float | None = None
        self.limit: asyncio.Timeout

    def enter(self, stage: str) -> None:
        """Enter a stage, and begin its share of the time."""
        self.stage = stage
        self.report(stage)
        now = asyncio.get_running_loop().time()
        self.limit.reschedule(now + self.deadline.at_most(self.stage_s))

    async def run(self) -> None:
        """Run the pair all the way, or raise the error that stopped it."""
        async with asyncio.timeout(None) as self.limit:
            self.enter("prepare")
            base_port = await pair.free_base_port(self.ground.hosts["a"])
            spec = pair.small_pair(self.ground.folder, self.machine, self.ground.accel, base_port)
            # Both start orders: a guest that runs already, and one that COLO lets go.
            paused = self.killed is Role.SECONDARY
            primary, secondary = await pair.start(
                spec, self.ground, self.vms, paused=paused, enter=self.enter
            )
            await _or_death(self._protect(spec, primary, secondary), self.vms)
            self.enter("failover")
            if self.killed is Role.PRIMARY:
                survivor, lost, role = secondary, primary, Role.SECONDARY
            else:
                survivor, lost, role = primary, secondary, Role.PRIMARY
            await _or_death(self._fail_over(spec, survivor, lost, role), [survivor])
            self.enter(LAST_STAGE)

    async def _protect(self, spec: PairSpec, primary: VM, secondary: VM) -> None:
        act = Protecting(
            spec,
            primary,
            secondary,
            self.ground.node(primary.node).binary.dialect,
            in_sync=True,
            delay_ms=spec.checkpoint.delay_ms,
        )
        await protect(
            act,
            deadline=self.deadline,
            report=lambda step, _done, _total: self.enter(step),
            fact=lambda _fact, _why: None,
        )
        self.enter("checkpoints")
        with primary.monitor.listen("STOP", "RESUME") as events:
            while self.stats.count < CHECKPOINTS:
                event = await events.next(self.deadline.remaining())
                note = self.stats.stop if event.name == "STOP" else self.stats.resume
                note(event.at_s)

    async def _fail_over(self, spec: PairSpec, survivor: VM, lost: VM, role: Role) -> None:
        failover = Failover(spec, survivor, lost, role)
        await failover.promote(await failover.fence(), _no_claim())
        self.failover_ms = failover.steps.times()[FailoverStep.RUNNING]

    async def end(self) -> None:
        """Kill every QEMU of the pair; raises `FencingFailed` for one without a proof."""
        ends = (vm.kill(KILL_DEADLINE_S) for vm in self.vms)
        for result in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def result(self, outcome: ColoSupport, sentence: str, **more: str) -> Direction:
        """Return the direction as far as it came."""
        figures = self.stats.view(pair.DELAY_MS)
        return Direction(
            killed=self.killed,
            outcome=outcome,
            stage=self.stage,
            sentence=sentence,
            checkpoints=figures.count,
            pause_p50_ms=figures.pause_p50_ms,
            failover_ms=self.failover_ms,
            **more,
        )


async def _no_claim() -> None:
    """Claim nothing: no other supervisor knows of this pair."""


async def run_direction(
    ground: Ground,
    machine: str,
    killed: Role,
    *,
    deadline: Deadline,
    stage_s: float,
    report: StageReport,
) -> Direction:
    """Run a pair until ``killed`` was killed and the other went on; its QEMUs are gone afterwards.

    ``stage_s`` bounds each stage, ``deadline`` all of them; the questions to a hanging pair come on
    top. Raises `PreconditionFailed` and the like where this machine, not QEMU, was in the way.
    """
    it = _TrialRun(ground, machine, killed, deadline=deadline, stage_s=stage_s, report=report)
    try:
        await it.run()
    except (_Died, TimeoutError, ColoctlError) as error:
        if isinstance(error, ColoctlError) and not it.vms and not isinstance(error, LaunchError):
            raise
        return await _failed(it, error)
    finally:
        await it.end()
    return it.result(ColoSupport.WORKS, f"The {killed} was killed and the other side lived on.")


async def _failed(it: _TrialRun, error: Exception) -> Direction:
    """Find why it failed, by asking the QEMUs that are still there."""
    primary = it.vms[0] if it.vms else None
    secondary = it.vms[1] if len(it.vms) > 1 else None
    signs = await examine(primary, secondary)
    dialect = it.ground.node("a").binary.dialect
    bug = explain(Combination(dialect, it.ground.accel, it.machine), signs)
    outcome, sentence = _outcome(it, error, signs)
    return it.result(
        outcome,
        sentence,
        last_words=signs.words or (error.tail if isinstance(error, LaunchError) else ""),
        known_bug=bug.name if bug else "",
    )


def _outcome(it: _TrialRun, error: Exception, signs: Signs) -> tuple[ColoSupport, str]:
    """Return the outcome and a sentence; a pair that was merely too slow proves nothing."""
    at = f'at stage "{it.stage}"'
    for side, aborted in (
        ("primary", signs.primary_aborted),
        ("secondary", signs.secondary_aborted),
    ):
        if aborted:
            return ColoSupport.FAILS, f"The {side} aborted {at}."
    for side, hangs in zip(SIDES, (signs.primary_hangs, signs.secondary_hangs), strict=True):
        if hangs:
            return ColoSupport.FAILS, f"The {side} hangs {at}: only its rescue monitor answers."
    if signs.migration_completed and isinstance(error, MigrationFailed):
        return ColoSupport.FAILS, "The first migration completed and did not become COLO."
    if isinstance(error, TimeoutError):
        return ColoSupport.UNKNOWN, f"The pair did not get on {at}, and both sides still answer."
    if isinstance(error, _Died | LaunchError | CommandRefused | FailoverRefused | MigrationFailed):
        return ColoSupport.FAILS, getattr(error, "message", str(error))
    return ColoSupport.UNKNOWN, getattr(error, "message", str(error))


async def _or_death(act: Coroutine[Any, Any, T], vms: Sequence[VM]) -> T:
    """Return the result of ``act``; raise `_Died` as soon as one of ``vms`` ends meanwhile."""
    async with first_of(act, *(vm.process.wait() for vm in vms)) as (acting, *deaths):
        for death, vm in zip(deaths, vms, strict=True):
            if death.done():
                raise _Died(f"QEMU of node {vm.node} ended: {death.result()}.")
        result: T = await acting
        return result
