"""One side lives on: whatever asked for it, a person or a diagnosis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from coloctl.colo import bridgeport, generation, overlays
from coloctl.colo.generation import Worth
from coloctl.errors import ColoctlError, FencingFailed, PreconditionFailed
from coloctl.ha.arbiter import Arbiter, open_arbiter, require_claimable
from coloctl.ha.failover import Course, fail_over
from coloctl.ha.fencing import Fenced
from coloctl.journal import wall_clock
from coloctl.model.event import Kind
from coloctl.model.pair import NodeName, Role
from coloctl.model.pairevent import FailedOver, StepReached
from coloctl.model.protection import Fact, Protection
from coloctl.model.timeline import FailoverStep, Timeline
from coloctl.model.view import Fencing, Merge, Presence
from coloctl.supervisor.acts import fencing, merge
from coloctl.supervisor.acts.cause import OPERATOR, outcome, reason
from coloctl.supervisor.acts.durable import claim_by_disks, require_place
from coloctl.supervisor.acts.stop import end
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.supervisor.survivor import choose
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: How long the guest waits for the number beside its image; it is written in a millisecond, and
#: on a disk that is slow today the guest matters more. Seconds.
COMPANION_PATIENCE_S = 0.01
#: How long the promotion of a secondary waits until it is on disk that its image lacks its
#: overlays: without that word the next start would not know of them. Where the guest would be
#: silent for longer, it runs, and the word is written as soon as the disk takes it. Seconds.
PENDING_PATIENCE_S = 2.0

#: For the word about the lost node's disks, which may hang with it; seconds.
LEFT_BEHIND_S = 2.0

#: How long the timeline waits for the first frame of a survivor whose guest may have nothing to
#: say; the guest runs and the pair is unprotected by then. A client that lost a segment sends it
#: again after 200 ms (docs/qemu.md). Seconds.
SILENCE_S = 0.4


async def failover(
    state: PairState,
    to: NodeName | None,
    *,
    force: bool = False,
    cause: str = OPERATOR,
    fault_at_s: float | None = None,
    detected_at_s: float | None = None,
    vouched: bool = False,
) -> Timeline:
    """``to``, or else the secondary, or the primary if only that answers, runs the guest alone.

    ``force`` tries again after a failover that failed. ``cause`` is an operator's word or a
    diagnosis. ``vouched``: a person has said that the other node is down.

    Raises `FailoverRefused` when that would lose what clients saw acknowledged or another
    supervisor decided otherwise, `FencingFailed` without a proof that the other node is down, and
    `PreconditionFailed` when the decision cannot be written: the pair stays in ``failover`` then.
    """
    async with state.acting("failover", to=to, force=force, cause=cause):
        course, by_hand = _course(state, detected_at_s), force and cause == OPERATOR
        arbiter = open_arbiter(state.spec, state.ground.folder)
        asking = asyncio.create_task(arbiter.current())
        try:
            survivor, lost = await choose(state, to, force=force)
            require_claimable(await asking, survivor.name, state.generation + 1)
            if not by_hand:
                await require_place(state, survivor)
        finally:
            asking.cancel()
        if state.protection is Protection.COLO:
            state.note(Fact.NODE_LOST, reason(survivor.name, lost.name, cause))
        act = _Failover(state, arbiter, survivor, lost, course, force=by_hand)
        timeline, warning = await act.run(vouched=vouched)
        began = wall_clock() - timedelta(seconds=state.clock.now() - course.began_s)
        fault_ms = None if fault_at_s is None else round((fault_at_s - course.began_s) * 1000, 2)
        timeline = replace(
            timeline,
            generation=state.generation,
            cause=cause,
            at=began.isoformat(timespec="milliseconds"),
            fault_ms=fault_ms,
        )
        await end(state, lost.name, Presence.DEAD)
        survivor.view = replace(survivor.view, role=Role.PRIMARY)
        state.record_seat(survivor)
        cleared = state.protection is Protection.FAILED
        try:
            fact = Fact.OPERATOR_CLEARED if cleared else Fact.SURVIVOR_RUNS
            state.note(fact, f"{outcome(survivor.name, lost.name, cause)} {warning}".rstrip())
            merge.explain(state, survivor)
            await act.heard()
        finally:
            timeline = replace(timeline, steps=dict(course.steps))
            state.remember_failover(timeline.to_json())
        state.emit(FailedOver(timeline=timeline))
        await _leave_behind(state, lost.name)
        return timeline


async def _leave_behind(state: PairState, lost: NodeName) -> None:
    """Say of the lost node's disks that the guest went on without them.

    The survivor's higher generation says the same, until its own word is lost.
    """
    before = state.generation - 1
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LEFT_BEHIND_S):
            hosts = state.ground.hosts
            await generation.keep(state.spec, hosts, lost, before, Worth.DIVERGED)


def _course(state: PairState, detected_at_s: float | None) -> Course:
    def note(step: FailoverStep, at_ms: float) -> None:
        state.emit(StepReached(act="failover", step=str(step), at_ms=at_ms))

    course = Course(state.clock, began_s=detected_at_s, note=note)
    course.done(FailoverStep.DETECTED, course.began_s)
    return course


class _Failover:
    """One failover, from the fence to a survivor that runs."""

    def __init__(
        self,
        state: PairState,
        arbiter: Arbiter,
        survivor: Seat,
        lost: Seat,
        course: Course,
        *,
        force: bool,
    ) -> None:
        self.state, self.arbiter, self.course, self.force = state, arbiter, course, force
        self.survivor, self.lost = survivor, lost
        self._undecided = False  #: the decision could not be written, so nothing was promoted
        #: What the survivor's images lack until QEMU has merged it.
        self.lacking = (
            overlays.names(state.spec, survivor.name)
            if survivor.view.role is Role.SECONDARY or survivor.merge is not Merge.NONE
            else {}
        )
        self._merged = asyncio.Event()
        self._keeping: asyncio.Task[str] | None = None
        self._durable = asyncio.Event()  #: the number is where the next start finds it, or never
        self._hearing: asyncio.Task[None] | None = None

    async def run(self, *, vouched: bool) -> tuple[Timeline, str]:
        """The timeline, and what an operator should know; the state tells of a failure."""
        state, survivor, lost = self.state, self.survivor, self.lost
        assert survivor.vm is not None and lost.vm is not None
        means = fencing.means(state, lost.name, self.confirm, forced=self.force, vouched=vouched)
        lost.retired = True
        lost.view = replace(lost.view, fencing=Fencing.IN_PROGRESS)
        try:
            timeline = await fail_over(
                state.spec, survivor.vm, lost.vm, survivor.view.role,
                arbitrate=self.arbitrate, means=means, fenced=self.fenced,
                course=self.course,
            )  # fmt: skip
            if self.lacking:
                merge.begin(state, survivor, self.merged)
            return timeline, await self.kept()
        except ColoctlError as error:
            self.failed(error)
            raise
        except BaseException:
            await self._deaf()
            raise
        finally:
            fencing.over(state, lost.name)
            if self._keeping is not None:
                self._keeping.cancel()
            if lost.view.fencing in (Fencing.IN_PROGRESS, Fencing.REQUIRED, Fencing.CONFIRMED):
                lost.retired = False
                lost.view = replace(lost.view, fencing=Fencing.CLEAR)

    async def heard(self) -> None:
        """Wait a moment for the first frame of the guest and the end of the merge.

        The timeline knows of both then, or of neither; nothing else depends on it.
        """
        merged = asyncio.create_task(self._merged.wait())
        awaited: set[asyncio.Task[Any]] = {merged} if self.lacking else set()
        if self._hearing is not None:
            awaited.add(self._hearing)
        try:
            if awaited:
                await asyncio.wait(awaited, timeout=SILENCE_S)
        finally:
            merged.cancel()
            await self._deaf()

    def merged(self) -> None:
        """Note that the survivor's image holds everything."""
        self.course.done(FailoverStep.MERGED)
        self._merged.set()

    async def _deaf(self) -> None:
        if self._hearing is not None:
            self._hearing.cancel()
            await asyncio.gather(self._hearing, return_exceptions=True)

    async def _hear(self, vm: VM, tap: str) -> None:
        """Note the first frame that got beyond the tap's port; being unable to look is no failure.

        A port of a bridge with STP drops all frames at first: the log says so then.
        """
        with contextlib.suppress(ColoctlError):
            async with vm.host.first_packet(tap) as first:
                await first.wait()
                seen_s = self.state.clock.now()
                if bridgeport.forwards(await bridgeport.link(vm.host, tap)):
                    self.course.done(FailoverStep.FIRST_PACKET, seen_s)
                    return
                log.warning(
                    "The guest speaks, but the bridge port of %s does not forward yet: its bridge "
                    "runs STP, and clients have to wait for it.",
                    tap,
                )

    async def confirm(self, sentence: str) -> None:
        """A person has said that the node is down."""
        state, node = self.state, self.lost.name
        self.lost.view = replace(self.lost.view, fencing=Fencing.REQUIRED)
        state.explain(sentence)
        at_ms = round((state.clock.now() - self.course.began_s) * 1000, 2)
        step = str(FailoverStep.CONFIRMATION_AWAITED)
        state.emit(StepReached(act="failover", step=step, at_ms=at_ms))
        await state.confirmations[node].wait()
        self.lost.view = replace(self.lost.view, fencing=Fencing.CONFIRMED)

    def fenced(self, proof: Fenced) -> None:
        """The proof is in the journal; the promotion's intent behind it takes it to the disk."""
        self.state.unfenced = None
        self.lost.view = replace(self.lost.view, fencing=Fencing.FENCED, presence=Presence.DEAD)
        vm, taps = self.survivor.vm, [nic.tap for nic in self.state.spec.nics if nic.tap]
        if taps and vm is not None and self.survivor.view.role is Role.SECONDARY:
            # A primary was on the LAN all the time; a secondary has not been heard there yet.
            self._hearing = asyncio.create_task(self._hear(vm, taps[0].ifname[vm.node]))
        with self._deciding():
            self._journal_fence(proof.to_json())

    async def arbitrate(self) -> None:
        """The survivor's generation is claimed, in the journal, and beside its image."""
        state, node = self.state, self.survivor.name
        number = state.generation + 1
        with self._deciding():
            try:
                await self.arbiter.claim(state.spec.name, node, number)
            except PreconditionFailed as error:
                keeping = self._keep_number(number)
                await claim_by_disks(state, self.survivor, keeping, error, force=self.force)
            self._keep_number(number)
            await asyncio.sleep(0)  # it is on its way to the disk before the journal is
            state.grow_generation()
        assert self._keeping is not None
        if self.lacking:
            self.survivor.merge = Merge.UNDER_WAY
        patience_s = PENDING_PATIENCE_S if self.lacking else COMPANION_PATIENCE_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._durable.wait()

    def _keep_number(self, number: int) -> asyncio.Task[str]:
        """Begin to write the number beside the survivor's image, unless that was begun."""
        if self._keeping is None:
            state, node = self.state, self.survivor.name
            self._keeping = asyncio.create_task(
                generation.keep(
                    state.spec, state.ground.hosts, node, number,
                    Worth.OVERLAY_PENDING if self.lacking else Worth.IN_SYNC,
                    overlays=self.lacking, durable=self._durable.set,
                )
            )  # fmt: skip
            self._keeping.add_done_callback(lambda _: self._durable.set())
        return self._keeping

    async def kept(self) -> str:
        """The number beside the image is written, or an operator is told why not."""
        warning = "" if self._keeping is None else await self._keeping
        if warning:
            told = {"generation-not-kept": warning}
            self.state.record(Kind.NOTE, node=self.survivor.name, data=told)
        return warning

    def failed(self, error: ColoctlError) -> None:
        """The state says what became of it."""
        if isinstance(error, FencingFailed):
            self.lost.retired = False
            self.lost.view = replace(self.lost.view, fencing=Fencing.FAILED)
            self._journal_fence({"method": self.state.spec.fencing.method, "failed": error.message})
        before = self.state.view()
        again = before.protection is Protection.FAILED and before.reason == error.message
        self.state.unfenced = self.lost.name if isinstance(error, FencingFailed) else None
        if self._undecided:
            self.state.explain(f"Nothing is promoted yet: {error.message}")
        elif not again:  # what fails by itself every few seconds is told once
            self.state.note(Fact.FAILOVER_FAILED, error.message)
            self.state.remember_failover(self._failure(error))

    def _failure(self, error: ColoctlError) -> dict[str, object]:
        """The timeline of a failover that did not succeed, as far as it came."""
        return {
            "generation": self.state.generation,
            "survivor": self.survivor.name,
            "lost": self.lost.name,
            "at": wall_clock().isoformat(timespec="milliseconds"),
            "steps": {str(step): at_ms for step, at_ms in self.course.steps.items()},
            "failed": error.message,
        }

    @contextlib.contextmanager
    def _deciding(self) -> Iterator[None]:
        """What cannot be written now may be written later: no reason to give up."""
        try:
            yield
        except PreconditionFailed:
            self._undecided = True
            raise

    def _journal_fence(self, data: dict[str, object]) -> None:
        self.state.remember_fence(self.lost.name, data)
