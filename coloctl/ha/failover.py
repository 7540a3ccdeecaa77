"""Fail a pair over: prove one node dead, then let the other run the guest alone.

Called by `supervisor.acts.failover`, and by `check.trial_run` without a supervisor; fences through
`ha.fencing`, cuts the survivor off through `ha.cutoff`, and sends the plans of `colo.plan`. Calls
nothing above itself: what a supervisor has to contribute comes in as a value.

Invariant: no command that lets a survivor run on is sent before the fence returned and the claim
of the generation was made. Its connections to a peer are cut before that only where the kernel has
reported the peer's death. docs/life-of-a-pair.md describes the failure of each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

from coloctl.clock import CLOCK, Clock, Deadline
from coloctl.colo import plan, resync, taps
from coloctl.errors import (
    DeadlineMissed,
    FailoverRefused,
    MonitorError,
)
from coloctl.ha.cutoff import free
from coloctl.ha.fencing import NO_MEANS, Fenced, Means, fence
from coloctl.model.observation import Life
from coloctl.model.pair import PairSpec, Role
from coloctl.model.qapi import COLOMode, RunState
from coloctl.model.timeline import TIMELINE_STEPS, FailoverStep, FenceRecord, Timeline
from coloctl.qmp import command as qmp
from coloctl.qmp.monitor import EventStream
from coloctl.qmp.sequence import run
from coloctl.qmp.wait import until_runstate
from coloctl.tasks import first_of, side_by_side
from coloctl.vm import VM

#: The survivor may have to finish loading a checkpoint first (QEMU's RELAUNCH path).
SURVIVOR_DEADLINE_S = 20.0
#: The commands to a survivor, one after the other: a promotion has 14 with two NICs and two disks.
_TRIPS = 20
#: Before anything is done for it. Out-of-band answers took 11 ms at worst on two busy cores
#: (docs/qemu.md); a survivor that answers later is asked again by the next failover.
RESCUE_DEADLINE_S = 2.0

#: A survivor serves its guest, or holds it until there is room for a write (`supervisor.held`).
_SERVES = frozenset({RunState.RUNNING, RunState.IO_ERROR})


@dataclass(frozen=True)
class StepDone:
    """A step of a failover, and when it was done, in milliseconds since the failover began."""

    step: FailoverStep
    at_ms: float


class Steps:
    """The steps of one failover as they are done: one side writes them, another reads them.

    Note the difference: `Steps` grows while a failover is under way; `model.timeline.Timeline` is
    the finished record that goes to the journal, to the history and to clients.
    """

    def __init__(
        self,
        clock: Clock = CLOCK,
        began_s: float | None = None,
        *,
        cause: str = "",
        fault_at_s: float | None = None,
        why: str = "",
    ) -> None:
        """Begin at the monotonic second ``began_s``, or now, because of ``cause``.

        ``fault_at_s`` is the monotonic second of the fault, where that is known; ``why`` has
        sentences on the cause for the state that follows.
        """
        self.cause, self.fault_at_s, self.why = cause, fault_at_s, why
        self.clock = clock
        self.began_s = clock.now() if began_s is None else began_s
        self._done: list[StepDone] = []
        self._read = 0
        self._more = asyncio.Event()
        self.done(FailoverStep.DETECTED, self.began_s)

    def done(self, step: FailoverStep, at_s: float | None = None) -> None:
        """Note that ``step`` is done, now or at that monotonic second."""
        self._done.append(StepDone(step, self.since_ms(at_s)))
        self._more.set()

    def since_ms(self, at_s: float | None = None) -> float:
        """Compute the milliseconds from the beginning to now, or to that monotonic second."""
        at_s = self.clock.now() if at_s is None else at_s
        return max(0.0, round((at_s - self.began_s) * 1000, 2))

    def times(self) -> dict[str, float]:
        """Return when each step of a timeline was done so far, in milliseconds."""
        return {one.step: one.at_ms for one in self._done if one.step in TIMELINE_STEPS}

    async def more(self) -> None:
        """Wait until a step was done that `unread` has not returned yet."""
        await self._more.wait()

    def unread(self) -> tuple[StepDone, ...]:
        """Take the steps that were done since the last call, in the order in which they were."""
        new = tuple(self._done[self._read :])
        self._read = len(self._done)
        self._more.clear()
        return new


class Failover:
    """One failover: prove ``lost`` dead, then let ``survivor`` run the guest alone."""

    def __init__(
        self, spec: PairSpec, survivor: VM, lost: VM, role: Role, steps: Steps | None = None
    ) -> None:
        self.spec, self.survivor, self.lost = spec, survivor, lost
        self.role = role  #: of the survivor, before
        self.steps = steps or Steps()
        self._cutting: asyncio.Future[None] | None = None  #: begun before the fence has returned

    async def fence(self, means: Means = NO_MEANS) -> Fenced:
        """Fence the lost node and return how; give up as soon as the survivor dies.

        A fence that waits for an operator has no deadline, so the survivor is watched meanwhile.
        Raises `FencingFailed` as `ha.fencing.fence`, `FailoverRefused` when the survivor died.
        """
        role = Role.PRIMARY if self.role is Role.SECONDARY else Role.SECONDARY
        fencing = fence(self.spec, self.lost, means, role=role, clock=self.steps.clock)
        async with first_of(fencing, self.survivor.process.until_halted()) as (fenced, _):
            if not fenced.done():
                raise FailoverRefused(
                    f"Node {self.survivor.node} died before node {self.lost.node} was known to be "
                    "down."
                )
            proof: Fenced = fenced.result()
        self.steps.done(FailoverStep.FENCED)
        return proof

    @contextlib.asynccontextmanager
    async def cut_off_early(self) -> AsyncIterator[None]:
        """Cut the survivor off within the block, beside fence and claim, if its peer is dead.

        Begins at once where the kernel has reported that death; `promote` begins it otherwise. The
        survivor does not run on by it. What is not done at the end of the block is cancelled.
        """
        if self.lost.process.life() is Life.DEAD:
            deadline = _answering(self.survivor, self.steps.clock)
            self._cutting = asyncio.ensure_future(self._cut_off(deadline))
        try:
            yield
        finally:
            if self._cutting is not None:
                self._cutting.cancel()
                await asyncio.gather(self._cutting, return_exceptions=True)
                self._cutting = None

    async def promote(self, proof: Fenced, claiming: Awaitable[None]) -> None:
        """Promote the survivor: once ``claiming`` is done, it runs the guest alone, unprotected.

        ``claiming`` claims the generation. It runs beside the cut-off, which does not let the
        survivor run on, and before everything that does; an error of it stops the failover. QEMU
        still merges the overlays of a promoted secondary afterwards (`ha.merge`).

        Raises `ValueError` for the proof of another node's death, and `FailoverRefused` when the
        survivor does not come to run.
        """
        claim = asyncio.ensure_future(claiming)
        if proof.node != self.lost.node:
            claim.cancel()
            raise ValueError(f"node {proof.node} was fenced, not node {self.lost.node}")
        spec, role = self.spec, self.role
        deadline = _answering(self.survivor, self.steps.clock)
        try:
            await side_by_side(self._claimed(claim), self._cutting or self._cut_off(deadline))
            await self._let_run(deadline)
            await run(
                plan.clear_secondary(spec) if role is Role.SECONDARY else plan.clear_primary(spec),
                self.survivor.monitor,
                deadline=deadline,
                keep_going=True,
            )
            self.steps.done(FailoverStep.CLEARED)
            await self._verify()
            self.steps.done(FailoverStep.VERIFIED)
        except MonitorError as error:
            last = (await self.survivor.last_words(1)).strip() or "none"
            raise FailoverRefused(
                f"Node {self.survivor.node} could not be brought to run on alone: {error.message}",
                hint=f"its last output: {last}",
            ) from error

    def timeline(
        self,
        *,
        at: str,
        generation: int,
        fence: FenceRecord | None = None,
        failed: str = "",
    ) -> Timeline:
        """Return the record of the failover as far as it has come, with its ``fence``.

        ``at`` is the wall clock at its beginning.
        """
        began_s, fault_at_s = self.steps.began_s, self.steps.fault_at_s
        return Timeline(
            survivor=self.survivor.node,
            lost=self.lost.node,
            role_before=self.role,
            steps=self.steps.times(),
            began_s=began_s,
            at=at,
            generation=generation,
            cause=self.steps.cause,
            fault_ms=None if fault_at_s is None else round((fault_at_s - began_s) * 1000, 2),
            failed=failed,
            fence=fence,
        )

    async def _claimed(self, claim: asyncio.Future[None]) -> None:
        """Wait for the claim; then the survivor's taps go up, though its guest does not run yet."""
        await claim
        self.steps.done(FailoverStep.ARBITRATED)
        # A primary's too: a fence that failed or was cut short may have taken them down.
        await taps.set_all(self.spec, self.survivor.host, self.survivor.node, up=True)

    async def _cut_off(self, deadline: Deadline) -> None:
        """Cut the survivor off: it waits for nothing of its peer, and writes nothing to it."""
        monitor = self.survivor.monitor
        noted = plan.note_merges(self.spec) if self.role is Role.SECONDARY else ()
        await side_by_side(self._yank(deadline), run(noted, monitor, deadline=deadline))
        before, _, _ = _release(self.spec, self.role)
        # On their way together: QEMU takes them in this order, and each would cost a round trip.
        await side_by_side(*(run((step,), monitor, deadline=deadline) for step in before))

    async def _yank(self, deadline: Deadline) -> None:
        await free(self.spec, self.survivor, self.role, deadline)
        self.steps.done(FailoverStep.YANKED)

    async def _let_run(self, deadline: Deadline) -> None:
        """Order the survivor to run on alone; then its guest runs, and its output is on the tap."""
        survivor, steps = self.survivor, self.steps
        _, lost_heartbeat, then = _release(self.spec, self.role)
        with survivor.monitor.listen("RESUME", bound=1) as resumed:
            sent_s = time.monotonic()
            ordering = asyncio.ensure_future(
                run(lost_heartbeat, survivor.monitor, deadline=deadline)
            )
            # On its way before the first is answered: QEMU lets the guest go between the two, and
            # is then busy for 8 ms. The guest's output of that time would go to its dead peer.
            opening = asyncio.ensure_future(run(then, survivor.monitor, deadline=deadline))
            try:
                await ordering
                steps.done(FailoverStep.PROMOTED)
                await until_runstate(survivor.monitor, _SERVES, deadline.remaining())
                steps.done(FailoverStep.RUNNING, await _received_since(resumed, sent_s))
                await opening
            finally:
                for task in (ordering, opening):
                    task.cancel()
                await asyncio.gather(ordering, opening, return_exceptions=True)

    async def _verify(self) -> None:
        """Ask the survivor once more; raises `FailoverRefused` when its guest does not run."""
        vitals = await self.survivor.observe(_answering(self.survivor).seconds)
        if vitals.run_state not in _SERVES or vitals.colo_mode is not COLOMode.NONE:
            raise FailoverRefused(
                f"Node {self.survivor.node} reports {vitals.run_state} and COLO mode "
                f"{vitals.colo_mode} after its promotion.",
                hint="`coloctl qmp PAIR NODE -- query-status` asks it again",
            )


