"""Record and show one failover while it goes on: proof, claim, first frame, and its failure.

Called by `supervisor.acts.failover`. `ha.failover` does the steps and keeps their order; the number
beside the survivor's image is written by `supervisor.acts.durable`, the claim by `ha.arbiter`.

Invariant: the generation is claimed in the register, in the journal and beside the image before
`FailoverBook.claim` returns, so before `ha.failover` lets the survivor run. Where the fence has no
proof, nothing else stands in for the register. A failure is in state, journal and history when it
is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from coloctl.colo import bridgeport
from coloctl.errors import ColoctlError, FencingFailed, PreconditionFailed
from coloctl.ha.arbiter import Arbiter
from coloctl.ha.failover import Failover, Steps
from coloctl.ha.fencing import Confirmation, Fenced
from coloctl.journal import wall_clock
from coloctl.model.event import GENERATION_NOT_KEPT, Kind
from coloctl.model.observation import Life
from coloctl.model.pair import FencingMethod, Role
from coloctl.model.protection import Fact, Protection
from coloctl.model.timeline import FailoverStep, FenceRecord, Timeline
from coloctl.model.view import Fencing, Merge, Presence
from coloctl.supervisor.acts import fencing, merge
from coloctl.supervisor.acts.durable import Numbering, claim_by_disks
from coloctl.supervisor.seat import Seat
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: How long the timeline waits for the first frame of a survivor whose guest may have nothing to
#: send; the guest runs and the pair is unprotected by then. A client that lost a segment sends it
#: again after 200 ms (docs/qemu.md). Seconds.
SILENCE_S = 0.4


class FailoverBook:
    """The records that a supervisor writes and the views that it shows during one failover.

    Note the difference: `ha.failover.Failover` does the steps; `FailoverBook` keeps state, journal,
    claim and timeline up to date with them.
    """

    def __init__(
        self,
        state: PairState,
        arbiter: Arbiter,
        survivor: Seat,
        lost: Seat,
        steps: Steps,
        *,
        force: bool,
    ) -> None:
        assert survivor.vm is not None and lost.vm is not None
        self.state, self.arbiter, self.survivor, self.lost = state, arbiter, survivor, lost
        self.steps, self.force = steps, force
        self.fence: FenceRecord | None = None  #: how it went; None: not yet
        role = survivor.view.role
        self.failover = Failover(state.spec, survivor.vm, lost.vm, role, steps)
        self.numbering = Numbering(state, survivor)
        self.unproven = False  #: the fence has no proof from the kernel
        self._claim_alone = False  #: as `Fenced.claim_alone`
        self._undecided = False  #: the decision could not be written, so nothing was promoted
        self._merging: merge.Following | None = None
        self._listening: asyncio.Task[None] | None = None

    async def run(self, *, vouched: bool) -> str:
        """Fence, claim and promote; return a warning for an operator, or an empty string.

        A failure is in the pair's state, in the journal and in the history when it is raised.
        """
        state, lost = self.state, self.lost
        lost.retired = True
        lost.view = replace(lost.view, fencing=Fencing.IN_PROGRESS)
        try:
            self._prepare()
            async with self.failover.cut_off_early():
                proof = await self._fence(vouched=vouched)
                self.fenced(proof)
                await self.failover.promote(proof, self.claim())
            if self.numbering.lacking:
                since_s = self.steps.began_s
                self._merging = merge.begin(state, self.survivor, since_s)
            return await self._kept()
        except BaseException as error:
            if isinstance(error, ColoctlError):
                self.failed(error)
            if self._listening is not None:
                self._listening.cancel()  # not awaited: the end of the act must not wait
            raise
        finally:
            fencing.over(state, lost.name)
            self.numbering.cancel()
            if lost.view.fencing in (Fencing.IN_PROGRESS, Fencing.REQUIRED, Fencing.CONFIRMED):
                lost.retired = False
                lost.view = replace(lost.view, fencing=Fencing.CLEAR)

    def timeline(self, failed: str = "") -> Timeline:
        """Return the timeline as far as the failover has come; ``failed``: why it ended there."""
        now_s = self.state.clock.now()
        began = wall_clock() - timedelta(seconds=now_s - self.steps.began_s)
        return self.failover.timeline(
            at=began.isoformat(timespec="milliseconds"),
            generation=self.state.generation,
            fence=self.fence,
            failed=failed,
        )

    # -- the fence

    def _prepare(self) -> None:
        """Read what stands beside the survivor's image while the other node is fenced.

        Not where an agent or an operator is asked: a merge could not be recorded meanwhile.
        """
        vm, method = self.lost.vm, self.state.spec.fencing.method
        if method is FencingMethod.KILL or (vm is not None and vm.process.life() is Life.DEAD):
            self.numbering.prepare(self.state.generation + 1)

    async def _fence(self, *, vouched: bool) -> Fenced:
        confirmation = Confirmation()
        means = fencing.means(
            self.state, self.lost.name, confirmation, forced=self.force, confirmed=vouched
        )
        showing = asyncio.create_task(self._show(confirmation))
        try:
            return await self.failover.fence(means)
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)

    async def _show(self, confirmation: Confirmation) -> None:
        """Show that an operator is asked whether the node is off, and that it was confirmed."""
        await confirmation.asked.wait()
        self.lost.view = replace(self.lost.view, fencing=Fencing.REQUIRED)
        self.state.explain(confirmation.question)
        self.steps.done(FailoverStep.CONFIRMATION_AWAITED)
        await confirmation.given.wait()
        self.lost.view = replace(self.lost.view, fencing=Fencing.CONFIRMED)

    def fenced(self, proof: Fenced) -> None:
        """Record the fence; the intent of the promotion after it takes both to the disk."""
        self.state.unfenced = None
        self.unproven, self._claim_alone = proof.proof is None, proof.claim_alone
        self.lost.view = replace(self.lost.view, fencing=Fencing.FENCED, presence=Presence.DEAD)
        vm, taps = self.survivor.vm, [nic.tap for nic in self.state.spec.nics if nic.tap]
        if taps and vm is not None and self.survivor.view.role is Role.SECONDARY:
            # A primary was on the LAN all the time; a secondary has not sent a frame there yet.
            self._listening = asyncio.create_task(self._listen(vm, taps[0].ifname[vm.node]))
        with self._deciding():
            self._record_fence(proof.record())

    def _record_fence(self, fence: FenceRecord) -> None:
        """Journal a fence; the history gets it with its failover, when there is time to wait."""
        self.fence = fence
        self.state.record(Kind.OBSERVATION, step="fence", node=fence.node, data=fence.to_json())

    # -- the claim

    async def claim(self) -> None:
        """Claim the survivor's generation: in the register, in the journal, beside its image."""
        state, node = self.state, self.survivor.name
        number = state.generation + 1
        with self._deciding():
            try:
                await self.arbiter.claim(state.spec.name, node, number)
            except PreconditionFailed as error:
                if self._claim_alone:
                    raise
                keeping = self.numbering.begin(number)
                await claim_by_disks(state, self.survivor, keeping, error, force=self.force)
            self.numbering.begin(number)
            await asyncio.sleep(0)  # it is on its way to the disk before the journal is
            state.grow_generation()
        if self.numbering.lacking:
            self.survivor.merge = Merge.UNDER_WAY
        await self.numbering.durable()

    @contextlib.contextmanager
    def _deciding(self) -> Iterator[None]:
        """Mark a decision that cannot be written now: it may be later, so nothing has failed."""
        try:
            yield
        except PreconditionFailed:
            self._undecided = True
            raise

    # -- the end

    async def settle(self) -> None:
        """Wait at most `SILENCE_S` for the first frame of the guest and the end of the merge.

        The timeline has both then, or does not; nothing else depends on them.
        """
        merged = None if self._merging is None else asyncio.create_task(self._merging.whole.wait())
        awaited: set[asyncio.Task[object]] = {one for one in (merged, self._listening) if one}
        try:
            if awaited:
                await asyncio.wait(awaited, timeout=SILENCE_S)
        finally:
            if merged is not None:
                merged.cancel()
            if self._merging is not None and self._merging.whole.is_set():
                self.steps.done(FailoverStep.MERGED, self._merging.whole_at_s)
            await self._stop_listening()

    async def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _listen(self, vm: VM, tap: str) -> None:
        """Note the first frame that got beyond the tap's port; being unable to look is no failure.

        A port of a bridge with STP drops all frames at first; the log reports that then.
        """
        with contextlib.suppress(ColoctlError):
            async with vm.host.first_packet(tap) as first:
                await first.wait()
                seen_s = self.state.clock.now()
                if bridgeport.forwards(await bridgeport.link(vm.host, tap)):
                    self.steps.done(FailoverStep.FIRST_PACKET, seen_s)
                    return
                log.warning(
                    "The guest sends, but the bridge port of %s does not forward yet: its bridge "
                    "runs STP, and clients have to wait for it.",
                    tap,
                )

    async def _kept(self) -> str:
        """Wait until the number is beside the image; return and record why it is not."""
        warning = await self.numbering.finish()
        if warning:
            data = {GENERATION_NOT_KEPT: warning}
            self.state.record(Kind.NOTE, node=self.survivor.name, data=data)
        return warning

    def failed(self, error: ColoctlError) -> None:
        """Show and record why the failover did not succeed."""
        state, unfenced = self.state, isinstance(error, FencingFailed)
        if unfenced:
            self.lost.retired = False
            self.lost.view = replace(self.lost.view, fencing=Fencing.FAILED)
            method = str(state.spec.fencing.method)
            self._record_fence(FenceRecord(self.lost.name, method, failed=error.message))
        before = state.view()
        again = before.protection is Protection.FAILED and before.reason == error.message
        state.unfenced = self.lost.name if unfenced else None
        if self._undecided:
            state.explain(f"Nothing is promoted yet: {error.message}")
        elif not again:  # a failure that repeats itself every few seconds is recorded once
            state.note(Fact.FAILOVER_FAILED, error.message)
            state.remember_failover(self.timeline(error.message))
