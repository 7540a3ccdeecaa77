"""Compare both nodes' disks and memory in COLO: when an operator asks, and now and then.

Called by `supervisor.loop` (`tick`, about once a second) and by `control.service` (`verify`); calls
`colo.verify` for the disks and `colo.pages` for the memory.

Invariants: one verification at a time. It is no act, so nothing waits for it; any act but a
checkpoint or a setting cancels it at once. A failover needs nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from coloctl.colo import difference, pages
from coloctl.colo.programs import NotComparable
from coloctl.colo.protect import CHECKPOINT_DEADLINE_S, checkpoint_now, next_checkpoint
from coloctl.colo.verify import Comparing, verify
from coloctl.errors import ColoctlError, DeadlineMissed, NotProtected
from coloctl.journal import wall_clock
from coloctl.model import event
from coloctl.model.event import Kind
from coloctl.model.pair import OnDifference, Role
from coloctl.model.pairevent import ProgressMade, VerificationOver
from coloctl.model.protection import Protection
from coloctl.model.verified import DiskVerified, MemoryVerified, Verified, VerifyOutcome
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: One that ended early is tried again so much later, or after `[verify] every` if that is less.
AGAIN_S = 600.0
#: How long a comparison of memory waits for a checkpoint before it asks for one, seconds.
CHECKPOINT_WAIT_S = 2.0
#: How often its progress is sent, seconds.
REPORT_PERIOD_S = 1.0

#: Sentences about memory that was not compared.
LEFT_OUT = "The guest's memory was left out; `coloctl verify --memory` compares it."
NOT_REACHED = "The guest's memory was not compared."


@dataclass
class _Found:
    """The findings of one verification so far; ``why`` it ended early, empty where not."""

    disks: tuple[DiskVerified, ...] = ()
    pages: MemoryVerified | None = None
    memory: str = NOT_REACHED
    why: str = "The supervisor ended."


class Verifying:
    """Verifies one pair; ``spawn`` makes tasks."""

    def __init__(self, state: PairState, spawn: Callable[..., asyncio.Task[None]]) -> None:
        self.state = state
        self._spawn = spawn
        self._found: asyncio.Future[Verified] | None = None
        self._protected_s: float | None = None  # since when the first verification is waited for
        self._told_s = 0.0

    async def verify(self, *, memory: bool | None = None) -> Verified:
        """Return the result of a comparison, of the one under way where there is one.

        ``memory``: whether the guest's memory is compared; None leaves that to the pair file, and
        the one under way has its own. One that ends early returns its reason and raises nothing.
        Raises `NotProtected` outside COLO. A caller that leaves does not end it.
        """
        self._begin(self.state.spec.verify.memory if memory is None else memory)
        assert self._found is not None
        return await asyncio.shield(self._found)

    def tick(self) -> None:
        """Begin a verification when one is due."""
        state, every_s = self.state, self.state.spec.verify.every_s
        leavings = state.beside.left is not None or state.beside.lent
        if leavings and not state.act and not self._under_way():
            self._spawn(self._tidy())
        if state.protection is not Protection.COLO or state.act:
            return
        now_s = state.clock.now()
        if self._protected_s is None:
            self._protected_s = now_s
        if not every_s or state.paused or self._under_way():
            return
        last = state.beside.verified
        since_s = self._protected_s
        if last is not None and last.ended_s <= now_s:
            again = last.outcome is VerifyOutcome.BROKEN_OFF
            since_s = last.ended_s - (max(0.0, every_s - AGAIN_S) if again else 0.0)
        if now_s - since_s >= every_s:
            with contextlib.suppress(ColoctlError):
                self._begin(state.spec.verify.memory)

    async def tidy(self) -> None:
        """Remove all traces of a comparison from both QEMUs; raises `MonitorError`."""
        beside = self.state.beside
        left, beside.left = beside.left, None
        lent, beside.lent = beside.lent, ()
        for vm in lent:
            if any(seat.vm is vm for seat in self.state.seats.values()):
                await pages.forget(vm)
        primary = self.state.seat_of(Role.PRIMARY)
        if left is not None and primary is not None and primary.vm is left:
            await difference.drop(self.state.spec, left)

    async def _tidy(self) -> None:
        """Remove the traces in the background; an error is ignored."""
        with contextlib.suppress(ColoctlError):
            await self.tidy()

    def end(self) -> None:
        """Cancel the verification under way."""
        if self.state.beside.verification is not None:
            self.state.beside.verification.cancel()

    # -- one verification

    def _under_way(self) -> bool:
        return self._found is not None and not self._found.done()

    def _begin(self, memory: bool) -> None:
        state = self.state
        if self._under_way():
            return
        if state.protection is not Protection.COLO:
            raise NotProtected(
                f"Pair {state.spec.name} is {state.protection}: there is no second copy of its "
                "guest to compare.",
                hint=f"`coloctl wait {state.spec.name} --for colo` waits until there is",
            )
        self._found = asyncio.get_running_loop().create_future()
        state.beside.verification = self._spawn(self._run(self._found, memory))

    async def _run(self, result: asyncio.Future[Verified], memory: bool) -> None:
        state = self.state
        began_s = state.clock.now()
        primary, secondary = state.vm_of(Role.PRIMARY), state.vm_of(Role.SECONDARY)
        found = _Found() if memory else _Found(memory=LEFT_OUT)
        try:
            await self._compare(primary, secondary, found, memory)
        except asyncio.CancelledError:
            found.why = f"'{state.act}' was begun." if state.act else found.why
        except ColoctlError as error:
            found.why = error.message
        except Exception as error:
            log.exception("A verification failed")
            found.why = f"It failed: {error}."
        finally:
            ended_s = state.clock.now()
            report = Verified(
                at=wall_clock().isoformat(timespec="seconds"),
                outcome=VerifyOutcome.BROKEN_OFF if found.why else VerifyOutcome.EQUAL,
                took_s=round(ended_s - began_s, 1),
                ended_s=ended_s,
                primary=primary.node,
                secondary=secondary.node,
                disks=found.disks,
                reason=found.why,
                memory=found.memory,
                pages=found.pages,
            )
            if report.differs:  # also where the rest was broken off
                report = replace(report, outcome=VerifyOutcome.DIFFERENT)
            self._conclude(report)
            if not result.done():
                result.set_result(report)

    async def _compare(self, primary: VM, secondary: VM, found: _Found, memory: bool) -> None:
        """Fill ``found``; it is whole where ``why`` is empty. Raises `ColoctlError`."""
        state, rate = self.state, self.state.spec.verify.rate

        async def checkpoint() -> None:
            state.beside.asking = True
            try:
                await checkpoint_now(primary, state.period_ms(), CHECKPOINT_DEADLINE_S)
            finally:
                state.beside.asking = False

        async def passed() -> None:
            try:
                await next_checkpoint(primary, CHECKPOINT_WAIT_S)
            except DeadlineMissed:
                await checkpoint()

        state.beside.left = primary
        work = Comparing(state.spec, primary, secondary, checkpoint, self._tell, rate=rate)
        try:
            found.disks = await verify(work)
        except NotComparable as error:
            found.why = error.why
            return
        state.beside.left = None
        if memory:
            state.beside.lent = (primary, secondary)
            tell = partial(self._tell, step="memory")
            reading = pages.Reading(primary, secondary, passed, tell, rate=rate)
            try:
                found.pages = await pages.compare(reading)
                found.memory, state.beside.lent = "", ()
            except NotComparable as error:  # what was found of the disks is true all the same
                found.memory = f"The guest's memory was not compared: {error.why}"
        found.why = ""

    def _tell(self, done: int, total: int, step: str = "compare") -> None:
        now_s = self.state.clock.now()
        if now_s - self._told_s >= REPORT_PERIOD_S:
            self._told_s = now_s
            self.state.emit(ProgressMade(act="verify", step=step, done=done, total=total))

    def _conclude(self, report: Verified) -> None:
        """Record a report in state and journal, and send it to clients.

        The policy decides the rest.
        """
        state = self.state
        state.beside.verified = report
        with contextlib.suppress(ColoctlError):  # no room: it is in the state all the same
            data = {event.VERIFIED: report.to_json()}
            state.record(Kind.OBSERVATION, step="verify", node=report.secondary, data=data)
        state.emit(VerificationOver(outcome=report.outcome, report=report))
        if report.outcome is VerifyOutcome.DIFFERENT:
            log.error("%s", report.sentence())
            # Other memory is evidence and no proof (`colo.pages`): nothing follows from it.
            disks = any(disk.differs for disk in report.disks)
            if disks and state.spec.verify.on_difference is OnDifference.RESYNC:
                state.beside.unlike = (report.sentence(),)
                seat = state.seat_of(Role.SECONDARY)
                state.beside.unlike_of = seat.vm if seat is not None else None