def _answering(survivor: VM, clock: Clock = CLOCK) -> Deadline:
    """Return the deadline of a survivor: its own time, and that of its answers on their way."""
    return Deadline(SURVIVOR_DEADLINE_S + survivor.host.reach.trips_s(_TRIPS), clock)


def _release(spec: PairSpec, role: Role) -> tuple[plan.Plan, plan.Plan, plan.Plan]:
    """Split a survivor's plan: before it may run on, the order to run on, and right after that."""
    steps = plan.release_secondary(spec) if role is Role.SECONDARY else plan.release_primary(spec)
    order = [step.command.execute for step in steps].index("x-colo-lost-heartbeat")
    return steps[:order], steps[order : order + 1], steps[order + 1 :]


async def _received_since(events: EventStream, since_s: float) -> float | None:
    """Return when the event waiting there was read; None for one that is older, or none."""
    with contextlib.suppress(MonitorError):
        event = await events.next(0)
        return event.seen_s if event.seen_s >= since_s else None
    return None


async def require_answer(survivor: VM) -> None:
    """Require that the survivor lives and answers on its rescue monitor.

    Asked before a node is fenced for it. Raises `FailoverRefused`.
    """
    try:
        life = survivor.process.life()
        if life is Life.STOPPED:
            why = "its QEMU is stopped (SIGSTOP)"
        elif life is not Life.DEAD:  # nor one that has come to a halt: it would not answer
            way_s = survivor.host.reach.trips_s(1)
            await survivor.monitor.rescue(qmp.query_yank(), RESCUE_DEADLINE_S + way_s)
            return
        else:
            why = "its QEMU is gone"
    except MonitorError as error:
        why = error.message
    raise FailoverRefused(f"Node {survivor.node} cannot survive: {why.rstrip('.')}.")


