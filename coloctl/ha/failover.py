"""One side lives, the other is proven dead: fence, claim and yank, promote, clear, verify.

Invariant: no command that lets a survivor run on is sent before the fence gave its proof and the
arbiter its word. What happens when a step fails is in docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from coloctl.clock import CLOCK, Clock, Deadline
from coloctl.colo import plan, resync
from coloctl.errors import (
    DeadlineMissed,
    FailoverRefused,
    MonitorError,
)
from coloctl.ha.cutoff import RESCUE_DEADLINE_S, free
from coloctl.ha.fencing import NO_MEANS, Fenced, Means, fence
from coloctl.model.pair import PairSpec, Role
from coloctl.model.qapi import COLOMode, RunState
from coloctl.model.timeline import FailoverStep, Timeline
from coloctl.qmp import command as qmp
from coloctl.qmp.monitor import EventStream
from coloctl.qmp.sequence import run
from coloctl.qmp.wait import until_runstate
from coloctl.vm import VM

#: The survivor may have to finish loading a checkpoint first (QEMU's RELAUNCH path).
SURVIVOR_DEADLINE_S = 20.0


Note = Callable[[FailoverStep, float], None]


class Course:
    """The steps of one failover as they are done; ``note`` hears of each."""

    def __init__(
        self,
        clock: Clock = CLOCK,
        *,
        began_s: float | None = None,
        note: Note = lambda _step, _ms: None,
    ) -> None:
        self.clock = clock
        self.began_s = clock.now() if began_s is None else began_s
        self.steps: dict[str, float] = {}
        self._note = note

    def done(self, step: FailoverStep, at_s: float | None = None) -> None:
        """``step`` is done, now or at that monotonic second."""
        at_s = self.clock.now() if at_s is None else at_s
        at_ms = max(0.0, round((at_s - self.began_s) * 1000, 2))
        self.steps[step] = at_ms
        self._note(step, at_ms)


#: A survivor serves its guest, or holds it until there is room for a write (`supervisor.held`).
_SERVES = frozenset({RunState.RUNNING, RunState.IO_ERROR})


async def fail_over(
    spec: PairSpec,
    survivor: VM,
    lost: VM,
    role: Role,
    *,
    arbitrate: Callable[[], Awaitable[None]],
    means: Means = NO_MEANS,
    fenced: Callable[[Fenced], None] = lambda _: None,
    course: Course | None = None,
) -> Timeline:
    """Prove ``lost`` dead and let ``survivor`` run the guest alone and unprotected.

    QEMU still merges the overlays of a promoted secondary then (`coloctl.ha.merge`).
    ``arbitrate`` is awaited between the proof and the first command that lets the survivor run on;
    what it raises stops the failover (the generation is claimed there). ``fenced`` hears the proof.
    Raises `FencingFailed` when ``lost`` is not proven dead, `FailoverRefused` when the survivor
    does not come to run.
    """
    course = course or Course()
    fenced(await _fence(spec, survivor, lost, means, course.clock))
    course.done(FailoverStep.FENCED)
    deadline = Deadline(SURVIVOR_DEADLINE_S, course.clock)
    try:
        # The second does not let the survivor run on; it cuts off what was proven dead.
        await _both(
            _arbitrated(arbitrate, course), _cut_off(spec, survivor, role, deadline, course)
        )
        # A primary's too: a fence that failed or was cut short may have taken them down.
        await open_taps(spec, survivor)
        await _promote(spec, survivor, role, deadline, course)
        await run(
            plan.clear_secondary(spec) if role is Role.SECONDARY else plan.clear_primary(spec),
            survivor.monitor,
            deadline=deadline,
            keep_going=True,
        )
        course.done(FailoverStep.CLEARED)
        await _verify(survivor)
        course.done(FailoverStep.VERIFIED)
    except MonitorError as error:
        raise FailoverRefused(
            f"Node {survivor.node} could not be brought to run on alone: {error.message}",
            hint=f"its last words: {survivor.last_words(1).strip() or 'none'}",
        ) from error
    return Timeline(survivor.node, lost.node, role, dict(course.steps), course.began_s)


async def _fence(spec: PairSpec, survivor: VM, lost: VM, means: Means, clock: Clock) -> Fenced:
    """``lost`` is proven down; given up when the survivor dies before, which may be a long time."""
    fencing = asyncio.ensure_future(fence(spec, lost, means, clock=clock))
    dying = asyncio.ensure_future(survivor.process.wait())
    try:
        await asyncio.wait({fencing, dying}, return_when=asyncio.FIRST_COMPLETED)
        if fencing.done():
            return fencing.result()
        raise FailoverRefused(
            f"Node {survivor.node} died before node {lost.node} was known to be down."
        )
    finally:
        for task in (fencing, dying):
            task.cancel()
        await asyncio.gather(fencing, dying, return_exceptions=True)


async def _both(first: Awaitable[None], second: Awaitable[None]) -> None:
    """Both are done; what the first raised counts more, and neither is left under way."""
    for outcome in await asyncio.gather(first, second, return_exceptions=True):
        if outcome is not None:
            raise outcome


async def _arbitrated(arbitrate: Callable[[], Awaitable[None]], course: Course) -> None:
    await arbitrate()
    course.done(FailoverStep.ARBITRATED)


def _release(spec: PairSpec, role: Role) -> tuple[plan.Plan, plan.Plan, plan.Plan]:
    """What a survivor is told: before it may run on, to run on, and at once behind that."""
    steps = plan.release_secondary(spec) if role is Role.SECONDARY else plan.release_primary(spec)
    told = [step.command.execute for step in steps].index("x-colo-lost-heartbeat")
    return steps[:told], steps[told : told + 1], steps[told + 1 :]


async def _cut_off(
    spec: PairSpec, survivor: VM, role: Role, deadline: Deadline, course: Course
) -> None:
    """Let the survivor wait for nothing of its peer, and write nothing to it."""
    await free(spec, survivor, role, deadline)
    course.done(FailoverStep.YANKED)
    await run(_release(spec, role)[0], survivor.monitor, deadline=deadline)


async def _promote(
    spec: PairSpec, survivor: VM, role: Role, deadline: Deadline, course: Course
) -> None:
    """The guest runs on the survivor, and its output reaches the tap."""
    _, lost_heartbeat, then = _release(spec, role)
    with survivor.monitor.listen("RESUME", bound=1) as resumed:
        sent_s = time.monotonic()
        telling = asyncio.ensure_future(run(lost_heartbeat, survivor.monitor, deadline=deadline))
        # On its way before the first is answered: QEMU lets the guest go between the two, and is
        # then busy for 8 ms; what the guest sends meanwhile would still go to its dead peer.
        opening = asyncio.ensure_future(run(then, survivor.monitor, deadline=deadline))
        try:
            await telling
            course.done(FailoverStep.PROMOTED)
            await until_runstate(survivor.monitor, _SERVES, deadline.remaining())
            course.done(FailoverStep.RUNNING, await _heard_since(resumed, sent_s))
            await opening
        finally:
            for task in (telling, opening):
                task.cancel()
            await asyncio.gather(telling, opening, return_exceptions=True)


async def _heard_since(events: EventStream, since_s: float) -> float | None:
    """When the event waiting there was read; None for one that is older, or none."""
    with contextlib.suppress(MonitorError):
        event = await events.next(0)
        return event.seen_s if event.seen_s >= since_s else None
    return None


async def require_answer(survivor: VM) -> None:
    """The survivor lives and its rescue road answers; asked before anything is fenced for it.

    Raises `FailoverRefused`.
    """
    try:
        if survivor.process.frozen():
            why = "its QEMU is stopped (SIGSTOP)"
        elif survivor.process.alive():
            await survivor.monitor.rescue(qmp.query_yank(), RESCUE_DEADLINE_S)
            return
        else:
            why = "its QEMU is gone"
    except MonitorError as error:
        why = error.message
    raise FailoverRefused(f"Node {survivor.node} cannot survive: {why.rstrip('.')}.")


async def open_taps(spec: PairSpec, vm: VM) -> None:
    """The guest of ``vm`` reaches the LAN."""
    for nic in spec.nics:
        if nic.tap is not None:
            await vm.host.tap(nic.tap.ifname[vm.node], up=True)


async def _verify(survivor: VM) -> None:
    vitals = await survivor.observe(SURVIVOR_DEADLINE_S)
    if vitals.run_state not in _SERVES or vitals.colo_mode is not COLOMode.NONE:
        raise FailoverRefused(
            f"Node {survivor.node} says {vitals.run_state} and COLO mode {vitals.colo_mode} "
            "after its promotion.",
            hint="`coloctl qmp PAIR NODE -- query-status` asks it again",
        )


async def abandon_secondary(spec: PairSpec, primary: VM, *, was_running: bool) -> None:
    """A primary whose protection failed half-way serves on alone; its secondary is dead already.

    Works from every stage between the first NBD connection and the first checkpoint. Raises
    `FailoverRefused` when the guest does not come to run again.
    """
    deadline = Deadline(SURVIVOR_DEADLINE_S)
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
    """The guest runs again, after a failed migration has put its own house in order."""
    settled = {RunState.PAUSED, *_SERVES}  # nobody else resumes one that was held
    with contextlib.suppress(DeadlineMissed):
        await until_runstate(primary.monitor, settled, deadline.at_most(RESCUE_DEADLINE_S))
    if (await primary.observe(deadline.remaining())).run_state not in _SERVES:
        await primary.execute(qmp.cont(), deadline.remaining())
        await until_runstate(primary.monitor, {RunState.RUNNING}, deadline.remaining())
