"""Compare both nodes' disks while the pair is in COLO: when an operator asks, and now and then.

Called by `supervisor.loop` (`tick`, about once a second) and by `control.service` (`verify`).
Invariants: one verification at a time; it is no act, so that nothing waits for it, and any act but
a checkpoint or a setting breaks it off at once; nothing of it is needed by a failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import asdict

from coloctl.colo import difference
from coloctl.colo.programs import NotComparable
from coloctl.colo.protect import checkpoint_now
from coloctl.colo.verify import Comparing, verify
from coloctl.errors import ColoctlError, NotProtected
from coloctl.journal import wall_clock
from coloctl.model import event
from coloctl.model.event import Kind
from coloctl.model.pair import OnDifference, Role
from coloctl.model.protection import Protection
from coloctl.model.verified import DiskVerified, Outcome, Verified
from coloctl.supervisor.acts.tune import CHECKPOINT_DEADLINE_S
from coloctl.supervisor.state import PairState
from coloctl.vm import VM

log = logging.getLogger(__name__)

#: One that was broken off is tried again so much later, or after `[verify] every` if that is less.
AGAIN_S = 600.0
#: How often its progress is told, seconds.
TELL_S = 1.0

#: Why memory is not compared: docs/qemu.md, "What can be compared".
MEMORY = (
    "The guest's memory was not compared: QEMU lets the secondary run on as soon as it has loaded "
    "a checkpoint, and has no way to read both sides at the moment at which they are equal."
)


class Verifying:
    """Verifies one pair; ``spawn`` makes tasks."""

    def __init__(self, state: PairState, spawn: Callable[..., asyncio.Task[None]]) -> None:
        self.state = state
        self._spawn = spawn
        self._found: asyncio.Future[Verified] | None = None
        self._protected_s: float | None = None  # since when the first verification is waited for
        self._told_s = 0.0

    async def verify(self) -> Verified:
        """Return what a comparison finds, of the one under way where there is one.

        Raises `NotProtected` outside COLO. A caller that leaves does not end it.
        """
        self._begin()
        assert self._found is not None
        return await asyncio.shield(self._found)

    def tick(self) -> None:
        """Begin a verification when one is due."""
        state, every_s = self.state, self.state.spec.verify.every_s
        if state.beside.left is not None and not state.act and not self._under_way():
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
            again = last.outcome is Outcome.BROKEN_OFF
            since_s = last.ended_s - (max(0.0, every_s - AGAIN_S) if again else 0.0)
        if now_s - since_s >= every_s:
            with contextlib.suppress(ColoctlError):
                self._begin()

    async def tidy(self) -> None:
        """Leave nothing of a comparison in the primary; raises `MonitorError`."""
        beside = self.state.beside
        left, beside.left = beside.left, None
        primary = self.state.seat_of(Role.PRIMARY)
        if left is not None and primary is not None and primary.vm is left:
            await difference.drop(self.state.spec, left)

    async def _tidy(self) -> None:
        """The same, where nothing waits for it."""
        with contextlib.suppress(ColoctlError):
            await self.tidy()

    def end(self) -> None:
        """Break off what is under way."""
        if self.state.beside.verification is not None:
            self.state.beside.verification.cancel()

    # -- one verification

    def _under_way(self) -> bool:
        return self._found is not None and not self._found.done()

    def _begin(self) -> None:
        state = self.state
        if self._under_way():
            return
        if state.protection is not Protection.COLO:
            raise NotProtected(
                f"Pair {state.spec.name} is {state.protection}: there is no second copy of its "
                "disks to compare.",
                hint=f"`coloctl wait {state.spec.name} --for colo` waits until there is",
            )
        self._found = asyncio.get_running_loop().create_future()
        state.beside.verification = self._spawn(self._run(self._found))

    async def _run(self, found: asyncio.Future[Verified]) -> None:
        state = self.state
        began_s = state.clock.now()
        primary, secondary = state.vm_of(Role.PRIMARY), state.vm_of(Role.SECONDARY)
        disks: tuple[DiskVerified, ...] = ()
        why = "The supervisor ended."
        try:
            disks, why = await self._compare(primary, secondary)
        except asyncio.CancelledError:
            why = f"'{state.act}' was begun." if state.act else why
        except ColoctlError as error:
            why = error.message
        except Exception as error:
            log.exception("A verification went wrong")
            why = f"It went wrong: {error}."
        finally:
            ended_s = state.clock.now()
            outcome = Outcome.BROKEN_OFF if why else Outcome.EQUAL
            if not why and any(disk.differs for disk in disks):
                outcome = Outcome.DIFFERENT
            report = Verified(
                at=wall_clock().isoformat(timespec="seconds"),
                outcome=outcome,
                took_s=round(ended_s - began_s, 1),
                ended_s=ended_s,
                primary=primary.node,
                secondary=secondary.node,
                disks=disks,
                reason=why,
                memory=MEMORY,
            )
            self._conclude(report)
            if not found.done():
                found.set_result(report)

    async def _compare(self, primary: VM, secondary: VM) -> tuple[tuple[DiskVerified, ...], str]:
        """What was found, and why nothing was; one of them is empty."""
        state = self.state

        async def checkpoint() -> None:
            await checkpoint_now(primary, state.period_ms(), CHECKPOINT_DEADLINE_S)

        state.beside.left = primary
        work = Comparing(
            state.spec, primary, secondary, checkpoint, self._tell, rate=state.spec.verify.rate
        )
        try:
            disks = await verify(work)
        except NotComparable as error:
            return (), f"{error.why.rstrip('.')}."
        state.beside.left = None
        return disks, ""

    def _tell(self, done: int, total: int) -> None:
        now_s = self.state.clock.now()
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            told = {"act": "verify", "step": "compare", "done": done, "total": total}
            self.state.emit("PROGRESS", told)

    def _conclude(self, report: Verified) -> None:
        """State, journal and clients have the report; what follows is the policy's."""
        state = self.state
        state.beside.verified = report
        with contextlib.suppress(ColoctlError):  # no room: it is in the state all the same
            data = {event.VERIFIED: report.to_json()}
            state.record(Kind.OBSERVATION, step="verify", node=report.secondary, data=data)
        state.emit("VERIFIED", {"outcome": report.outcome, "report": asdict(report)})
        if report.outcome is Outcome.DIFFERENT:
            log.error("%s", report.sentence())
            if state.spec.verify.on_difference is OnDifference.RESYNC:
                state.beside.unlike = (report.sentence(),)
                seat = state.seat_of(Role.SECONDARY)
                state.beside.unlike_of = seat.vm if seat is not None else None