async def abandon_secondary(spec: PairSpec, primary: VM, *, was_running: bool) -> None:
    """Release a primary whose protection failed half-way; its secondary is dead already.

    Works from every stage between the first NBD connection and the first checkpoint. Raises
    `FailoverRefused` when the guest does not come to run again.
    """
    deadline = _answering(primary)
    try:
        await free(spec, primary, Role.PRIMARY, deadline)
        await resync.drop_jobs(spec, primary)
        await run(plan.release_primary(spec), primary.monitor, deadline=deadline, keep_going=True)
        await run(plan.clear_primary(spec), primary.monitor, deadline=deadline, keep_going=True)
        if was_running:
            await _resume(primary, deadline)
    except MonitorError as error:
        raise FailoverRefused(
            f"Node {primary.node} did not come back from the attempt: {error.message}"
        ) from error


async def _resume(primary: VM, deadline: Deadline) -> None:
    """Resume the guest, after QEMU has cleaned up a failed migration."""
    settled = {RunState.PAUSED, *_SERVES}  # only this resumes one that was held
    with contextlib.suppress(DeadlineMissed):
        limit_s = RESCUE_DEADLINE_S + primary.host.reach.trips_s(1)
        await until_runstate(primary.monitor, settled, deadline.at_most(limit_s))
    if (await primary.observe(deadline.remaining())).run_state not in _SERVES:
        await primary.execute(qmp.cont(), deadline.remaining())
        await until_runstate(primary.monitor, {RunState.RUNNING}, deadline.remaining())
